"""Bars of what a benchmark came to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sn_imagenet.benchmark.contenders import REFERENCE

_COLUMNS = 4


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Time over nn.BatchNorm2d's by contender, on a log scale: the geometric means of layers, a
    panel per kind of activation, or a network's steps, a panel per batch."""
    panels = _layers(report) if report["benchmark"] == "norms" else _steps(report)
    _draw(panels, path)


def _layers(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {
        kind: {
            name: mean["geometric_mean"]
            for name, mean in means.items()
            if name != report["reference"]
        }
        for kind, means in report["geometric_means"].items()
    }


def _steps(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {
        "{network}, {batch} x {image_size} px {layout} {dtype}".format(**case["kind"]): {
            name: ratio for name, ratio in case["ratios"].items() if name != report["reference"]
        }
        for case in report["cases"]
    }


def _draw(panels: Mapping[str, Mapping[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    bars = max(len(values) for values in panels.values())
    size = (1.8 + 3.1 * columns, rows * (0.9 + 0.24 * bars))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharex=True)
    cells = list(axes.flat)
    for axis in cells[len(panels) :]:
        axis.set_visible(False)
    for place, (axis, (title, values)) in enumerate(zip(cells, panels.items(), strict=False)):
        names = list(values)
        colours = ["#c44" if name.startswith("SN") else "#68a" for name in names]
        axis.barh(range(len(names)), list(values.values()), color=colours)
        # Contenders differ between dtypes on a GPU, so only equal neighbours share their names.
        repeated = place % columns and names == list(list(panels.values())[place - 1])
        axis.set_yticks(range(len(names)), [""] * len(names) if repeated else names, fontsize=8)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.tick_params(axis="x", labelsize=8)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9)
        if place >= len(panels) - columns:
            axis.set_xlabel(f"time / {REFERENCE}", fontsize=8)
            axis.tick_params(axis="x", labelbottom=True)
        white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # over the line at 1
        for y, value in enumerate(values.values()):
            axis.text(value, y, f" {value:.2f}", va="center", fontsize=7, bbox=white)
        axis.margins(x=0.25)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
