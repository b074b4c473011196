"""Fig. 4: the importance weights averaged over all layers, by setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean

from matplotlib.figure import Figure

from sn_imagenet.reporting.cells import method_label
from sn_imagenet.reporting.curves import KIND_SYMBOLS, mean_weight
from sn_imagenet.reporting.figures.figure1 import SETTINGS
from sn_imagenet.reporting.figures.series import FigureData, Series, spread
from sn_imagenet.reporting.figures.style import COLORS, COLUMN
from sn_imagenet.runs import Run, Setting


def figure4(seeds: Mapping[Setting, Sequence[Run]]) -> FigureData:
    """The weight of each member of Omega by setting, panels for μ and σ: the mean over layers of
    each seed, their mean and standard deviation. A member that is not in Omega (BN at (8,1)) has no
    bar."""
    panels: dict[str, list[Series]] = {symbol: [] for symbol in KIND_SYMBOLS.values()}
    for (kind, symbol), (member, color) in product(KIND_SYMBOLS.items(), COLORS.items()):
        names, values = [], []
        for setting, runs in seeds.items():
            means = [mean_weight(run.weights, kind, member) for run in runs]
            if of_seeds := [mean for mean in means if mean is not None]:
                names.append(str(setting))
                values.append(of_seeds)
        if values:
            y, style = list(map(fmean, values)), {"color": color}
            ends = spread(y, values)
            series = Series(method_label(member), names, y, *ends, values=values, style=style)
            panels[symbol].append(series)
    return FigureData(SETTINGS, "importance weight", panels, list(map(str, seeds)))


def draw_figure4(data: FigureData) -> Figure:
    """Draw a group of bars per setting, each seed's mean as a dot and the standard deviation over
    seeds as a line."""
    settings = data.ticks
    count = max(map(len, data.panels.values()))
    width = 0.8 / count
    figure = Figure(figsize=(max(COLUMN, 1.0 + 0.62 * len(settings)), 3.6))
    panels = figure.subplots(2, 1, sharex=True, sharey=True)
    for axes, (symbol, series) in zip(panels, data.panels.items(), strict=True):
        for i, one in enumerate(series):
            x = [settings.index(str(s)) + (i - (count - 1) / 2) * width for s in one.x]
            highs = one.high or [None] * len(x)
            half = [0.0 if h is None else h - y for y, h in zip(one.y, highs, strict=True)]
            axes.bar(
                x,
                one.y,
                0.92 * width,
                yerr=half,
                error_kw={"lw": 0.8, "capsize": 0},
                label=one.label,
                **one.style,
            )
            dots = [(at, v) for at, vs in zip(x, one.values, strict=True) for v in vs]
            if one.high:
                axes.plot(*zip(*dots, strict=True), "o", ms=1.8, mfc="white", mec="black", mew=0.4)
        axes.set_ylabel(f"{data.y}, {symbol}")
    tops = [v for series in data.panels.values() for one in series for vs in one.values for v in vs]
    panels[0].set_ylim(0, 1.12 * max(tops))
    panels[1].set_xticks(range(len(settings)), settings)
    panels[1].set_xlim(-0.6, len(settings) - 0.4)
    panels[1].set_xlabel(data.x)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="upper center", ncols=count)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    return figure
