"""Fig. 6(b): validation accuracy of architecture search."""

from __future__ import annotations

from matplotlib.figure import Figure

from sn_imagenet.reporting.cells import method_label, score_heading
from sn_imagenet.reporting.figures.series import FigureData, draw_curves, over_epochs
from sn_imagenet.reporting.figures.style import COLUMN, DASHES, method_style, unstyled
from sn_imagenet.reporting.study import Study

_BASELINES = {
    "none": {"color": "#000000", "ls": DASHES[1]},
    "random": {"color": "0.5", "ls": DASHES[2]},
}


def figure6b(study: Study) -> FigureData | None:
    """A curve per method, with a band of one standard deviation over seeds; a panel per setting."""
    others = unstyled(study.drawn_methods)
    styles = {norm: {"color": method_style(norm, others)["color"]} for norm in study.drawn_methods}
    styles |= {norm: style for norm, style in _BASELINES.items() if norm in styles}
    panels = {
        str(setting): [
            one
            for norm in study.drawn_methods
            for one in over_epochs(
                study.curves.get((norm, setting), []),
                study.validation(norm, setting),
                method_label(norm),
                **styles[norm],
            )
        ]
        for setting in study.drawn_settings
    }
    panels = {title: series for title, series in panels.items() if series}
    return FigureData(study.x_label, score_heading(study.score), panels) if panels else None


def draw_figure6b(data: FigureData) -> Figure:
    """Draw the panels side by side."""
    figure = Figure(figsize=(COLUMN * len(data.panels), 2.8))
    for axes, (title, series) in zip(
        figure.subplots(1, len(data.panels), squeeze=False)[0], data.panels.items(), strict=True
    ):
        draw_curves(axes, series)
        axes.set_title(title)
        axes.set_xlabel(data.x)
        axes.set_ylabel(data.y)
        axes.legend(loc="lower right")
    figure.tight_layout()
    return figure
