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
from sn_imagenet.reporting.figures.cells import draw_cells
from sn_imagenet.reporting.figures.detection import found_objects, weights_by_part
from sn_imagenet.reporting.figures.figure1 import draw_figure1, figure1
from sn_imagenet.reporting.figures.figure6 import draw_figure6, figure6a, figure6b
from sn_imagenet.reporting.figures.figure9 import draw_figure9, figure9
from sn_imagenet.reporting.figures.learning import (
    draw_figure2,
    draw_figure8,
    draw_weights_over_training,
    figure2,
    figure8,
    weights_over_training,
)
from sn_imagenet.reporting.figures.rivals import draw_rivals, figure_rivals
from sn_imagenet.reporting.figures.series import FigureData
from sn_imagenet.reporting.figures.style import STYLE, save
from sn_imagenet.reporting.figures.weights import draw_figure3, draw_figure4, figure3, figure4
from sn_imagenet.reporting.rivals import rivals_of
from sn_imagenet.reporting.search import SEARCH
from sn_imagenet.reporting.study import RunCollection, Study, conflict_warnings, studies_of
from sn_imagenet.reporting.stylization import STYLIZATION
from sn_imagenet.runs import FINISHED, Run, Setting, write_text

# Drawn once per study: the functions that gather its data and draw it, and why there may be none.
Gather = Callable[[Study], FigureData | None]
Draw = Callable[[FigureData], Figure]
FIGURES: dict[str, tuple[Gather, Draw, str]] = {
    "fig1": (figure1, draw_figure1, "no finished run"),
    "fig2": (figure2, draw_figure2, "no run has finished an epoch"),
    "fig8": (figure8, draw_figure8, "no run was calibrated during training (calibration.every=)"),
    "weights": (
        weights_over_training,
        draw_weights_over_training,
        "no SN run has finished an epoch",
    ),
}
# Figures of one task, in addition.
TASK_FIGURES: dict[str, dict[str, tuple[Gather, Draw, str]]] = {
    SEARCH: {"fig6b": (figure6b, draw_figure6, "no run has finished an epoch")},
    STYLIZATION: {
        "fig6a": (figure6a, draw_figure6, "no run has recorded a loss"),
        "fig9": (figure9, draw_figure9, "no run has stylized images (scripts/stylize.py)"),
    },
    DETECTION: {
        "fig5": (figure6b, draw_figure6, "no run has been validated"),
        "parts": (weights_by_part, draw_figure4, "no finished SN run with importance weights"),
        "found": (found_objects, draw_figure9, "no run has found objects (scripts/detect.py)"),
    },
}
# In addition where rivals of SN were run.
RIVALS = {"rivals": (figure_rivals, draw_rivals, "no finished run")}
NO_WEIGHTS = "no finished SN run with importance weights"


class NamedFigure(NamedTuple):
    """A figure with its data, and the stem of its file name; ``why_not`` if there is none."""

    name: str
    drawn: tuple[Figure, FigureData] | None
    why_not: str = ""


def plot_run(run: Run) -> list[Path]:
    """Figs. 3 and 4 of one run: ``fig3.png``, ``fig3.pdf``, ``fig4.png``, ``fig4.pdf`` in its
    directory, if it has importance weights. If it found an architecture, ``architecture.json``
    for training it, and its picture ``cells.png`` and ``cells.pdf``.

    Raises:
        UserError: a file cannot be written.
    """
    if run.state != FINISHED:
        return []
    paths = []
    architecture = run.counted_evaluations[run.statistics].get("architecture")
    if architecture:
        content = json.dumps(architecture, indent=1) + "\n"
        paths.append(write_text(run.path / "architecture.json", content))
        with rc_context(STYLE):
            paths += save(draw_cells(architecture), run.path / "cells")
    if not run.weights:
        return paths
    with rc_context(STYLE):
        seeds = {run.cell.setting: [run]}
        paths += save(draw_figure3(figure3(seeds)), run.path / "fig3")
        return paths + save(draw_figure4(figure4(seeds)), run.path / "fig4")


def write_figures(runs_dir: Path, out: Path, **options: Any) -> Written:
    """Write all figures for each study below ``runs_dir``: ``fig1.png`` etc. for one study, else
    ``fig1_<data>_<model>.png``, with the row, task and score if any. Figs. 3 and 4 have ``_<norm>``
    appended for switchable methods other than ``sn``. A ``.json`` beside each figure has the
    numbers that it shows. ``options``: see :meth:`.RunCollection.read`.

    Raises:
        UserError: no runs that can be read, or a file cannot be written.
    """
    collection, warnings = RunCollection.read(runs_dir, **options)
    studies = studies_of(collection)
    paths: list[Path] = []
    for study in studies:
        suffix = "" if len(studies) == 1 else f"_{study.title.replace(', ', '_')}"
        suffix = re.sub(r"[^\w.-]", "-", suffix)
        with rc_context(STYLE):
            for name, drawn, why_not in draw_study(study, warnings):
                if drawn is None:
                    warnings.append(f"{study.title}: no {name}: {why_not}")
                    continue
                head, _, norm = name.partition("_")
                stem = out / f"{head}{suffix}{'_' * bool(norm)}{norm}"
                paths += save(drawn[0], stem, "--out")
                numbers = stem.with_name(f"{stem.name}.json")
                paths.append(write_text(numbers, drawn[1].to_json(), "--out"))
    return Written(paths, warnings)


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
            third, fourth = figure3(seeds), figure4(seeds)
            yield NamedFigure(f"fig3{end}", (draw_figure3(third), third))
            yield NamedFigure(f"fig4{end}", (draw_figure4(fourth), fourth))


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
