"""Fig. 1(b): the score by setting."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from sn_imagenet.reporting.cells import score_heading
from sn_imagenet.reporting.figures.series import FigureData, Series
from sn_imagenet.reporting.figures.style import (
    COLUMN,
    METHOD_COLORS,
    legend_above,
    light_grid,
    method_style,
    new_figure,
    unstyled,
)
from sn_imagenet.reporting.study import Study

SETTINGS = "(GPUs, samples per GPU)"  # label of the x axis


def figure1(study: Study) -> FigureData | None:
    """Each method's mean by setting with its 95 % interval over seeds and the values of the seeds,
    and the ideal BN: BN at the setting with the most samples per GPU that was run, (8,32) in the
    paper, as a line over all settings. With a single setting there is no such line."""
    methods = study.drawn_methods
    settings = [s for s in study.drawn_settings if any(study.cell(m, s).values for m in methods)]
    if not settings:
        return None
    series = []
    for method in methods:
        cells = {str(s): c for s in settings if (c := study.cell(method, s)).values}
        if not cells:
            continue
        series.append(
            Series(
                study.label(method),
                list(cells),
                [cell.mean or 0.0 for cell in cells.values()],
                [cell.interval[0] if cell.interval else None for cell in cells.values()],
                [cell.interval[1] if cell.interval else None for cell in cells.values()],
                values=[cell.values for cell in cells.values()],
                style=method_style(method, unstyled(methods)),
            )
        )
    names = [str(s) for s in settings]
    of_bn = [s for s in settings if study.cell("bn", s).values]
    if of_bn and len(settings) > 1:
        ideal = max(of_bn, key=lambda s: (s.samples_per_gpu, s.gpus))
        mean = study.cell("bn", ideal).mean or 0.0
        series.append(Series(f"ideal BN: {ideal}", names, [mean] * len(names)))
    heading, lower = score_heading(study.score), not study.score.higher_is_better
    return FigureData(SETTINGS, heading, {"": series}, names, lower)


def draw_figure1(data: FigureData) -> Figure:
    """Draw means with intervals, each seed as a dot where a method has several, and the ideal."""
    figure = new_figure(max(COLUMN, 0.55 * len(data.ticks) + 1.0), 2.6)
    axes = figure.subplots()
    light_grid(axes)
    methods = [one for one in data.panels[""] if one.values]
    for i, one in enumerate(methods):
        offset = 0.09 * (i - (len(methods) - 1) / 2)
        x = [data.ticks.index(str(setting)) + offset for setting in one.x]
        dots = [(at, v) for at, vs in zip(x, one.values, strict=True) for v in vs if len(vs) > 1]
        if dots:
            color = one.style["color"]
            axes.plot(*zip(*dots, strict=True), ".", color=color, ms=3.5, alpha=0.6)
        ends = [
            [0.0 if end is None else abs(y - end) for y, end in zip(one.y, side, strict=True)]
            for side in (one.low, one.high)
        ]
        options = {"ms": 4, "elinewidth": 0.8, "capsize": 1.5, **one.style}
        axes.errorbar(x, one.y, yerr=ends, label=one.label, **options)
    for one in data.panels[""][len(methods) :]:
        color = METHOD_COLORS["bn"]
        axes.axhline(one.y[0], color=color, ls=(0, (4, 3)), lw=0.9, label=one.label)
    if len(data.ticks) == 1:
        axes.set_xlim(-0.6, 0.6)  # keeps the methods close together
    low, high = axes.get_ylim()
    values = [v for one in methods for vs in one.values for v in vs]
    least, limit = (1.0, 101.0) if data.y.endswith("(%)") else (0.05 * abs(values[0]), math.inf)
    # An interval of two seeds is many times wider than the data, so it may be cut off.
    space = max(least, 0.15 * (max(values) - min(values))) or 1.0
    axes.set_ylim(max(low, min(values) - 3 * space), min(high, max(values) + 3 * space, limit))
    axes.set_xticks(range(len(data.ticks)), data.ticks)
    axes.set_xlabel(data.x)
    axes.set_ylabel(data.y)
    legend_above(figure, *axes.get_legend_handles_labels())
    return figure
