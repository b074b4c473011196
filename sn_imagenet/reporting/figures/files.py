"""All figures, from a folder of runs to PNG, PDF and numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

from sn_imagenet.reporting.cells import Summary, method_label
from sn_imagenet.reporting.command import Written
from sn_imagenet.reporting.detection import TASK as DETECTION
from sn_imagenet.reporting.figures import learning, means, pictures, weights
from sn_imagenet.reporting.figures.cells import draw_cells
from sn_imagenet.reporting.figures.series import FigureData
from sn_imagenet.reporting.figures.style import STYLE, save
from sn_imagenet.reporting.rivals import rivals_of
from sn_imagenet.reporting.search import SEARCH
from sn_imagenet.reporting.study import RunCollection, Study, conflict_warnings, studies_of
from sn_imagenet.reporting.stylization import STYLIZATION
from sn_imagenet.runs import FINISHED, Run, Setting, write_text

NO_EPOCH = "no run has finished an epoch"
NO_WEIGHTS = "no finished SN run with importance weights"
NOT_STYLIZED = "no run has stylized images (scripts/stylize.py)"
NOT_CALIBRATED = "no run was calibrated during training (calibration.every=)"
# Drawn once per study: the functions that gather its data and draw it, and why there may be none.
Plot = tuple[Callable[[Study], FigureData | None], Callable[[FigureData], Figure], str]
FIGURES: dict[str, Plot] = {
    "fig1": (means.figure1, means.draw_figure1, "no finished run"),
    "fig2": (learning.figure2, learning.draw_figure2, NO_EPOCH),
    "fig8": (learning.figure8, learning.draw_side_by_side, NOT_CALIBRATED),
    "weights": (learning.weights, learning.draw_weights, "no SN run has finished an epoch"),
}
# Figures of one task, in addition.
TASK_FIGURES: dict[str, dict[str, Plot]] = {
    SEARCH: {"fig6b": (learning.figure6b, learning.draw_side_by_side, NO_EPOCH)},
    STYLIZATION: {
        "fig6a": (learning.figure6a, learning.draw_losses, "no run has recorded a loss"),
        "fig9": (pictures.figure9, pictures.draw, NOT_STYLIZED),
    },
    DETECTION: {
        "fig5": (learning.figure6b, learning.draw_side_by_side, "no run has been validated"),
        "parts": (lambda study: weights.figure1c([study]), weights.draw_figure4, NO_WEIGHTS),
        "found": (pictures.found, pictures.draw, "no run has found objects (scripts/detect.py)"),
    },
}
# In addition where rivals of SN were run.
RIVALS = {"rivals": (means.figure_rivals, means.draw_rivals, "no finished run")}


class NamedFigure(NamedTuple):
    """A figure with its data, and the stem of its file name; ``why_not`` if there is none."""

    name: str
    drawn: tuple[Figure, FigureData] | None
    why_not: str = ""


@rc_context(STYLE)
def plot_run(run: Run) -> list[Path]:
    """Figs. 3 and 4 of one run: ``fig3.png``, ``fig3.pdf``, ``fig4.png``, ``fig4.pdf`` in its
    directory, if it has importance weights. If it found an architecture, ``architecture.json``
    for training it, and its picture ``cells.png`` and ``cells.pdf``.

    Raises:
        UserError: a file cannot be written.
    """
    paths: list[Path] = []
    if run.state != FINISHED:
        return paths
    if architecture := run.counted_evaluations[run.statistics].get("architecture"):
        content = json.dumps(architecture, indent=1) + "\n"
        paths.append(write_text(run.path / "architecture.json", content))
        paths += save(draw_cells(architecture), run.path / "cells")
    if run.weights:
        seeds = {run.cell.setting: [run]}
        paths += save(weights.draw_figure3(weights.figure3(seeds)), run.path / "fig3")
        paths += save(weights.draw_figure4(weights.figure4(seeds)), run.path / "fig4")
    return paths


@rc_context(STYLE)
def write_figures(runs_dir: Path, out: Path, **options: Any) -> Written:
    """Write all figures for each study below ``runs_dir``: ``fig1.png`` etc. for one study, else
    ``fig1_<data>_<model>.png``, with the row, task and score if any. Figs. 3 and 4 have ``_<norm>``
    appended for switchable methods other than ``sn``. ``fig1c`` is of all studies, if these are of
    several tasks. A ``.json`` beside each figure has the numbers that it shows. ``options``: see
    :meth:`.RunCollection.read`.

    Raises:
        UserError: no runs that can be read, or a file cannot be written.
    """
    collection, warnings = RunCollection.read(runs_dir, **options)
    studies = studies_of(collection)
    paths: list[Path] = []
    for study in studies:
        for name, drawn, why_not in draw_study(study, warnings):
            if drawn is None:
                warnings.append(f"{study.title}: no {name}: {why_not}")
                continue
            paths += _write(drawn, out / figure_stem(name, study, studies))
    tasks = {run.cell.task for run in collection.runs if run.state == FINISHED and run.weights}
    if len(tasks) > 1 and (data := weights.figure1c(studies)):
        missing = [part.split("\n")[0] for part in data.ticks if part.endswith("no run of SN")]
        warnings += [f"fig1c: no finished SN run for {', '.join(missing)}"] * bool(missing)
        paths += _write((weights.draw_figure4(data), data), out / "fig1c")
    return Written(paths, warnings)


def figure_stem(name: str, study: Study, studies: Sequence[Study]) -> str:
    """The name of a figure's files without suffix; with the study's title if there are several."""
    several = sum(not each.is_found for each in studies) > 1
    suffix = re.sub(r"[^\w.-]", "-", f"_{study.title.replace(', ', '_')}") if several else ""
    head, _, norm = name.partition("_")
    return f"{head}{suffix}{'_' * bool(norm)}{norm}"


def _write(drawn: tuple[Figure, FigureData], stem: Path) -> list[Path]:
    numbers = stem.with_name(f"{stem.name}.json")
    return [*save(drawn[0], stem, "--out"), write_text(numbers, drawn[1].to_json(), "--out")]


def draw_study(study: Study, warnings: list[str]) -> Iterator[NamedFigure]:
    """The figures of one study, none of networks that a search found. A line is added to
    ``warnings`` for each run or cell left out."""
    if study.is_found:
        return
    warnings += conflict_warnings(study, "drawn") + study.damaged
    figures = FIGURES | TASK_FIGURES.get(study.task, {})
    if study.is_classification and rivals_of(study):
        figures |= RIVALS
    for name, (gather, draw, why_not) in figures.items():
        data = gather(study)
        yield NamedFigure(name, (draw(data), data) if data else None, why_not)
    switchable = sorted({r.cell.norm for r in study.runs if r.state == FINISHED and r.weights})
    if not switchable:
        yield NamedFigure("fig3 and fig4", None, NO_WEIGHTS)
    for norm in switchable:
        seeds = seeds_with_weights(study, norm, warnings)
        if seeds:
            end = "" if norm == "sn" else "_" + re.sub(r"[^\w.-]", "-", norm)
            third, fourth = weights.figure3(seeds), weights.figure4(seeds)
            yield NamedFigure(f"fig3{end}", (weights.draw_figure3(third), third))
            yield NamedFigure(f"fig4{end}", (weights.draw_figure4(fourth), fourth))


def seeds_with_weights(
    study: Study, norm: str, warnings: list[str]
) -> dict[Setting, Sequence[Run]]:
    """Setting -> the finished runs of a switchable method. A line is added to ``warnings`` for each
    setting that is left out, because its seeds have other layers or members of Omega."""
    seeds: dict[Setting, Sequence[Run]] = {}
    for setting in study.drawn_settings:
        cell = study.drawn.get((norm, setting), Summary())
        runs = [run for run in cell.runs if run.state == FINISHED and run.weights]
        if len({tuple((w.name, *sorted(w.mean)) for w in run.weights) for run in runs}) > 1:
            warnings.append(
                f"{study.title}, {method_label(norm)} {setting}: importance weights not drawn, the "
                "layers or members of Omega differ between the seeds: "
                f"{', '.join(study.collection.folders(runs))}"
            )
        elif runs:
            seeds[setting] = runs
    return seeds
