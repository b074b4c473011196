"""Moving average and batch average of the statistics, by the samples that the latter took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sn_imagenet.reporting.cells import (
    MISSING,
    Summary,
    by_cell,
    method_label,
    statistics_label,
    summarise,
)
from sn_imagenet.reporting.render import Grid, Row
from sn_imagenet.reporting.task import Report, Task
from sn_imagenet.runs import FINISHED, NOT_EVALUATED, Cell, Run

STORED_STATISTICS = ("moving_average", "batch_average")


def averages_grid(task: Task, report: Report) -> Grid | None:
    """Methods that store statistics under each of them (claim 9 of the paper, and EvalNorm's remark
    that part of BN's loss at small batches is in the statistics); None without such a run. The
    batch average has a row for each number of samples that was asked for."""
    seeds = by_cell(task.runs)
    rows: list[Row] = []
    for method in task.methods:
        of_method = [
            run
            for run in task.runs
            if run.cell.norm == method and run.state in (FINISHED, NOT_EVALUATED)
        ]
        if not any(set(run.evaluations) & set(STORED_STATISTICS) for run in of_method):
            continue
        asked = sorted({_samples(run) for run in of_method} - {""}, key=_by_number)
        batch = [(f"batch average{_words(n, asked)}", "batch_average", n) for n in asked]
        for i, (words, name, samples) in enumerate(
            [(statistics_label("moving_average"), "moving_average", ""), *batch]
        ):
            row = [
                _summary(seeds.get(Cell(task.data, task.model, method, s), []), name, samples)
                for s in task.settings
            ]
            label = f"{method_label(method)}, {words}"
            cells = tuple(cell.text(digits=2) for cell in row)
            folders = tuple(tuple(report.folders(cell.runs)) for cell in row)
            rows.append(Row(label, cells, rule=bool(rows) and i == 0, runs=folders))
    if not rows:
        return None
    notes = [
        *_calibrations(task),
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


def _summary(runs: Sequence[Run], statistics: str, samples: str) -> Summary:
    """The seeds evaluated with so many samples; of the moving average, which knows of none, each
    seed once however often its calibration was repeated."""
    if samples:
        runs = [run for run in runs if _samples(run) in ("", samples)]
    else:
        first: dict[tuple[int, float | None], Run] = {}
        for run in runs:
            first.setdefault((run.seed, run.top1(statistics)), run)
        runs = list(first.values())
    return summarise(runs, statistics)


def _calibration(run: Run) -> dict[str, Any]:
    return run.evaluations.get("batch_average", {}).get("calibration") or {}


def _samples(run: Run) -> str:
    return str(_calibration(run).get("samples_requested") or "")


def _by_number(samples: str) -> tuple[bool, int, str]:
    return not samples.isdigit(), int(samples) if samples.isdigit() else 0, samples


def _words(samples: str, asked: Sequence[str]) -> str:
    if len(asked) == 1:
        return ""  # the note below the table says how many
    return f", {int(samples):,} samples" if samples.isdigit() else f", {samples} samples"


def _calibrations(task: Task) -> list[str]:
    used: dict[str, list[int]] = {}
    for run in task.runs:
        calibration = _calibration(run)
        if calibration:
            asked = f"{calibration.get('estimator')}, {calibration.get('samples_requested')}"
            used.setdefault(asked, []).append(calibration.get("samples_used", 0))
    return [
        f"Batch average: {asked} training samples requested, "
        f"{' to '.join(map(str, sorted({min(counts), max(counts)})))} used."
        for asked, counts in used.items()
    ]
