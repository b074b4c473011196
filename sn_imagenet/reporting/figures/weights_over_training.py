"""The importance weights during training, by stage; the paper has no such figure."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from matplotlib.figure import Figure

from sn_imagenet.reporting.cells import method_label
from sn_imagenet.reporting.curves import KIND_SYMBOLS, Epoch, mean_weight
from sn_imagenet.reporting.figures.series import (
    FigureData,
    Series,
    draw_curves,
    first_middle_last,
    over_epochs,
)
from sn_imagenet.reporting.figures.style import COLORS, PAGE
from sn_imagenet.reporting.study import Study


def weights_over_training(study: Study) -> FigureData | None:
    """Mean weight of each member of Omega over the layers of a stage, by epoch: a panel for each
    setting, kind (μ, σ) and stage; bands over seeds."""
    stages = {
        setting: {
            layer.stage
            for curve in study.curves.get(("sn", setting), [])
            for epoch in curve
            for layer in epoch.weights
        }
        for setting in study.drawn_settings
    }
    settings = [setting for setting, names in stages.items() if names]
    if not settings:
        return None
    settings = first_middle_last(settings)
    panels: dict[str, list[Series]] = {}
    columns = sorted(set().union(*(stages[setting] for setting in settings)))
    for setting, (kind, symbol), stage in product(settings, KIND_SYMBOLS.items(), columns):
        panels[f"{setting}, {symbol}, {stage}"] = [
            one
            for member in COLORS
            for one in over_epochs(
                study.curves.get(("sn", setting), []),
                _weight(kind, member, stage),
                method_label(member),
                color=COLORS[member],
            )
        ]
    return FigureData(study.x_label, "importance weight", panels)


def draw_weights_over_training(data: FigureData) -> Figure:
    """Draw a row for each setting and kind, a column for each stage."""
    rows, stages = (
        list(dict.fromkeys(title.rsplit(", ", 1)[part] for title in data.panels)) for part in (0, 1)
    )
    figure = Figure(figsize=(PAGE, 1.1 * len(rows) + 0.7))
    panels = figure.subplots(len(rows), len(stages), squeeze=False, sharex="row", sharey=True)
    for axes, series in zip(panels.flat, data.panels.values(), strict=True):
        draw_curves(axes, series)
    for axes, row in zip(panels[:, 0], rows, strict=True):
        axes.set_ylabel(row)
    for axes, stage in zip(panels[0], stages, strict=True):
        axes.set_title(stage)
    for axes in panels[-1]:
        axes.set_xlabel(data.x)
    panels[0][0].set_ylim(0, None)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(handles))
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()), h_pad=0.4, w_pad=0.4)
    return figure


def _weight(kind: str, member: str, stage: str) -> Callable[[Epoch], float | None]:
    return lambda epoch: mean_weight(epoch.weights, kind, member, stage)
