"""Figs. 3, 4 and 1(c): the importance weights of every SN layer, and averaged over all layers or
those of a part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby, product
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sn_imagenet.reporting.cells import experiment, method_label
from sn_imagenet.reporting.curves import BOTH, KIND_SYMBOLS, mean_weight
from sn_imagenet.reporting.detection import TASK as DETECTION
from sn_imagenet.reporting.figures.means import SETTINGS
from sn_imagenet.reporting.figures.series import FigureData, Series, spread
from sn_imagenet.reporting.figures.style import COLORS, COLUMN, PAGE, legend_above, new_figure
from sn_imagenet.reporting.search import SEARCH
from sn_imagenet.reporting.study import Study
from sn_imagenet.reporting.stylization import STYLIZATION
from sn_imagenet.runs import LayerWeights, Run, Setting

# The parts of Fig. 1(c): the task of each, and how the stages of its layers begin.
PARTS = {
    "classification": ("", ""),
    "detection backbone": (DETECTION, "res"),
    "FPN": (DETECTION, "fpn"),
    "box head": (DETECTION, "box"),
    "mask head": (DETECTION, "mask"),
    "stylization": (STYLIZATION, ""),
    "LSTM of the search": (SEARCH, ""),
}


def figure3(seeds: Mapping[Setting, Sequence[Run]]) -> FigureData:
    """The weight of each member of Omega in every SN layer, mean over the seeds of a setting, which
    have the same layers: panels for μ and σ at each setting."""
    panels: dict[str, list[Series]] = {}
    for (setting, runs), (kind, symbol) in product(seeds.items(), KIND_SYMBOLS.items()):
        layers = runs[0].weights
        of_seeds = f", mean of {len(runs)} seeds" if len(runs) > 1 else ""
        panels[f"{setting}: {symbol}{of_seeds}"] = [
            Series(
                method_label(member),
                [layer.name for layer in layers],
                [
                    fmean(getattr(run.weights[i], kind).get(member, 0.0) for run in runs)
                    for i in range(len(layers))
                ],
                seeds=len(runs),
                style={"color": COLORS[member], "layers": layers},
            )
            for member in COLORS
            if any(member in getattr(layer, kind) for layer in layers)
        ]
    return FigureData("layer", "importance weight", panels)


def draw_figure3(data: FigureData) -> Figure:
    """Draw one row per setting; a bar per SN layer, stacked to 1.

    As in the paper, layers after 3x3 convolutions are shaded and outlined, layers in shortcuts
    have a ■, and layers after 1x1 convolutions are plain.
    """
    rows = len(data.panels) // 2
    figure = new_figure(PAGE, 1.25 * rows + 0.75)
    panels = figure.subplots(rows, 2, squeeze=False)
    for axes, (title, series) in zip(panels.flat, data.panels.items(), strict=True):
        _draw_stack(axes, series)
        axes.set_title(title, pad=7)
    drawn = {one.label: one for series in data.panels.values() for one in series}
    handles: list[Patch | Line2D] = [
        Patch(facecolor=color, label=method_label(member))
        for member, color in COLORS.items()
        if method_label(member) in drawn
    ]
    marks: dict[str, Patch | Line2D] = {
        "3x3": Patch(facecolor="0.45", edgecolor="black", label="after 3×3 conv (shaded)"),
        "1x1": Patch(facecolor="0.8", label="after 1×1 conv (flat)"),
        "shortcut": Line2D([], [], marker="s", ls="", color="black", ms=4, label="in a shortcut"),
        "7x7": Patch(facecolor="0.8", edgecolor="black", hatch="////", label="after 7×7 conv"),
    }
    convs = {layer.conv for one in drawn.values() for layer in one.style["layers"]}
    handles += [mark for conv, mark in marks.items() if conv in convs]
    legend_above(figure, handles, [str(handle.get_label()) for handle in handles])
    return figure


def _draw_stack(axes: Axes, series: Sequence[Series]) -> None:
    layers: Sequence[LayerWeights] = series[0].style["layers"]
    positions = range(len(layers))
    bottom = np.zeros(len(layers))
    for one in series:
        bars = axes.bar(positions, one.y, 0.84, bottom, color=one.style["color"], label=one.label)
        for bar, layer in zip(bars, layers, strict=True):
            if layer.conv == "3x3":
                shaded = [0.68 * part for part in to_rgb(one.style["color"])]
                bar.set(facecolor=shaded, edgecolor="black", lw=0.4)
            elif layer.conv == "7x7":
                bar.set(hatch="////", edgecolor="black", lw=0.4)
        bottom += one.y
    shortcuts = [i for i, layer in enumerate(layers) if layer.conv == "shortcut"]
    if shortcuts:  # constrained layout fails with an empty line
        axes.plot(shortcuts, [1.05] * len(shortcuts), "s", color="black", ms=2.2, clip_on=False)
    axes.set(xlim=(-0.7, len(layers) - 0.3), ylim=(0, 1.1), xticks=[], yticks=[0, 0.5, 1])
    axes.spines[["top", "right"]].set_visible(False)
    below: Any = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "top"}
    # A layer that follows no convolution has no stage, but a name.
    parts = [w.stage if w.stage or w.conv else w.name.rpartition(".")[2] for w in layers]
    for part, group in groupby(positions, key=parts.__getitem__):
        start, *_ = at = list(group)
        if start:
            axes.axvline(start - 0.5, color="black", lw=0.8, ls=(0, (4, 3)))
        axes.text(fmean(at), -0.06, part, fontsize=7.5, **below)


def figure4(
    seeds: Mapping[Any, Sequence[Run]], kinds: Mapping[str, str] = KIND_SYMBOLS
) -> FigureData:
    """The weight of each member of Omega by setting (or part), panels for μ and σ (or ``kinds``):
    the mean over layers of each seed, their mean and standard deviation. A member that is not in
    Omega (BN at (8,1)) has no bar."""
    panels: dict[str, list[Series]] = {symbol: [] for symbol in kinds.values()}
    for (kind, symbol), (member, color) in product(kinds.items(), COLORS.items()):
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


def figure1c(studies: Sequence[Study]) -> FigureData | None:
    """The weight of each member of Omega by task and part of SN's networks, for μ, σ and both; if
    all studies are of one task, in its parts alone. None without a finished run.

    As in the paper a part has one setting, here the one with the most samples per GPU among its
    runs. Their weights are averaged over layers and seeds, then over the networks, if there are
    several. Where runs of a network differ in more than the seed, those of the protocol that most
    of them have count. A part without a run has no bars."""
    parts: dict[str, list[Run]] = {}
    tasks = {study.task for study in studies}
    shown = [part for part in PARTS.items() if len(tasks) > 1 or part[1][0] in tasks]
    for part, (task, stage) in shown:
        networks = _networks([study for study in studies if study.task == task], stage)
        setting = max(networks, key=lambda s: (s.samples_per_gpu, s.gpus), default=None)
        seeds = networks[setting] if setting else []
        names = dict.fromkeys(", ".join(filter(None, (r.cell.data, r.cell.row))) for r, *_ in seeds)
        name = "\n".join((part, str(setting or "no run of SN"), *names))
        merged = [
            replace(runs[0], weights=tuple(layer for run in runs for layer in run.weights))
            for runs in seeds
        ]
        parts[name] = seeds[0] if len(seeds) == 1 else merged
    x = "mean over layers at the most samples per GPU; dots: networks, or the seeds of the only one"
    data = figure4(parts, {**KIND_SYMBOLS, BOTH: "μ and σ"})
    return replace(data, x=x) if any(parts.values()) else None


def _networks(studies: Sequence[Study], stage: str) -> dict[Setting, list[list[Run]]]:
    """The seeds of each network by setting: finished runs of SN, with the layers of a stage."""
    networks: dict[Setting, list[list[Run]]] = {}
    for study in studies:
        for setting in study.settings_of("sn"):
            protocols: dict[Any, list[Run]] = {}
            for run in study.cell("sn", setting).finished:
                if layers := tuple(w for w in run.weights if w.stage.startswith(stage)):
                    protocol = frozenset(experiment(run).items())
                    protocols.setdefault(protocol, []).append(replace(run, weights=layers))
            if protocols:
                networks.setdefault(setting, []).append(max(protocols.values(), key=len))
    return networks


def draw_figure4(data: FigureData) -> Figure:
    """Draw a group of bars per setting, each seed's mean as a dot and the standard deviation over
    seeds as a line."""
    settings = data.ticks
    count = max(map(len, data.panels.values()))
    width = 0.8 / count
    longest = max(len(line) for setting in settings for line in setting.split("\n"))
    wide = 1.0 + max(0.62, 0.065 * longest) * len(settings)
    figure = new_figure(max(COLUMN, wide), 1.8 * len(data.panels))
    panels = figure.subplots(len(data.panels), 1, sharex=True, sharey=True)
    for axes, (symbol, series) in zip(panels, data.panels.items(), strict=True):
        for i, one in enumerate(series):
            x = [settings.index(str(s)) + (i - (count - 1) / 2) * width for s in one.x]
            style = {"error_kw": {"lw": 0.8, "capsize": 0}, "label": one.label, **one.style}
            axes.bar(x, one.y, 0.92 * width, yerr=one.errors, **style)
            for at, values in zip(x, one.values, strict=True):
                dots = values if len(values) > 1 else ()
                axes.plot([at] * len(dots), dots, "o", ms=1.8, mfc="white", mec="black", mew=0.4)
        axes.set_ylabel(f"{data.y}, {symbol}")
    tops = [v for series in data.panels.values() for one in series for vs in one.values for v in vs]
    panels[0].set_ylim(0, 1.12 * max(tops))
    panels[-1].set_xticks(range(len(settings)), settings)
    panels[-1].set(xlim=(-0.6, len(settings) - 0.4), xlabel=data.x)
    legend_above(figure, *panels[0].get_legend_handles_labels())
    return figure
