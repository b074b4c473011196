"""Figs. 3 and 4 of the paper: the importance weights of SN, from ``result.json`` alone."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sn_imagenet.errors import UserError
from sn_imagenet.reporting.cells import by_cell, method_label, summarise
from sn_imagenet.reporting.paper import in_paper_order
from sn_imagenet.runs import (
    FINISHED,
    LayerWeights,
    Run,
    Setting,
    find_runs,
    run_from_result,
    write_atomically,
)
from sn_imagenet.runs.files import OF_A_RUN

# "the green and red bars of Fig. 4" (Sec. 4.1) are BN and LN.
COLOURS = {"in": "#5b8fd6", "ln": "#d9534f", "bn": "#5cb85c", "gn": "#b07cc6"}
MEMBERS = tuple(COLOURS)
KINDS = (("mean", "μ"), ("variance", "σ"))
DPI = 200


@dataclass(frozen=True)
class SettingWeights:
    """The importance weights of one setting, averaged over ``seeds`` runs, in network order."""

    setting: Setting
    seeds: int
    layers: tuple[LayerWeights, ...]

    def mean_over_layers(self, kind: str) -> dict[str, float]:
        """Member of Omega to its weight averaged over all layers; ``kind``: mean, variance."""
        first = getattr(self.layers[0], kind)
        return {m: fmean(getattr(layer, kind)[m] for layer in self.layers) for m in first}


class Drawn(NamedTuple):
    """The files written, and one line for each thing that could not be drawn."""

    paths: list[Path]
    warnings: list[str]


def gather_weights(runs: Sequence[Run]) -> list[SettingWeights]:
    """The finished runs' importance weights by setting, mean over seeds, in the paper's order.

    Args:
        runs: of one data set, network and normaliser; those without weights are passed over.

    Raises:
        UserError: the seeds of a setting are not of one experiment, or differ in their layers.
    """
    drawable = [run for run in runs if run.state == FINISHED and run.weights]
    gathered = [_of_one_setting(seeds) for seeds in by_cell(drawable).values()]
    order = in_paper_order({weights.setting for weights in gathered})
    return sorted(gathered, key=lambda weights: order.index(weights.setting))


def _of_one_setting(seeds: Sequence[Run]) -> SettingWeights:
    cell = seeds[0].cell
    conflict = summarise(seeds).conflict
    shapes = {tuple((w.name, *sorted(w.mean)) for w in run.weights) for run in seeds}
    if not conflict and len(shapes) > 1:
        conflict = "their layers or members of Omega differ"
    if conflict:
        folders = ", ".join(str(run.path) for run in seeds)
        raise UserError(
            f"{cell.data}, {cell.model}, {method_label(cell.norm)} {cell.setting}: not drawn, the "
            f"runs are not seeds of one experiment: {conflict}: {folders}"
        )
    layers = tuple(_average(layer) for layer in zip(*(run.weights for run in seeds), strict=True))
    return SettingWeights(cell.setting, len(seeds), layers)


def _average(layer: Sequence[LayerWeights]) -> LayerWeights:
    mean = {m: fmean(w.mean[m] for w in layer) for m in layer[0].mean}
    variance = {m: fmean(w.variance[m] for w in layer) for m in layer[0].variance}
    return LayerWeights(layer[0].name, layer[0].stage, layer[0].place, mean, variance)


def draw_figure3(settings: Sequence[SettingWeights]) -> Figure:
    """Fig. 3: one row per setting, panels for μ and σ; a bar per SN layer, stacked to 1.

    As in the paper, layers after 3x3 convolutions are shaded and outlined, those in shortcuts
    carry a ■, those after 1x1 convolutions are flat.
    """
    height = 1.75 * len(settings) + 0.9
    figure = Figure(figsize=(15, height))
    panels = figure.subplots(len(settings), 2, squeeze=False)
    for row, weights in zip(panels, settings, strict=True):
        for axes, (kind, symbol) in zip(row, KINDS, strict=True):
            _stack(axes, weights.layers, kind)
            seeds = f", mean of {weights.seeds} seeds" if weights.seeds > 1 else ""
            axes.set_title(f"{weights.setting}: {symbol}{seeds}", fontsize=11, pad=8)
    members = [m for m in MEMBERS if any(m in w.layers[0].mean for w in settings)]
    handles: list[Patch | Line2D] = [
        Patch(facecolor=COLOURS[m], label=method_label(m)) for m in members
    ]
    handles.append(Patch(facecolor="0.45", edgecolor="black", label="after 3×3 conv (shaded)"))
    handles.append(Patch(facecolor="0.8", label="after 1×1 conv (flat)"))
    handles.append(Line2D([], [], marker="s", ls="", color="black", ms=5, label="in a shortcut"))
    if any(layer.place == "7x7" for layer in settings[0].layers):
        handles.append(
            Patch(facecolor="0.8", edgecolor="black", hatch="////", label="after 7×7 conv")
        )
    figure.legend(handles=handles, loc="upper center", ncols=len(handles), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.4 / height), h_pad=1.2, w_pad=1.5)
    return figure


def _stack(axes: Axes, layers: Sequence[LayerWeights], kind: str) -> None:
    positions = range(len(layers))
    bottom = [0.0] * len(layers)
    for member in MEMBERS:
        heights = [getattr(layer, kind).get(member, 0.0) for layer in layers]
        if not any(member in getattr(layer, kind) for layer in layers):
            continue
        bars = axes.bar(positions, heights, 0.84, bottom, color=COLOURS[member], label=member)
        _mark_places(bars, layers, COLOURS[member])
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    shortcuts = [i for i, layer in enumerate(layers) if layer.place == "shortcut"]
    axes.plot(shortcuts, [1.05] * len(shortcuts), "s", color="black", ms=3.5, clip_on=False)
    stages = [layer.stage for layer in layers]
    starts = [i for i in positions if i == 0 or stages[i] != stages[i - 1]]
    for start, end in zip(starts, [*starts[1:], len(layers)], strict=True):
        if start:
            axes.axvline(start - 0.5, color="black", lw=0.8, ls=(0, (4, 3)))
        axes.text(
            (start + end - 1) / 2,
            -0.06,
            stages[start],
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="top",
            fontsize=9,
        )
    axes.set(xlim=(-0.7, len(layers) - 0.3), ylim=(0, 1.1), xticks=[], yticks=[0, 0.5, 1])
    axes.spines[["top", "right"]].set_visible(False)


def _mark_places(bars: BarContainer, layers: Sequence[LayerWeights], colour: str) -> None:
    for bar, layer in zip(bars, layers, strict=True):
        if layer.place == "3x3":
            red, green, blue = to_rgb(colour)
            bar.set(facecolor=(0.68 * red, 0.68 * green, 0.68 * blue), edgecolor="black", lw=0.7)
        elif layer.place == "7x7":
            bar.set(hatch="////", edgecolor="black", lw=0.7)


def draw_figure4(settings: Sequence[SettingWeights]) -> Figure:
    """Fig. 4: the importance weights averaged over all layers; panels for μ and σ, a group of
    bars per setting. A member that a setting's SN lacks (BN at (8,1)) leaves its place empty.
    """
    members = [m for m in MEMBERS if any(m in w.layers[0].mean for w in settings)]
    width = 0.8 / len(members)
    figure = Figure(figsize=(max(4.5, 1.6 + 1.0 * len(settings)), 5.2))
    panels = figure.subplots(2, 1, sharex=True, sharey=True)
    for axes, (kind, symbol) in zip(panels, KINDS, strict=True):
        means = [weights.mean_over_layers(kind) for weights in settings]
        for i, member in enumerate(members):
            offset = (i - (len(members) - 1) / 2) * width
            places = [x for x, mean in enumerate(means) if member in mean]
            bars = axes.bar(
                [x + offset for x in places],
                [means[x][member] for x in places],
                0.92 * width,
                color=COLOURS[member],
                label=method_label(member),
            )
            axes.bar_label(bars, fmt="%.2f", fontsize=6.5, padding=1)
        axes.set_ylabel(f"importance weight, {symbol}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(0, 1.12 * max(value for w in settings for value in _heights(w)))
    labels = [str(weights.setting) for weights in settings]
    panels[1].set_xticks(range(len(settings)), labels)
    panels[1].set_xlim(-0.6, len(settings) - 0.4)
    panels[1].set_xlabel("(GPUs, samples per GPU)")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="upper center", ncols=len(members), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    return figure


def _heights(weights: SettingWeights) -> list[float]:
    return [value for kind, _ in KINDS for value in weights.mean_over_layers(kind).values()]


def figure3(runs: Sequence[Run], path_stem: Path) -> list[Path]:
    """Draw Fig. 3 from SN runs of one data set and network; writes ``<path_stem>.png`` (200 dpi)
    and ``.pdf``. Errors as :func:`gather_weights`."""
    return _save(draw_figure3(gather_weights(runs)), path_stem)


def figure4(runs: Sequence[Run], path_stem: Path) -> list[Path]:
    """Draw Fig. 4 from SN runs of one data set and network; writes ``<path_stem>.png`` (200 dpi)
    and ``.pdf``. Errors as :func:`gather_weights`."""
    return _save(draw_figure4(gather_weights(runs)), path_stem)


def plot_run(result: dict[str, Any], out_dir: Path) -> list[Path]:
    """Figs. 3 and 4 of one run: ``fig3.png``, ``fig3.pdf``, ``fig4.png``, ``fig4.pdf`` in
    ``out_dir``. Nothing is written for a run without importance weights.

    Args:
        result: contents of ``result.json``, version 1.

    Raises:
        UserError: the result is malformed, or a file cannot be written.
    """
    run = run_from_result(result, out_dir)
    if run.state != FINISHED or not run.weights:
        return []
    return figure3([run], out_dir / "fig3") + figure4([run], out_dir / "fig4")


def write_figures(runs_dir: Path, out: Path) -> Drawn:
    """Figs. 3 and 4 for every (data, model, norm) below ``runs_dir`` that has importance weights:
    ``fig3.png`` etc. where there is one, else ``fig3_<data>_<model>.png``, with ``_<norm>``
    appended for a switchable normaliser other than ``sn``.

    Raises:
        UserError: no runs at all, or a file that cannot be written.
    """
    runs, warnings = find_runs(runs_dir)
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        if run.state == FINISHED and run.weights:
            groups.setdefault((run.cell.data, run.cell.model, run.cell.norm), []).append(run)
    paths: list[Path] = []
    for (data, model, norm), group in sorted(groups.items()):
        name = "" if len(groups) == 1 else f"_{data}_{model}" + (f"_{norm}" * (norm != "sn"))
        name = re.sub(r"[^\w.-]", "-", name)
        sound: list[Run] = []
        for seeds in by_cell(group).values():
            try:
                _of_one_setting(seeds)
            except UserError as error:
                warnings.append(str(error))
            else:
                sound += seeds
        if not sound:
            continue
        settings = gather_weights(sound)
        paths += _save(draw_figure3(settings), out / f"fig3{name}", "--out")
        paths += _save(draw_figure4(settings), out / f"fig4{name}", "--out")
    for data, model in sorted(
        {(r.cell.data, r.cell.model) for r in runs} - {g[:2] for g in groups}
    ):
        warnings.append(f"{data}, {model}: no finished SN run with importance weights, no figures")
    return Drawn(paths, warnings)


def _save(figure: Figure, path_stem: Path, chosen_by: str = OF_A_RUN) -> list[Path]:
    png, pdf = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI)
    # Without a date, equal runs give equal files.
    figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    return [
        write_atomically(path_stem.with_name(path_stem.name + suffix), drawn.getvalue(), chosen_by)
        for suffix, drawn in ((".png", png), (".pdf", pdf))
    ]
