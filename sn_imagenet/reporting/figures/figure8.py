"""Fig. 8: moving and batch average during training."""

from __future__ import annotations

from matplotlib.figure import Figure

from sn_imagenet.reporting.cells import method_label, score_heading, statistics_label
from sn_imagenet.reporting.figures.series import (
    FigureData,
    Series,
    draw_curves,
    first_middle_last,
    over_epochs,
    validation_under,
)
from sn_imagenet.reporting.figures.style import COLUMN, DASHES, METHOD_COLORS
from sn_imagenet.reporting.study import Study
from sn_imagenet.runs import Setting

_DASHES = {"moving_average": DASHES[1], "batch_average": DASHES[0]}
_LINES = [(norm, statistics) for norm in ("bn", "sn") for statistics in _DASHES]


def figure8(study: Study) -> FigureData | None:
    """A panel for up to three settings at which BN or SN was calibrated during training: the score
    by moving average after every epoch, and by batch average after calibrated epochs."""
    settings = [s for s in study.drawn_settings if _calibrated(study, s)]
    if not settings:
        return None
    panels: dict[str, list[Series]] = {}
    for setting in first_middle_last(settings):
        panels[str(setting)] = [
            one
            for norm, statistics in _LINES
            for one in over_epochs(
                study.curves.get((norm, setting), []),
                validation_under(statistics),
                f"{method_label(norm)}, {statistics_label(statistics)}",
                color=METHOD_COLORS[norm],
                ls=_DASHES[statistics],
            )
        ]
    return FigureData(study.x_label, f"validation {score_heading(study.score)}", panels)


def draw_figure8(data: FigureData) -> Figure:
    """Draw the panels side by side."""
    figure = Figure(figsize=(max(COLUMN, 2.35 * len(data.panels)), 2.6))
    panels = figure.subplots(1, len(data.panels), squeeze=False)[0]
    for axes, (title, series) in zip(panels, data.panels.items(), strict=True):
        draw_curves(axes, series)
        axes.set_title(title)
        axes.set_xlabel(data.x)
    panels[0].set_ylabel(data.y)
    handles, labels = panels[0].get_legend_handles_labels()
    columns = min(2, panels.size)
    rows = -(-len(handles) // columns)
    figure.legend(handles, labels, loc="upper center", ncols=columns)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.075 * rows))
    return figure


def _calibrated(study: Study, setting: Setting) -> bool:
    return any(
        "batch_average" in epoch.validation
        for norm in ("bn", "sn")
        for curve in study.curves.get((norm, setting), [])
        for epoch in curve
    )
