"""What a benchmark writes: a table for the terminal, and JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sn_imagenet.benchmark.contenders import REFERENCE
from sn_imagenet.benchmark.layers import Case, by_kind, geometric_means
from sn_imagenet.benchmark.step import StepCase

VERSION = 2
"""Of the JSON's form."""


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


def layers_report(cases: Sequence[Case], repeats: int, device: torch.device) -> dict[str, Any]:
    return {
        "version": VERSION,
        "benchmark": "norms",
        "machine": machine(device),
        "repeats": repeats,
        "reference": REFERENCE,
        "geometric_means": geometric_means(cases),
        "cases": [case.as_dict() for case in cases],
    }


def steps_report(cases: Sequence[StepCase], repeats: int, device: torch.device) -> dict[str, Any]:
    return {
        "version": VERSION,
        "benchmark": "step",
        "machine": machine(device),
        "repeats": repeats,
        "reference": REFERENCE,
        "cases": [
            {
                **asdict(case),
                "ratios": case.ratios(),
                "images_per_second": case.images_per_second,
            }
            for case in cases
        ],
    }


def layers_table(cases: Sequence[Case]) -> str:
    """Times over nn.BatchNorm2d's (the faster of its backends), a table per kind of activation:
    a row per shape, then geometric means, shares of the copy's bandwidth and what is kept."""
    tables = []
    for kind, members in by_kind(cases).items():
        means = geometric_means(members)[str(kind)]
        names = [name for name in members[0].seconds if name in means and name != REFERENCE]
        rows = [[f"{kind}, {members[0].backend}", f"{REFERENCE} ms", *names]]
        for case in members:
            size = "x".join(map(str, (kind.total, *case.shape)))
            ratios = case.ratios()
            rows.append([size, f"{case.reference * 1e3:.2f}", *(f"{ratios[n]:.2f}" for n in names)])
        kept = members[0].kept
        shares = {n: f"{100 * m['copy_bandwidth_share']:.0f} %" for n, m in means.items()}
        rows += [
            ["geometric mean", "", *(f"{means[n]['geometric_mean']:.2f}" for n in names)],
            ["largest", "", *(f"{means[n]['max']:.2f}" for n in names)],
            ["copy's bandwidth", shares.get(REFERENCE, ""), *(shares[n] for n in names)],
            ["kept, activations", *(_kept(kept, n) for n in (REFERENCE, *names))],
        ]
        absent = [f"not timed: {name}: {why}" for name, why in members[0].absent.items()]
        tables.append("\n".join([_aligned(rows), *absent]))
    return "\n\n".join(tables)


def _kept(kept: Mapping[str, float], name: str) -> str:
    return f"{kept[name]:.2f}" if name in kept else ""


def steps_table(cases: Sequence[StepCase]) -> str:
    """A table per batch: seconds, images per second, the ratio to nn.BatchNorm2d's seconds, the
    megabytes that forward keeps, and those of the peak where the device counts them."""
    tables = []
    for case in cases:
        kind = case.kind
        title = f"{kind.network}, {kind.batch} x {kind.image_size} px {kind.layout} {kind.dtype}"
        rows = [[title, "ms", "images/s", "ratio", "kept MB", "peak MB"]]
        for name, seconds in case.seconds.items():
            rows.append(
                [
                    name,
                    f"{seconds * 1e3:.1f}",
                    f"{case.images_per_second[name]:.1f}",
                    f"{case.ratios()[name]:.2f}",
                    *(_megabytes(table.get(name)) for table in (case.kept, case.peak_memory)),
                ]
            )
        tables.append(_aligned(rows))
    return "\n\n".join(tables)


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.0f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def write_json(report: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
