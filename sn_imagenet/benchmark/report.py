"""Interface of a subcommand, and its report: a table for the terminal, JSON, and bars to plot."""

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
"""Version of the JSON. Since version 3 a step's case has a title, and a setting instead of a batch;
since 4 it has no layout."""


@dataclass(frozen=True)
class BenchmarkReport:
    """Measurements of a subcommand.

    Attributes:
        facts: contents of the JSON, apart from the machine.
        table: for the terminal.
        panels: for the plot, by title: time relative to the reference by contender; empty if there
            is nothing to compare.
        reference: name of the reference.
    """

    facts: dict[str, Any]
    table: str
    panels: dict[str, dict[str, float]] = field(default_factory=dict)
    reference: str = REFERENCE


@dataclass(frozen=True)
class Command:
    """One subcommand of scripts/benchmark.py.

    Attributes:
        help: one line for the command line.
        add_arguments: adds its own arguments; all have --threads, --device and --json.
        measure: takes the arguments and the device. Raises UserError for a user's mistake.
        plots: whether its reports have panels, for --plot.
    """

    help: str
    add_arguments: Callable[[ArgumentParser], None]
    measure: Callable[[Namespace, torch.device], BenchmarkReport]
    plots: bool = True


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware and versions that the numbers depend on."""
    facts: dict[str, Any] = {
        "device": device.type,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[2],  # over 15 minutes; above the threads: a shared machine
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


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of equal length in columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def write_json(benchmark: str, facts: Mapping[str, Any], device: torch.device, path: Path) -> None:
    """Write a subcommand's ``facts`` with the JSON's version and the machine."""
    report = {"version": VERSION, "benchmark": benchmark, "machine": machine(device), **facts}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
