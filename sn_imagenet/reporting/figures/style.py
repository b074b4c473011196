"""Shared style of the figures: colors and marks, sizes for a two-column paper, files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sn_imagenet.runs import write_atomically
from sn_imagenet.runs.files import RUN_DIR_OPTIONS

DPI = 200
COLUMN, PAGE = 3.5, 7.1  # inches: widths of one column and of a two-column page
# Okabe and Ito's colors, distinguishable with any color vision. As in the paper's Fig. 4, green is
# BN and red is LN.
COLORS = {"in": "#0072b2", "ln": "#d55e00", "bn": "#009e73", "gn": "#cc79a7"}  # as stacked
METHOD_COLORS = {"bn": "#009e73", "gn": "#cc79a7", "sn": "#d55e00", "in": "#0072b2"}
METHOD_COLORS |= {"none": "0.0", "random": "0.5"}  # baselines
METHOD_COLORS |= {"ssn": "#56b4e9", "bin": "#e69f00", "frn": "#000000", "ebn": "#8c510a"}
METHOD_COLORS |= {"wn": "#999999", "evalnorm": "#7fbc41"}  # near BN's green
_OTHER_COLORS = ("#56b4e9", "#e69f00", "#000000", "#f0e442", "#999999", "#8c510a")
_MARKERS = {"bn": "s", "gn": "^", "sn": "o", "in": "D", "ln": "v", "brn": "P"}
_MARKERS |= {"ssn": "*", "bin": "h", "frn": "<", "ebn": ">", "wn": "d", "evalnorm": "p"}
# For an ordered family of curves: dark to light, also in print.
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
STYLE: Any = {  # Any: matplotlib's stubs list all keys one by one
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "axes.titlesize": 8.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,  # keeps text as text
    "svg.fonttype": "none",
    "text.parse_math": False,  # a method may have any name
}


def method_style(norm: str, methods: Sequence[str]) -> dict[str, Any]:
    """Color and mark of one of the ``methods`` that are drawn."""
    others = [method for method in methods if method not in METHOD_COLORS]
    colors = METHOD_COLORS | dict(zip(others, cycle(_OTHER_COLORS), strict=False))
    return {"color": colors[norm], "marker": _MARKERS.get(norm, "X")}


def light_grid(axes: Axes) -> None:
    """Horizontal lines to read values by."""
    axes.grid(axis="y", color="0.88", lw=0.6)
    axes.set_axisbelow(True)


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches that leaves room for all labels."""
    return Figure(figsize=(width, height), layout="constrained")


def legend_above(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend above the panels, in as many columns as fit; a wider figure for a longer label."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    for rows in range(1, len(labels) + 1):
        columns = -(-len(labels) // rows)
        legend = figure.legend(handles, labels, loc="outside upper center", ncols=columns)
        width = legend.get_window_extent(renderer).width / figure.dpi
        if columns == 1 or width < figure.get_figwidth():
            figure.set_figwidth(max(width, figure.get_figwidth()))
            return
        legend.remove()


def save(figure: Figure, path_stem: Path, chosen_by: str = RUN_DIR_OPTIONS) -> list[Path]:
    """Write ``<path_stem>.png`` (200 dpi) and ``.pdf``. Equal runs give equal files. ``chosen_by``:
    the option that sets the path, for the error message.

    Raises:
        RunError: a file cannot be written.
    """
    png, pdf = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI)
    figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    return [
        write_atomically(path_stem.with_name(path_stem.name + suffix), drawn.getvalue(), chosen_by)
        for suffix, drawn in ((".png", png), (".pdf", pdf))
    ]
