"""Where a number comes from: code, versions, hardware."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "numpy", "triton")

# Results are not what a number comes from, and a study writes them into the checkout.
_CODE = ("--", ":/", ":(top,exclude)results")


def provenance(device: torch.device) -> dict[str, Any]:
    """Git revision and dirty flag of this package's checkout (None outside one), versions,
    hardware.
    """
    revision = _git("rev-parse", "HEAD")
    return {
        "git_revision": revision,
        "git_dirty": None if revision is None else bool(_git("status", "--porcelain", *_CODE)),
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": _hardware(device),
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str | None:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return platform.processor() or None
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None) or platform.processor() or None


def _hardware(device: torch.device) -> dict[str, Any]:
    hardware: dict[str, Any] = {
        "device": device.type,
        "machine": platform.machine(),
        "processor": _processor(),  # which instructions it has decides the last digits
        "cpu_threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(device)
        hardware["cuda"] = torch.version.cuda
        hardware["cudnn"] = torch.backends.cudnn.version()
    return hardware
