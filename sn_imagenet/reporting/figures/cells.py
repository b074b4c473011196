"""A picture of the two cells that an architecture search found."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sn_imagenet.reporting.figures.style import PAGE

_COLORS = {
    "sep3x3": "#0072b2",
    "sep5x5": "#56b4e9",
    "avg3x3": "#009e73",
    "max3x3": "#e69f00",
    "identity": "0.45",
}
_BOX = {"boxstyle": "round,pad=0.35", "ec": "0.3", "fc": "0.95", "lw": 0.8}
_CENTER: Any = {"ha": "center", "va": "center"}
_BEND = 0.7  # of an arc, in units of its span; its top is at half of it


def draw_cells(architecture: dict[str, list[list[Any]]]) -> Figure:
    """Draw the normal and the reduction cell of an ``architecture.json`` below each other: blocks
    as numbered nodes, operations as labeled arcs, the first of a block above and the second below,
    outputs of the cell as dashed arcs."""
    figure = Figure(figsize=(PAGE, 5.0))
    for axes, (name, blocks) in zip(figure.subplots(2, 1), architecture.items(), strict=True):
        _draw_cell(axes, blocks)
        axes.set(title=f"{name} cell", aspect="equal")
        axes.set_axis_off()
    figure.tight_layout()
    return figure


def _draw_cell(axes: Axes, blocks: list[list[Any]]) -> None:
    """Draw the nodes from left to right. No two labels are in one place, since no two arcs of a
    side end in one block."""
    names = ["k-2", "k-1", *map(str, range(2, len(blocks) + 2)), "out"]
    used = {source for first, _, second, _ in blocks for source in (first, second)}
    arcs = [
        (source, node, operation, side)
        for node, (first, first_op, second, second_op) in enumerate(blocks, start=2)
        for source, operation, side in ((first, first_op, 1), (second, second_op, -1))
    ]
    arcs += [(node, len(names) - 1, "", 1) for node in range(len(names) - 1) if node not in used]
    for source, node, operation, side in arcs:
        color, span = _COLORS.get(operation, "0.6"), node - source
        line = {"color": color, "lw": 1.1, "ls": "-" if operation else (0, (3, 2))}
        arc = {"connectionstyle": f"arc3,rad={-side * _BEND}", "shrinkA": 8, "shrinkB": 8}
        axes.annotate("", (node, 0), (source, 0), arrowprops={"arrowstyle": "-|>", **arc, **line})
        place = (source + span / 2, side * span * _BEND / 2)
        box = {"fc": "white", "ec": "none", "pad": 0.6, "alpha": 0.85}
        if operation:
            axes.text(*place, operation, color=color, bbox=box, fontsize=7, **_CENTER)
    for x, name in enumerate(names):
        axes.text(x, 0, name, bbox=_BOX, fontsize=8, **_CENTER)
    tops = [side * (node - source) * _BEND / 2 for source, node, _, side in arcs]
    axes.set(xlim=(-0.4, len(names) - 0.6), ylim=(min(tops) - 0.3, max(tops) + 0.3))
