"""Bars of what a benchmark came to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_COLUMNS = 4
_OURS = ("SN", "exact", "fast")


def plot(panels: Mapping[str, Mapping[str, float]], reference: str, path: Path) -> None:
    """Time over the reference's by contender, on a log scale, a panel per title."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

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
        colors = ["#c44" if name.startswith(_OURS) else "#68a" for name in names]
        axis.barh(range(len(names)), list(values.values()), color=colors)
        # Contenders differ between dtypes on a GPU, so only equal neighbors share their names.
        repeated = place % columns and names == list(list(panels.values())[place - 1])
        axis.set_yticks(range(len(names)), [""] * len(names) if repeated else names, fontsize=8)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())  # within one decade it would name them all
        axis.tick_params(axis="x", labelsize=8)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9)
        if place >= len(panels) - columns:
            axis.set_xlabel(f"time / {reference}", fontsize=8)
            axis.tick_params(axis="x", labelbottom=True)
        white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # over the line at 1
        for y, value in enumerate(values.values()):
            axis.text(value, y, f" {value:.2f}", va="center", fontsize=7, bbox=white)
        axis.margins(x=0.25)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
