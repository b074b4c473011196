"""What a subcommand is and gives: a table for the terminal, JSON, and bars to plot."""

from __future__ import annotations

import json
import os
import platform
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sn_imagenet.benchmark.contenders import REFERENCE

VERSION = 4
"""Of the JSON's form; since 3 a case of a step has a title, and a setting in place of a batch,
since 4 no layout."""


@dataclass(frozen=True)
class Report:
    """What a subcommand measured.

    Attributes:
        facts: what goes into the JSON beside the machine.
        table: for the terminal.
        panels: to plot: time over the reference's by contender, under a title each; none where
            there is nothing to compare.
        reference: its name.
    """

    facts: dict[str, Any]
    table: str
    panels: dict[str, dict[str, float]] = field(default_factory=dict)
    reference: str = REFERENCE


@dataclass(frozen=True)
class Command:
    """One subcommand of scripts/benchmark.py.

    Attributes:
        help: a line.
        add_arguments: adds its own; --threads, --device and --json are everyone's.
        measure: from its arguments and the device. Raises UserError for what the user can mend.
        plots: whether its reports have panels, for --plot.
    """

    help: str
    add_arguments: Callable[[ArgumentParser], None]
    measure: Callable[[Namespace, torch.device], Report]
    plots: bool = True


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on."""
    facts: dict[str, Any] = {
        "device": device.type,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[2],  # of 15 minutes: above the threads, others shared it
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "timm": _version("timm"),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = torch.backends.cudnn.version()
    return facts


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length in columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def write_json(benchmark: str, facts: Mapping[str, Any], device: torch.device, path: Path) -> None:
    """``facts`` of one subcommand, with the form's version and the machine."""
    report = {"version": VERSION, "benchmark": benchmark, "machine": machine(device), **facts}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
