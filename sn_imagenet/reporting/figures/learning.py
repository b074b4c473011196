"""Curves during training: Fig. 2, Fig. 8 and the importance weights, which the paper does not
show."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

from matplotlib.figure import Figure

from sn_imagenet.reporting.cells import method_label, score_heading, statistics_label
from sn_imagenet.reporting.curves import KIND_SYMBOLS, Epoch, mean_weight
from sn_imagenet.reporting.figures.series import (
    FigureData,
    Series,
    draw_curves,
    first_middle_last,
    over_epochs,
    validation_under,
)
from sn_imagenet.reporting.figures.style import (
    COLORS,
    COLUMN,
    DASHES,
    METHOD_COLORS,
    PAGE,
    legend_above,
    method_style,
    new_figure,
    unstyled,
)
from sn_imagenet.reporting.study import Study
from sn_imagenet.runs import Setting

PAPERS_SETTINGS = (Setting(8, 32), Setting(8, 2))
_ORDERED = ("#000000", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7")
_AVERAGES = {"moving_average": DASHES[1], "batch_average": DASHES[0]}


def figure2(study: Study) -> FigureData | None:
    """(a) SN's validation curves at all settings; (b), (c) all methods at two settings, training
    dashed and validation solid. Bands: one standard deviation over seeds."""
    methods = study.drawn_methods
    settings = [s for s in study.drawn_settings if any(study.curves_of(m, s) for m in methods)]
    if not settings:
        return None
    # The paper's (8,32) and (8,2), or else the most and the fewest samples per GPU.
    by_samples = sorted(settings, key=lambda s: (s.samples_per_gpu, s.gpus))
    pair = [
        p if p in settings else by_samples[i] for p, i in zip(PAPERS_SETTINGS, (-1, 0), strict=True)
    ]
    norm = "sn" if "sn" in methods else methods[-1]
    panels = {f"(a) {study.label(norm)}, validation": _by_setting(study, norm, settings)}
    for letter, setting in zip("bc", dict.fromkeys(pair), strict=False):
        panels[f"({letter}) {setting}, dashed: training"] = by_method(study, setting)
    heading, lower = score_heading(study.score), not study.score.higher_is_better
    return FigureData(study.x_label, heading, panels, lower_is_better=lower)


def _by_setting(study: Study, norm: str, settings: list[Setting]) -> list[Series]:
    series = []
    for i, setting in enumerate(settings):
        style = {"color": _ORDERED[i % 7], "ls": DASHES[i // 7 % 4]}
        curves, value = study.curves_of(norm, setting), study.validation(norm, setting)
        series += over_epochs(curves, value, str(setting), **style)
    return series


def by_method(study: Study, setting: Setting, training: bool = True) -> list[Series]:
    """The validation curve of each method and, not in the legend, that of ``training``."""
    series = []
    for norm in study.drawn_methods:
        curves, label = study.curves_of(norm, setting), study.label(norm)
        color = method_style(norm, unstyled(study.drawn_methods))["color"]
        series += over_epochs(curves, study.validation(norm, setting), label, color=color)
        style = {"color": color, "ls": DASHES[1], "lw": 0.9, "label": "_"}
        if training:
            series += over_epochs(curves, lambda epoch: epoch.train, f"{label}, training", **style)
    return series


def draw_figure2(data: FigureData) -> Figure:
    """Draw the panels side by side, each with its legend below the curves' ends."""
    figure = new_figure(PAGE, 2.6)
    panels = side_by_side(figure, data, count_in_first=False)
    corner = "upper right" if data.lower_is_better else "lower right"
    for axes in panels:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc=corner, fontsize=6.5, ncols=2 if axes is panels[0] else 1)
    return figure


def figure8(study: Study) -> FigureData | None:
    """A panel for up to three settings at which BN or SN was calibrated during training: the score
    by moving average after every epoch, and by batch average after calibrated epochs."""
    settings = [
        setting
        for setting in study.drawn_settings
        if any(
            "batch_average" in epoch.validation
            for norm in ("bn", "sn")
            for curve in study.curves_of(norm, setting)
            for epoch in curve
        )
    ]
    if not settings:
        return None
    panels = {
        str(setting): [
            one
            for norm, (statistics, dashes) in product(("bn", "sn"), _AVERAGES.items())
            for one in over_epochs(
                study.curves_of(norm, setting),
                validation_under(statistics),
                f"{method_label(norm)}, {statistics_label(statistics)}",
                color=METHOD_COLORS[norm],
                ls=dashes,
            )
        ]
        for setting in first_middle_last(settings)
    }
    return FigureData(study.x_label, f"validation {score_heading(study.score)}", panels)


def draw_figure8(data: FigureData) -> Figure:
    """Draw the panels side by side."""
    figure = new_figure(max(COLUMN, 2.35 * len(data.panels)), 2.6)
    panels = side_by_side(figure, data)
    legend_above(figure, *panels[0].get_legend_handles_labels())
    return figure


def side_by_side(figure: Figure, data: FigureData, count_in_first: bool = True) -> list[Any]:
    """Draw the curves of ``data`` in a panel each, and return the panels."""
    panels = list(figure.subplots(1, len(data.panels), squeeze=False)[0])
    for axes, (title, series) in zip(panels, data.panels.items(), strict=True):
        draw_curves(axes, series, count=count_in_first or axes is not panels[0])
        axes.set_title(title)
        axes.set_xlabel(data.x)
    panels[0].set_ylabel(data.y)
    return panels


def weights_over_training(study: Study) -> FigureData | None:
    """Mean weight of each member of Omega over the layers of a stage, by epoch: a panel for each
    setting, kind (μ, σ) and stage; bands over seeds."""
    stages = {
        setting: {
            layer.stage
            for curve in study.curves_of("sn", setting)
            for epoch in curve
            for layer in epoch.weights
        }
        for setting in study.drawn_settings
    }
    settings = [setting for setting, names in stages.items() if names]
    if not settings:
        return None
    settings = first_middle_last(settings)
    columns = sorted(set().union(*(stages[setting] for setting in settings)))

    def weight(kind: str, member: str, stage: str) -> Callable[[Epoch], float | None]:
        return lambda epoch: mean_weight(epoch.weights, kind, member, stage)

    panels = {
        f"{setting}, {symbol}, {stage}": [
            one
            for member, color in COLORS.items()
            for one in over_epochs(
                study.curves_of("sn", setting),
                weight(kind, member, stage),
                method_label(member),
                color=color,
            )
        ]
        for setting, (kind, symbol), stage in product(settings, KIND_SYMBOLS.items(), columns)
    }
    return FigureData(study.x_label, "importance weight", panels)


def draw_weights_over_training(data: FigureData) -> Figure:
    """Draw a row for each setting and kind, a column for each stage."""
    rows, stages = (
        list(dict.fromkeys(title.rsplit(", ", 1)[part] for title in data.panels)) for part in (0, 1)
    )
    figure = new_figure(PAGE, 1.1 * len(rows) + 0.7)
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
    legend_above(figure, *panels[0][0].get_legend_handles_labels())
    return figure
