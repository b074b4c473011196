"""Fig. 8: moving and batch average during training."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sn_imagenet.reporting.cells import method_label, statistics_label
from sn_imagenet.reporting.figures.bands import draw_band, validation_under
from sn_imagenet.reporting.figures.data import FigureData, first_middle_last
from sn_imagenet.reporting.figures.style import COLUMN, DASHES, METHOD_COLORS, light_grid
from sn_imagenet.runs import Setting

_DASHES = {"moving_average": DASHES[1], "batch_average": DASHES[0]}
_LINES = [(norm, statistics) for norm in ("bn", "sn") for statistics in _DASHES]


def draw_figure8(data: FigureData) -> Figure | None:
    """A panel for up to three settings at which BN or SN was calibrated during training: top-1 by
    moving average after every epoch, and by batch average after calibrated epochs."""
    settings = [s for s in data.settings if _calibrated(data, s)]
    if not settings:
        return None
    settings = first_middle_last(settings)
    figure = Figure(figsize=(max(COLUMN, 2.35 * len(settings)), 2.6))
    panels = figure.subplots(1, len(settings), squeeze=False)[0]
    for axes, setting in zip(panels, settings, strict=True):
        light_grid(axes)
        for norm, statistics in _LINES:
            draw_band(
                axes,
                data.curves.get((norm, setting), []),
                validation_under(statistics),
                f"{method_label(norm)}, {statistics_label(statistics)}",
                color=METHOD_COLORS[norm],
                ls=_DASHES[statistics],
            )
        axes.set_title(str(setting))
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panels[0].set_ylabel("validation top-1 (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    columns = min(2, panels.size)
    rows = -(-len(handles) // columns)
    figure.legend(handles, labels, loc="upper center", ncols=columns)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.075 * rows))
    return figure


def _calibrated(data: FigureData, setting: Setting) -> bool:
    return any(
        "batch_average" in epoch.validation
        for norm in ("bn", "sn")
        for curve in data.curves.get((norm, setting), [])
        for epoch in curve
    )
