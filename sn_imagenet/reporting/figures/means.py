"""Scores by setting: Fig. 1(b), and SN beside its rivals and what is published for ImageNet."""

from __future__ import annotations

import math

from matplotlib.artist import Artist
from matplotlib.figure import Figure

from sn_imagenet.reporting.cells import method_label, score_heading
from sn_imagenet.reporting.command import PAPER
from sn_imagenet.reporting.figures.series import FigureData, Series, draw_means, means_of
from sn_imagenet.reporting.figures.style import (
    COLUMN,
    METHOD_COLORS,
    PAGE,
    legend_above,
    light_grid,
    method_style,
    new_figure,
)
from sn_imagenet.reporting.paper import read_paper
from sn_imagenet.reporting.rivals import rivals_of
from sn_imagenet.reporting.study import Study

SETTINGS = "(GPUs, samples per GPU)"  # label of the x axis
GPUS = 8  # of the settings on the x axis of the rivals


def figure1(study: Study) -> FigureData | None:
    """Each method's mean by setting with its 95 % interval over seeds and the values of the seeds,
    and for classification the ideal BN: BN at the setting with the most samples per GPU that was
    run, (8,32) in the paper, as a line over all settings, if there are several."""
    methods = study.drawn_methods
    settings = [s for s in study.drawn_settings if any(study.cell(m, s).values for m in methods)]
    if not settings:
        return None
    series = []
    for method in methods:
        cells = {str(s): c for s in settings if (c := study.cell(method, s)).values}
        if cells:
            style = method_style(method, methods)
            series.append(means_of(study.label(method), cells, style))
    names = [str(s) for s in settings]
    of_bn = [s for s in settings if study.cell("bn", s).values]
    if of_bn and len(settings) > 1 and not study.task:
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
        draw_means(axes, one, x)
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
    axes.set(xlabel=data.x, ylabel=data.y)
    legend_above(figure, *axes.get_legend_handles_labels())
    return figure


def figure_rivals(study: Study) -> FigureData | None:
    """A line for each method over the samples per GPU of eight GPUs: means with 95 % intervals over
    seeds, and the published numbers of the same methods; None without a finished run."""
    paper = read_paper(PAPER)
    methods = ["bn", "gn", "sn", *rivals_of(study)]
    settings = sorted(s for s in study.settings if s.gpus == GPUS)
    ours: list[Series] = []
    published: list[Series] = []
    for method in methods:
        label, style = method_label(method), method_style(method, methods)
        cells = {s.samples_per_gpu: c for s in settings if (c := study.cell(method, s)).values}
        if cells:
            ours.append(means_of(label, cells, style))
        numbers = {s.samples_per_gpu: paper.top1(method, s) for s in settings}
        if found := {samples: value for samples, value in numbers.items() if value is not None}:
            published.append(Series(label, list(found), list(found.values()), style=style))
    if not ours:
        return None
    panels = {study.name: ours, f"published, {paper.label}": published}
    return FigureData("samples per GPU (8 GPUs)", score_heading(study.score), panels)


def draw_rivals(data: FigureData) -> Figure:
    """Draw both panels with a logarithmic x axis below one legend."""
    figure = new_figure(PAGE, 3.0)
    handles: dict[str, Artist] = {}
    for axes, (title, group) in zip(figure.subplots(1, 2), data.panels.items(), strict=True):
        light_grid(axes)
        for one in group:
            handles.setdefault(one.label, draw_means(axes, one, one.x))
        ticks = sorted({x for one in group for x in one.x})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, list(map(str, ticks)))
        axes.set(title=title, xlabel=data.x, ylabel=data.y)
    legend_above(figure, list(handles.values()), list(handles))
    return figure
