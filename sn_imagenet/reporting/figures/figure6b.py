"""Fig. 6(b): validation accuracy of architecture search."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from sn_imagenet.reporting.cells import method_label, score_heading
from sn_imagenet.reporting.figures.series import (
    FigureData,
    Series,
    draw_curves,
    over_epochs,
)
from sn_imagenet.reporting.figures.style import COLUMN, DASHES, method_style, unstyled
from sn_imagenet.reporting.study import Study

_BASELINES: dict[str, dict[str, Any]] = {
    "none": {"color": "#000000", "ls": DASHES[1]},
    "random": {"color": "0.5", "ls": DASHES[2]},
}


def figure6b(study: Study) -> FigureData | None:
    """A curve per method, with a band of one standard deviation over seeds; a panel per setting."""
    panels: dict[str, list[Series]] = {}
    for norm in study.drawn_methods:
        color = method_style(norm, unstyled(study.drawn_methods))["color"]
        style = _BASELINES.get(norm, {"color": color})
        for setting in study.drawn_settings:
            curves, value = study.curves.get((norm, setting), []), study.validation(norm, setting)
            panels.setdefault(str(setting), []).extend(
                over_epochs(curves, value, method_label(norm), **style)
            )
    heading = score_heading(study.score)
    return FigureData(study.x_label, heading, panels) if any(panels.values()) else None


def draw_figure6b(data: FigureData) -> Figure:
    """Draw the panels side by side."""
    figure = Figure(figsize=(COLUMN * len(data.panels), 2.6))
    panels = figure.subplots(1, len(data.panels), squeeze=False)[0]
    for axes, (title, series) in zip(panels, data.panels.items(), strict=True):
        draw_curves(axes, series)
        axes.set(title=title, xlabel=data.x, ylabel=data.y)
        axes.legend(loc="lower right")
    figure.tight_layout()
    return figure
