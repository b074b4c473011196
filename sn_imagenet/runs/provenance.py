"""Provenance of a number: code, versions, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sn_imagenet.native import compiler_version

PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "numpy", "triton")

# A study writes results into the checkout, but no number depends on them.
_CODE = ("--", ":/", ":(top,exclude)results")


def provenance(device: torch.device) -> dict[str, Any]:
    """Git revision and dirty flag of this checkout (None outside one), versions, hardware."""
    revision = _git("rev-parse", "HEAD")
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "git_revision": revision,
        "git_dirty": None if revision is None else bool(_git("status", "--porcelain", *_CODE)),
        "versions": versions,
        "hardware": _hardware(device),
    }


def _git(*arguments: str) -> str | None:
    try:
        process = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()


def _processor() -> str | None:
    """The processor's name, None if the system does not provide it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return platform.processor() or None
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None) or platform.processor() or None


def _what_decides_the_digits() -> dict[str, Any]:
    """What chooses the order in which a CPU sums: PyTorch, oneDNN and the compiler go by its
    instruction sets and caches. A virtual machine's processor only has a name that many share."""
    capabilities = torch.cpu.get_capabilities()
    vectors = ("avx", "amx", "fma", "sve", "neon")
    variables = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR")
    return {
        "instruction_sets": sorted(
            name for name, has in capabilities.items() if has is True and name.startswith(vectors)
        ),
        "caches": {k: v for k, v in capabilities.items() if k.endswith("cache_size")},
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "environment": {name: os.environ[name] for name in variables if name in os.environ},
        "compiler": compiler_version(),
    }


def _hardware(device: torch.device) -> dict[str, Any]:
    hardware: dict[str, Any] = {
        "device": device.type,
        "machine": platform.machine(),
        "processor": _processor(),
        "cpu_threads": torch.get_num_threads(),
        **_what_decides_the_digits(),
    }
    if device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(device)
        hardware["cuda"] = torch.version.cuda
        hardware["cudnn"] = torch.backends.cudnn.version()
    return hardware
