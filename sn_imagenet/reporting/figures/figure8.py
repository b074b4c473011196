"""Fig. 8: moving against batch average during training."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sn_imagenet.reporting.cells import method_label, statistics_label
from sn_imagenet.reporting.figures.bands import draw_band, under
from sn_imagenet.reporting.figures.data import FigureData, a_few
from sn_imagenet.reporting.figures.style import COLUMN, DASHES, METHOD_COLOURS, light_grid
from sn_imagenet.runs import Setting

_LINES = (
    ("bn", "moving_average", DASHES[0]),
    ("sn", "moving_average", DASHES[1]),
    ("sn", "batch_average", DASHES[0]),
)


def draw_figure8(data: FigureData) -> Figure | None:
    """A panel for up to three settings in which SN was calibrated during training: BN and
    SN with the moving average, SN with the batch average, at the calibrated epochs."""
    settings = [s for s in data.settings if _calibrated(data, s)]
    if not settings:
        return None
    settings = a_few(settings)
    figure = Figure(figsize=(max(COLUMN, 2.35 * len(settings)), 2.6))
    panels = figure.subplots(1, len(settings), squeeze=False)[0]
    for axes, setting in zip(panels, settings, strict=True):
        light_grid(axes)
        for norm, statistics, dashes in _LINES:
            draw_band(
                axes,
                data.curves.get((norm, setting), []),
                under(statistics),
                f"{method_label(norm)}, {statistics_label(statistics)}",
                color=METHOD_COLOURS[norm],
                ls=dashes,
            )
        axes.set_title(str(setting))
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panels[0].set_ylabel("validation top-1 (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    rows = 1 if panels.size > 2 else len(handles)  # side by side they fill a page's width
    figure.legend(handles, labels, loc="upper center", ncols=len(handles) // rows)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.075 * rows))
    return figure


def _calibrated(data: FigureData, setting: Setting) -> bool:
    curves = data.curves.get(("sn", setting), [])
    return any("batch_average" in epoch.validation for curve in curves for epoch in curve)
