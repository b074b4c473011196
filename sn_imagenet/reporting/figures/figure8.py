"""Fig. 8: moving against batch average during training."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from sn_imagenet.reporting.cells import method_label, statistics_label
from sn_imagenet.reporting.curves import Epoch
from sn_imagenet.reporting.figures.bands import draw_band
from sn_imagenet.reporting.figures.data import FigureData
from sn_imagenet.reporting.figures.style import COLUMN, DASHES, METHOD_COLOURS, light_grid
from sn_imagenet.reporting.runs import Setting

_LINES = (
    ("bn", "moving_average", DASHES[0]),
    ("sn", "moving_average", DASHES[1]),
    ("sn", "batch_average", DASHES[0]),
)


def draw_figure8(data: FigureData) -> Figure | None:
    """A panel per setting in which SN was calibrated during training: BN and SN with the moving
    average, SN with the batch average, at the calibrated epochs."""
    settings = [s for s in data.settings if _calibrated(data, s)]
    if not settings:
        return None
    figure = Figure(figsize=(max(COLUMN, 2.35 * len(settings)), 2.6))
    panels = figure.subplots(1, len(settings), squeeze=False)[0]
    for axes, setting in zip(panels, settings, strict=True):
        light_grid(axes)
        for norm, statistics, dashes in _LINES:
            draw_band(
                axes,
                data.curves.get((norm, setting), []),
                _under(statistics),
                f"{method_label(norm)}, {statistics_label(statistics)}",
                color=METHOD_COLOURS[norm],
                ls=dashes,
            )
        axes.set_title(str(setting))
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="lower right", fontsize=6.5)
    panels[0].set_ylabel("validation top-1 (%)")
    figure.tight_layout()
    return figure


def _under(statistics: str) -> Callable[[Epoch], float | None]:
    return lambda epoch: epoch.validation.get(statistics)


def _calibrated(data: FigureData, setting: Setting) -> bool:
    curves = data.curves.get(("sn", setting), [])
    return any("batch_average" in epoch.validation for curve in curves for epoch in curve)
