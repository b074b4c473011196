"""Moving average and batch average of the statistics, by the samples that the latter took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sn_imagenet.reporting.cells import (
    MISSING,
    Summary,
    by_cell,
    method_label,
    statistics_label,
    summarize,
)
from sn_imagenet.reporting.render import Grid, Row
from sn_imagenet.reporting.task import Report, Task
from sn_imagenet.runs import FINISHED, NOT_EVALUATED, Cell, Run
from sn_imagenet.runs.reading import mapping

STORED_STATISTICS = ("moving_average", "batch_average")


def averages_grid(task: Task, report: Report) -> Grid | None:
    """Methods that store statistics under each of them (claim 9 of the paper, and EvalNorm's remark
    that part of BN's loss at small batches is in the statistics); None without such a run. The
    batch average has a row for each number of samples that was asked for."""
    rows: list[Row] = []
    for method in task.methods:
        of_method = [
            run
            for run in task.runs
            if run.cell.norm == method and run.state in (FINISHED, NOT_EVALUATED)
        ]
        if not any(set(run.counted) & set(STORED_STATISTICS) for run in of_method):
            continue
        asked = sorted(
            {c["samples_requested"] for run in of_method for c in _calibrations(run)},
            key=_by_number,
        )
        batch = [(f"batch average{_words(n, asked)}", "batch_average", n) for n in asked]
        for i, (words, name, samples) in enumerate(
            [(statistics_label("moving_average"), "moving_average", None), *batch]
        ):
            seeds = by_cell(calibrated_with(run, samples) for run in task.runs)
            row = [
                _summary(seeds.get(Cell(task.data, task.model, method, s), []), name)
                for s in task.settings
            ]
            label = f"{method_label(method)}, {words}"
            cells = tuple(cell.text(digits=2) for cell in row)
            folders = tuple(tuple(report.folders(cell.runs)) for cell in row)
            rows.append(Row(label, cells, rule=bool(rows) and i == 0, runs=folders))
    if not rows:
        return None
    notes = [
        *_notes(task),
        f"{MISSING}: no run, or one that stores no statistics (SN at one sample per GPU).",
    ]
    if task.comparable:
        notes += [
            f"Paper ({entry.source}), {method_label(entry.method)} at {entry.setting}, "
            f"{entry.note}: {entry.top1:.2f}."
            for entry in report.paper.statistics
            if entry.setting in task.settings
        ]
    return Grid(
        caption=f"Moving average and batch average: top-1 (%) on {task.title}.",
        columns=tuple(str(s) for s in task.settings),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def calibrated_with(run: Run, samples: Any) -> Run:
    """``run`` as if its config had asked for a batch average of so many ``samples``: of its
    evaluations those that were made so count."""
    if not run.config:
        return run
    asked = {**mapping(run.config.get("calibration")), "samples": samples}
    return replace(run, config={**run.config, "calibration": asked})


def _summary(runs: Sequence[Run], statistics: str) -> Summary:
    """The seeds, each once however often it was trained to calibrate it otherwise."""
    first: dict[tuple[int, str, float | None], Run] = {}
    for run in runs:
        if run.state != FINISHED or statistics in run.counted:
            first.setdefault((run.seed, run.state, run.top1(statistics)), run)
    return summarize(list(first.values()), statistics)


def _calibrations(run: Run) -> list[dict[str, Any]]:
    made = [mapping(evaluation.get("calibration")) for evaluation in run.evaluations]
    return [calibration for calibration in made if calibration.get("samples_requested")]


def _by_number(samples: int | str) -> tuple[bool, int, str]:
    text = str(samples)
    return not text.isdigit(), int(text) if text.isdigit() else 0, text


def _words(samples: int | str, asked: Sequence[int | str]) -> str:
    if len(asked) == 1:
        return ""  # the note below the table says how many
    text = str(samples)
    return f", {int(text):,} samples" if text.isdigit() else f", {text} samples"


def _notes(task: Task) -> list[str]:
    used: dict[str, list[int]] = {}
    for calibration in (c for run in task.runs for c in _calibrations(run)):
        asked = f"{calibration.get('estimator')}, {calibration['samples_requested']}"
        used.setdefault(asked, []).append(calibration.get("samples_used") or 0)
    return [
        f"Batch average: {asked} training samples requested, "
        f"{' to '.join(map(str, sorted({min(counts), max(counts)})))} used."
        for asked, counts in used.items()
    ]
