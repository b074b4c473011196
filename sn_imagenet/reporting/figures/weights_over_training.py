"""The importance weights during training, by stage; the paper has no such figure."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sn_imagenet.reporting.cells import method_label
from sn_imagenet.reporting.curves import KIND_SYMBOLS, Epoch, stage_weights
from sn_imagenet.reporting.figures.bands import draw_band
from sn_imagenet.reporting.figures.data import FigureData, first_middle_last
from sn_imagenet.reporting.figures.style import COLORS, PAGE, light_grid
from sn_imagenet.reporting.figures.weights import STACKING_ORDER
from sn_imagenet.runs import stage_of


def draw_weights_over_training(data: FigureData) -> Figure | None:
    """Mean weight of each member of Omega over the layers of a stage, by epoch: a row per setting
    and kind (μ, σ), a column per stage; bands over seeds."""
    settings = [
        s
        for s in data.settings
        if any(epoch.weights for curve in data.curves.get(("sn", s), []) for epoch in curve)
    ]
    if not settings:
        return None
    settings = first_middle_last(settings)
    stages = sorted(
        {
            stage_of(layer)
            for s in settings
            for curve in data.curves["sn", s]
            for epoch in curve
            for layer in epoch.weights
        }
    )
    rows = [(s, kind, symbol) for s in settings for kind, symbol in KIND_SYMBOLS.items()]
    figure = Figure(figsize=(PAGE, 1.1 * len(rows) + 0.7))
    panels = figure.subplots(len(rows), len(stages), squeeze=False, sharex="row", sharey=True)
    for row, (setting, kind, symbol) in zip(panels, rows, strict=True):
        for axes, stage in zip(row, stages, strict=True):
            light_grid(axes)
            for member in STACKING_ORDER:
                draw_band(
                    axes,
                    data.curves["sn", setting],
                    _weight(kind, member, stage),
                    method_label(member),
                    color=COLORS[member],
                )
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        row[0].set_ylabel(f"{setting}, {symbol}")
    for axes, stage in zip(panels[0], stages, strict=True):
        axes.set_title(stage)
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    panels[0][0].set_ylim(0, None)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(handles))
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()), h_pad=0.4, w_pad=0.4)
    return figure


def _weight(kind: str, member: str, stage: str) -> Callable[[Epoch], float | None]:
    return lambda epoch: stage_weights(epoch, stage).get(kind, {}).get(member)
