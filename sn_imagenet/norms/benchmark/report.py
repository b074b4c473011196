"""What a benchmark writes: a table for the terminal, JSON, a plot."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sn_imagenet.norms.benchmark.layers import REFERENCE, Case, geometric_means
from sn_imagenet.norms.benchmark.step import StepCase

VERSION = 1
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
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cudnn"] = torch.backends.cudnn.version()
    return facts


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
        "geometric_means": geometric_means(list(cases)),
        "cases": [case.as_dict() for case in cases],
    }


def step_report(
    case: StepCase, settings: Mapping[str, Any], device: torch.device
) -> dict[str, Any]:
    reference = case.seconds[REFERENCE]
    return {
        "version": VERSION,
        "benchmark": "step",
        "machine": machine(device),
        "settings": dict(settings),
        "reference": REFERENCE,
        "seconds": case.seconds,
        "ratios": {name: value / reference for name, value in case.seconds.items()},
        "images_per_second": case.images_per_second,
        "peak_memory_bytes": case.peak_memory,
    }


def layers_table(cases: Sequence[Case]) -> str:
    """Times over nn.BatchNorm2d's, a row per activation and one for the geometric means."""
    names = [name for name in cases[0].seconds if name != REFERENCE]
    lines = [_row(["N x C x H x W", "layout", "dtype", "BN ms", *names])]
    for group, means in geometric_means(list(cases)).items():
        for case in (c for c in cases if c.group == group):
            size = "x".join(map(str, (case.samples, *case.shape)))
            reference = f"{case.seconds[REFERENCE] * 1e3:.2f}"
            ratios = [f"{case.ratios()[n]:.2f}" for n in names]
            lines.append(_row([size, case.layout, case.dtype, reference, *ratios]))
        averages = [f"{means[n]['geometric_mean']:.2f}" for n in names]
        lines.append(_row(["geometric mean", "", "", "", *averages]))
    kept = cases[0].kept
    copies = [f"{kept[n]:.2f}" if n in kept else "" for n in names]
    lines.append(_row(["kept, activations", "", "", f"{kept[REFERENCE]:.2f}", *copies]))
    return "\n".join(lines)


def step_table(report: Mapping[str, Any]) -> str:
    """Seconds, images per second and the ratio to nn.BatchNorm2d's seconds."""
    lines = [_row(["step", "s", "images/s", "ratio"])]
    for name, seconds in report["seconds"].items():
        images, ratio = report["images_per_second"][name], report["ratios"][name]
        lines.append(_row([name, f"{seconds:.3f}", f"{images:.1f}", f"{ratio:.2f}"]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"{cells[0]:22s}" + "".join(f"{cell:>17s}" for cell in cells[1:])


def write_json(report: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def plot_layers(report: Mapping[str, Any], path: Path) -> None:
    """Bars of the geometric means by contender, one panel per activation kind, log scale."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = report["geometric_means"]
    figure, axes = plt.subplots(
        1, len(groups), figsize=(4.2 * len(groups), 3.6), sharey=True, squeeze=False
    )
    for axis, (group, means) in zip(axes[0], groups.items(), strict=True):
        names = [name for name in means if name != REFERENCE]
        values = [means[name]["geometric_mean"] for name in names]
        axis.barh(names, values, color=["#c44" if n.startswith("SN") else "#68a" for n in names])
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.invert_yaxis()
        axis.set_title(group, fontsize=10)
        axis.set_xlabel(f"time / {REFERENCE}")
        for y, value in enumerate(values):
            axis.text(value, y, f" {value:.2f}", va="center", fontsize=8)
        axis.margins(x=0.2)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
