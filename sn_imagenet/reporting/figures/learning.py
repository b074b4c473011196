"""Curves during training: Figs. 2, 6 and 8, and the importance weights, which the paper does not
show."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, product

from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from sn_imagenet.reporting.cells import method_label, score_heading, statistics_label
from sn_imagenet.reporting.curves import KIND_SYMBOLS, Epoch, mean_weight
from sn_imagenet.reporting.figures.series import (
    FigureData,
    Series,
    draw_curves,
    first_middle_last,
    over_epochs,
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
)
from sn_imagenet.reporting.study import Study
from sn_imagenet.reporting.stylization import loss_curve
from sn_imagenet.runs import Setting

PAPERS_SETTINGS = (Setting(8, 32), Setting(8, 2))
_ORDERED = ("#000000", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7")
_AVERAGES = {"moving_average": DASHES[1], "batch_average": DASHES[0]}
_LOSSES = {"total": "loss", "style": "style", "feature": "feature"}  # title -> key of a row


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
    panels = {
        f"(a) {study.label(norm)}, validation": [
            one
            for i, setting in enumerate(settings)
            for one in over_epochs(
                study.curves_of(norm, setting),
                study.validation(norm, setting),
                str(setting),
                color=_ORDERED[i % 7],
                ls=DASHES[i // 7 % 4],
            )
        ]
    }
    for letter, setting in zip("bc", dict.fromkeys(pair), strict=False):
        panels[f"({letter}) {setting}, dashed: training"] = _by_method(study, setting)
    heading, lower = score_heading(study.score), not study.score.higher_is_better
    return FigureData(study.x_label, heading, panels, lower_is_better=lower)


def _by_method(study: Study, setting: Setting, training: bool = True) -> list[Series]:
    """The validation curve of each method and, not in the legend, that of ``training``."""
    series = []
    for norm in study.drawn_methods:
        curves, label = study.curves_of(norm, setting), study.label(norm)
        color = method_style(norm, study.drawn_methods)["color"]
        series += over_epochs(curves, study.validation(norm, setting), label, color=color)
        style = {"color": color, "ls": DASHES[1], "lw": 0.9, "label": "_"}
        if training:
            series += over_epochs(curves, lambda epoch: epoch.train, f"{label}, training", **style)
    return series


def draw_figure2(data: FigureData) -> Figure:
    """Draw the panels side by side, each with its legend below the curves' ends. More than four
    methods do not fit there, and have one legend above all panels."""
    figure = new_figure(PAGE, 2.6)
    first, *others = draw_curves(figure, data, uncounted=list(data.panels)[:1])[0]
    corner = "upper right" if data.lower_is_better else "lower right"
    lines = [line for axes in others for line in axes.get_legend_handles_labels()[0]]
    methods = {str(line.get_label()): line for line in lines}
    if many := len(methods) > 4:
        legend_above(figure, list(methods.values()), list(methods))
    for axes in (first,) if many else (first, *others):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc=corner, fontsize=6.5, ncols=2 if axes is first else 1)
    return figure


def figure6a(study: Study) -> FigureData | None:
    """A panel for the total, the style and the feature loss: a curve for each method (and setting,
    if there are several), the mean over seeds with a band of one standard deviation."""
    several = len(study.drawn_settings) > 1
    panels = {
        title: [
            series
            for (norm, setting), cell in study.drawn.items()
            for series in over_epochs(
                [loss_curve(run, key) for run in cell.runs],
                lambda point: point.train,
                f"{study.label(norm)} {setting}" if several else study.label(norm),
                color=method_style(norm, study.drawn_methods)["color"],
            )
        ]
        for title, key in _LOSSES.items()
    }
    if not panels["total"]:
        return None
    return FigureData("iteration", "training loss", panels, lower_is_better=True)


def figure6b(study: Study) -> FigureData | None:
    """A curve per method, with a band of one standard deviation over seeds; a panel per setting."""
    settings = study.drawn_settings
    panels = {str(setting): _by_method(study, setting, training=False) for setting in settings}
    heading = score_heading(study.score)
    return FigureData(study.x_label, heading, panels) if any(panels.values()) else None


def figure8(study: Study) -> FigureData | None:
    """A panel for up to three settings at which BN or SN was calibrated during training: the score
    by moving average after every epoch, and by batch average after calibrated epochs."""

    def calibrated(setting: Setting) -> bool:
        curves = [curve for norm in ("bn", "sn") for curve in study.curves_of(norm, setting)]
        return any("batch_average" in epoch.validation for curve in curves for epoch in curve)

    def under(statistics: str) -> Callable[[Epoch], float | None]:
        return lambda epoch: epoch.validation.get(statistics)

    panels = {
        str(setting): [
            one
            for norm, (statistics, dashes) in product(("bn", "sn"), _AVERAGES.items())
            for one in over_epochs(
                study.curves_of(norm, setting),
                under(statistics),
                f"{method_label(norm)}, {statistics_label(statistics)}",
                color=METHOD_COLORS[norm],
                ls=dashes,
            )
        ]
        for setting in first_middle_last(list(filter(calibrated, study.drawn_settings)))
    }
    heading = f"validation {score_heading(study.score)}"
    return FigureData(study.x_label, heading, panels) if panels else None


def draw_side_by_side(data: FigureData) -> Figure:
    """Draw the panels side by side below one legend."""
    figure = new_figure(max(COLUMN, 2.35 * len(data.panels)), 2.6)
    panels = draw_curves(figure, data)
    legend_above(figure, *panels[0, 0].get_legend_handles_labels())
    return figure


def draw_losses(data: FigureData) -> Figure:
    """Draw the panels side by side, losses on logarithmic axes."""
    figure = draw_side_by_side(data)
    for axes in figure.axes:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    return figure


def weights(study: Study) -> FigureData | None:
    """Mean weight of each member of Omega over the layers of a stage, by epoch: a panel for each
    setting, kind (μ, σ) and stage; bands over seeds."""
    stages = {
        setting: [
            layer.stage
            for curve in study.curves_of("sn", setting)
            for epoch in curve
            for layer in epoch.weights
        ]
        for setting in study.drawn_settings
    }
    settings = first_middle_last([setting for setting, names in stages.items() if names])
    columns = list(dict.fromkeys(chain.from_iterable(stages[setting] for setting in settings)))

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
    return FigureData(study.x_label, "importance weight", panels) if panels else None


def draw_weights(data: FigureData) -> Figure:
    """Draw a row for each setting and kind, a column for each stage."""
    rows, stages = (
        list(dict.fromkeys(title.rsplit(", ", 1)[part] for title in data.panels)) for part in (0, 1)
    )
    figure = new_figure(PAGE, 1.1 * len(rows) + 0.7)
    panels = draw_curves(figure, data, len(rows), sharex="row", sharey=True)
    for axes, title in zip(panels.flat, [*stages, *[""] * len(data.panels)], strict=False):
        axes.set_title(title)
    for axes, row in zip(panels[:, 0], rows, strict=True):
        axes.set_ylabel(row)
    panels[0, 0].set_ylim(0, None)
    legend_above(figure, *panels[0, 0].get_legend_handles_labels())
    return figure
