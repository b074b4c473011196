"""Bar plots of a benchmark's ratios."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_COLUMNS = 4
_OURS = ("SN", "exact", "fast")


def plot(panels: Mapping[str, Mapping[str, float]], reference: str, path: Path) -> None:
    """Plot time relative to the reference by contender, on a log scale, one panel per title."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    bars = max(len(values) for values in panels.values())
    size = (1.8 + 3.1 * columns, rows * (0.9 + 0.24 * bars))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharex=True)
    flat = list(axes.flat)
    for axis in flat[len(panels) :]:
        axis.set_visible(False)
    for index, (axis, (title, values)) in enumerate(zip(flat, panels.items(), strict=False)):
        names = list(values)
        colors = ["#c44" if name.startswith(_OURS) else "#68a" for name in names]
        axis.barh(range(len(names)), list(values.values()), color=colors)
        # On a GPU contenders differ between dtypes, so only equal neighbors share the labels.
        repeated = index % columns and names == list(list(panels.values())[index - 1])
        axis.set_yticks(range(len(names)), [""] * len(names) if repeated else names, fontsize=8)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())  # within one decade it would label all
        axis.tick_params(axis="x", labelsize=8)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9)
        if index >= len(panels) - columns:
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
