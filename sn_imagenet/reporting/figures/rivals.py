"""SN and its rivals: the score against samples per GPU, and what is published for ImageNet."""

from __future__ import annotations

from matplotlib.artist import Artist
from matplotlib.figure import Figure

from sn_imagenet.reporting.cells import Summary, method_label, score_heading
from sn_imagenet.reporting.command import PAPER
from sn_imagenet.reporting.figures.series import FigureData, Series
from sn_imagenet.reporting.figures.style import PAGE, light_grid, method_style, unstyled
from sn_imagenet.reporting.paper import read_paper
from sn_imagenet.reporting.rivals import rivals_of
from sn_imagenet.reporting.study import Study

GPUS = 8  # of the settings on the x axis


def figure_rivals(study: Study) -> FigureData | None:
    """A line for each method over the samples per GPU of eight GPUs: means with 95 % intervals over
    seeds, and the published numbers of the same methods; None without a finished run."""
    paper = read_paper(PAPER)
    methods = ["bn", "gn", "sn", *rivals_of(study)]
    settings = sorted(s for s in study.settings if s.gpus == GPUS)
    ours: list[Series] = []
    published: list[Series] = []
    for method in methods:
        style = method_style(method, unstyled(methods))
        cells = {s.samples_per_gpu: study.cell(method, s) for s in settings}
        if cells := {samples: cell for samples, cell in cells.items() if cell.values}:
            ours.append(_line(method, cells, style))
        numbers = {s.samples_per_gpu: paper.top1(method, s) for s in settings}
        if found := {samples: value for samples, value in numbers.items() if value is not None}:
            label = method_label(method)
            published.append(Series(label, list(found), list(found.values()), style=style))
    if not ours:
        return None
    panels = {study.name: ours, f"published, {paper.label}": published}
    return FigureData("samples per GPU (8 GPUs)", score_heading(study.score), panels)


def _line(method: str, cells: dict[int, Summary], style: dict[str, object]) -> Series:
    intervals = [cell.interval or (None, None) for cell in cells.values()]
    return Series(
        method_label(method),
        list(cells),
        [cell.mean or 0.0 for cell in cells.values()],
        [low for low, _ in intervals],
        [high for _, high in intervals],
        values=[cell.values for cell in cells.values()],
        style=style,
    )


def draw_rivals(data: FigureData) -> Figure:
    """Draw both panels with a logarithmic x axis; the legend is below."""
    figure = Figure(figsize=(PAGE, 3.2))
    handles: dict[str, Artist] = {}
    for axes, (title, group) in zip(figure.subplots(1, 2), data.panels.items(), strict=True):
        light_grid(axes)
        for one in group:
            ends = [
                [0.0 if end is None else abs(y - end) for y, end in zip(one.y, side, strict=True)]
                for side in (one.low, one.high)
                if side
            ]
            options = {"ms": 4, "elinewidth": 0.8, "capsize": 1.5, **one.style}
            bar = axes.errorbar(one.x, one.y, yerr=ends or None, label=one.label, **options)
            handles.setdefault(one.label, bar[0])
        ticks = sorted({x for one in group for x in one.x})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, list(map(str, ticks)))
        axes.set_title(title)
        axes.set_xlabel(data.x)
        axes.set_ylabel(data.y)
    figure.legend(handles.values(), list(handles), loc="lower center", ncols=5)
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    return figure
