"""The score under moving and batch average of the statistics, by samples of the batch average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sn_imagenet.reporting.cells import (
    MISSING,
    Summary,
    by_cell,
    method_label,
    score_heading,
    summarize,
)
from sn_imagenet.reporting.render import Grid, Row
from sn_imagenet.reporting.study import Study
from sn_imagenet.runs import FINISHED, NOT_EVALUATED, Run
from sn_imagenet.runs.reading import mapping

STORED_STATISTICS = ("moving_average", "batch_average")


def averages_grid(study: Study) -> Grid | None:
    """Methods that store statistics, under each average; None without such a run. The batch average
    has a row for each number of samples requested. See claim 9 of the paper, and EvalNorm's remark
    that the statistics cause a part of BN's loss at small batches."""
    rows: list[Row] = []
    for method in study.methods:
        of_method = [
            run
            for run in study.runs
            if run.cell.norm == method and run.state in (FINISHED, NOT_EVALUATED)
        ]
        if not any(set(run.counted_evaluations) & set(STORED_STATISTICS) for run in of_method):
            continue
        requested = {
            str(c["samples_requested"]): c for run in of_method for c in _calibrations(run)
        }
        averages: list[tuple[str, str, Any]] = [("moving average", "moving_average", None)]
        for text in sorted(requested, key=lambda n: (not n.isdigit(), len(n), n)):
            count = f"{int(text):,}" if text.isdigit() else text
            # With a single number of samples a note below the table gives it.
            label = f"batch average, {count} samples" if len(requested) > 1 else "batch average"
            averages.append((label, "batch_average", requested[text]["samples_requested"]))
        for i, (label, statistics, samples) in enumerate(averages):
            seeds = by_cell(calibrated_with(run, samples) for run in study.runs)
            at = {cell.setting: same for cell, same in seeds.items() if cell.norm == method}
            row = [_summarize(at.get(s, []), statistics) for s in study.settings]
            rows.append(
                Row(
                    f"{method_label(method)}, {label}",
                    tuple(cell.text(study.digits + 1) for cell in row),
                    rule=bool(rows) and i == 0,
                    runs=tuple(tuple(study.collection.folders(cell.runs)) for cell in row),
                )
            )
    if not rows:
        return None
    notes = [
        *_calibration_notes(study),
        f"{MISSING}: no run, or a run that stores no statistics (SN at one sample per GPU).",
    ]
    if study.matches_paper:
        notes += [
            f"Paper ({entry.source}), {method_label(entry.method)} at {entry.setting}, "
            f"{entry.note}: {entry.top1:.2f}."
            for entry in study.paper.statistics
            if entry.setting in study.settings
        ]
    return Grid(
        caption=f"Moving average and batch average: {score_heading(study.score)} on {study.name}.",
        columns=tuple(map(str, study.settings)),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def calibrated_with(run: Run, samples: Any) -> Run:
    """``run`` as if its config requested a batch average over ``samples``, so that the evaluations
    with that number of samples count."""
    if not run.config:
        return run
    calibration = {**mapping(run.config.get("calibration")), "samples": samples}
    return replace(run, config={**run.config, "calibration": calibration})


def _summarize(runs: Sequence[Run], statistics: str) -> Summary:
    """Each seed once, even if it was trained several times with different calibrations."""
    first: dict[tuple[int, str, float | None], Run] = {}
    for run in runs:
        if run.state != FINISHED or statistics in run.counted_evaluations:
            first.setdefault((run.seed, run.state, run.score_value(statistics)), run)
    return summarize(list(first.values()), statistics)


def _calibrations(run: Run) -> list[dict[str, Any]]:
    calibrations = [mapping(evaluation.get("calibration")) for evaluation in run.evaluations]
    return [calibration for calibration in calibrations if calibration.get("samples_requested")]


def _calibration_notes(study: Study) -> list[str]:
    used: dict[str, list[int]] = {}
    for calibration in (c for run in study.runs for c in _calibrations(run)):
        request = f"{calibration.get('estimator')}, {calibration['samples_requested']}"
        used.setdefault(request, []).append(calibration.get("samples_used") or 0)
    return [
        f"Batch average: {request} training samples requested, "
        f"{' to '.join(map(str, sorted({min(counts), max(counts)})))} used."
        for request, counts in used.items()
    ]
