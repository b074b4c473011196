"""A picture of the two cells that an architecture search found."""

from __future__ import annotations

from collections import Counter
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


def draw_cells(architecture: dict[str, list[list[Any]]]) -> Figure:
    """Draw the normal and the reduction cell of an ``architecture.json`` side by side: blocks as
    numbered nodes, operations as labeled edges, outputs of the cell as dashed edges."""
    figure = Figure(figsize=(PAGE, 3.2))
    panels = figure.subplots(1, 2)
    for axes, (name, blocks) in zip(panels, architecture.items(), strict=True):
        _draw_cell(axes, blocks)
        axes.set_title(f"{name} cell")
        axes.set_axis_off()
    figure.tight_layout()
    return figure


def _draw_cell(axes: Axes, blocks: list[list[Any]]) -> None:
    depths = [0, 0]
    for first, _, second, _ in blocks:
        depths.append(1 + max(depths[first], depths[second]))
    used = {source for first, _, second, _ in blocks for source in (first, second)}
    outputs = [node for node in range(len(depths)) if node not in used]
    depths.append(max(depths) + 1)
    # Nodes of one depth are spread around a center that alternates, so that edges overlap less.
    places: list[tuple[int, float]] = []
    for node, depth in enumerate(depths):
        offset = 0.35 * (-1) ** depth if depth not in (0, max(depths)) else 0.0
        place = (depths.count(depth) - 1) / 2 - depths[:node].count(depth)
        places.append((depth, place + offset))
    drawn: Counter[tuple[int, int]] = Counter()
    for node, (first, first_op, second, second_op) in enumerate(blocks, start=2):
        for source, operation, part in ((first, first_op, 0.4), (second, second_op, 0.6)):
            curve = (0.15, -0.25)[drawn[source, node]]
            drawn[source, node] += 1
            _draw_edge(axes, places[source], places[node], operation, curve, part)
    for node in outputs:
        _draw_edge(axes, places[node], places[-1], "", 0.1)
    names = ["k-2", "k-1", *map(str, range(2, len(blocks) + 2)), "out"]
    for name, (x, y) in zip(names, places, strict=True):
        axes.text(x, y, name, ha="center", va="center", bbox=_BOX, fontsize=7.5, zorder=3)
    heights = [y for _, y in places]
    axes.set_xlim(-0.35, max(depths) + 0.35)
    axes.set_ylim(min(heights) - 0.4, max(heights) + 0.4)


def _draw_edge(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    operation: str,
    curve: float,
    part: float = 0.5,
) -> None:
    """Draw an edge, with its label after ``part`` of it."""
    color = _COLORS.get(operation, "0.6")
    arrow = {
        "arrowstyle": "-|>",
        "connectionstyle": f"arc3,rad={curve}",
        "color": color,
        "lw": 1.1,
        "ls": "-" if operation else (0, (3, 2)),
        "shrinkA": 9,
        "shrinkB": 9,
    }
    axes.annotate("", end, start, arrowprops=arrow, zorder=1)
    # A quadratic curve, whose control point is beside the middle of the chord.
    (x0, y0), (x1, y1) = start, end
    side = 2 * part * (1 - part) * curve
    x, y = x0 + part * (x1 - x0) + side * (y1 - y0), y0 + part * (y1 - y0) - side * (x1 - x0)
    if operation:
        box = {"fc": "white", "ec": "none", "pad": 0.6, "alpha": 0.85}
        axes.text(
            x, y, operation, color=color, fontsize=6, ha="center", va="center", bbox=box, zorder=2
        )
