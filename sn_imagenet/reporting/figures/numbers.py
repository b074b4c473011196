"""The numbers that a figure shows, read from the drawn figure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

_DIGITS = 6  # significant digits: enough for readers, and equal on all machines


def figure_json(figure: Figure) -> str:
    """The content of each panel as JSON, one line per panel: titles, labels, lines and marks as
    points, bars as [left, bottom, width, height], bands as corners, scatter points as centers."""
    panels = [json.dumps(_panel(axes), ensure_ascii=False) for axes in figure.axes]
    return "[\n" + ",\n".join(panels) + "\n]\n"


def _panel(axes: Axes) -> dict[str, Any]:
    texts = [text.get_text() for text in axes.texts]
    ticks = [label.get_text() for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    shown = {
        "title": axes.get_title(),
        "x": axes.get_xlabel(),
        "y": axes.get_ylabel(),
        "ticks": [tick for tick in ticks if tick],
        "texts": texts,
        "lines": [_points(line.get_xydata()) for line in axes.lines],
        "bars": [
            _rounded((*bar.get_xy(), bar.get_width(), bar.get_height()))
            for bar in axes.patches
            if isinstance(bar, Rectangle)
        ],
        "bands": [
            _points(path.vertices) for shape in axes.collections for path in shape.get_paths()
        ],
        "clouds": [_points(shape.get_offsets()) for shape in axes.collections],
    }
    return {name: value for name, value in shown.items() if value}


def _points(pairs: Any) -> list[list[float]]:
    return [_rounded(pair) for pair in np.asarray(pairs, dtype=float)]


def _rounded(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in values]
