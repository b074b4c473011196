"""The grids of scores: methods by setting with intervals, the paper's numbers and differences; and
the moving and batch average of the statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sn_imagenet.reporting.cells import (
    MARKS,
    MISSING,
    Difference,
    Summary,
    by_cell,
    interval_text,
    method_label,
    minus,
    score_heading,
    signed_text,
    statistics_label,
    summarize,
)
from sn_imagenet.reporting.departures import departure_notes
from sn_imagenet.reporting.render import FOOTNOTES, Grid, Row, round_half_up
from sn_imagenet.reporting.study import Study
from sn_imagenet.runs import FINISHED, NOT_EVALUATED, Run, Setting
from sn_imagenet.runs.reading import mapping

STORED_STATISTICS = {"moving_average", "batch_average"}
EPOCHS = {
    "final": "the evaluation after the last epoch",
    "best": "the best epoch, chosen on the validation set itself, which favors it",
    "median5": "the median of the last five epochs",
}


def accuracy_grid(study: Study, methods: Sequence[str], pairs: Sequence[tuple[str, str]]) -> Grid:
    """A row per method above the paper's row, then a row per difference (first - second)."""
    paper, digits, settings = study.paper, study.digits, study.settings
    footnotes: dict[str, str] = {}

    def published(method: str, setting: Setting) -> str:
        entry = paper.cell(method, setting)
        if not entry:
            return ""
        number = MISSING if entry.top1 is None else str(round_half_up(entry.top1, 1))
        if not entry.note:
            return number
        source = "published" if entry in paper.elsewhere else "paper"
        note = f"{source}, {method_label(method)} at {setting}: {entry.note} ({entry.source})"
        return number + footnotes.setdefault(note, FOOTNOTES[len(footnotes)])

    def row_of_intervals(cells: Sequence[Summary | Difference]) -> list[Row]:
        texts = tuple(interval_text(cell.interval, digits) for cell in cells)
        return [Row("95 % interval", texts, indent=True)] if any(texts) else []

    paper_label = "paper" if study.matches_paper else f"paper ({paper.label})"
    best = best_methods(study, methods)
    rows: list[Row] = []
    for method in methods:
        ours = [study.cell(method, s) for s in settings]
        rows.append(
            Row(
                method_label(method),
                tuple(cell.text(digits) for cell in ours),
                rule=bool(rows),
                bold=frozenset(i for i, s in enumerate(settings) if method in best[s]),
                runs=tuple(tuple(study.collection.folders(cell.runs)) for cell in ours),
            )
        )
        rows += row_of_intervals(ours)
        if any(paper.cell(method, s) for s in settings):
            theirs = tuple(published(method, s) for s in settings)
            known = any(entry.method == method for entry in paper.cells)
            label = paper_label if known else paper_label.replace("paper", "published", 1)
            rows.append(Row(label, theirs, indent=True))
            if study.matches_paper:
                gaps = tuple(
                    signed_text(minus(cell.mean, paper.top1(method, s)), 1)
                    + "‡" * cell.omits_diverged
                    for cell, s in zip(ours, settings, strict=True)
                )
                rows.append(Row("ours − paper", gaps, indent=True))
    marked: dict[str, list[str]] = {}
    if any(cell.omits_diverged for cell in study.cells.values()):
        marked["‡"] = []
    for pair in pairs:
        name = "-".join(map(method_label, pair))
        differences = [study.difference(*pair, s) for s in settings]
        texts = tuple(signed_text(d.mean, digits) + "".join(d.marks) for d in differences)
        rows.append(Row(name, texts, rule=True))
        rows += row_of_intervals(differences)
        published_gaps = [paper.difference(*pair, s) for s in settings]
        if any(gap is not None for gap in published_gaps):
            texts = tuple(signed_text(gap, 1) for gap in published_gaps)
            rows.append(Row(paper_label, texts, indent=True))
        for difference, setting in zip(differences, settings, strict=True):
            for mark, detail in difference.marks.items():
                where = f"{name} {setting}" + (f" ({detail})" if detail else "")
                marked.setdefault(mark, []).append(where)
    heading = score_heading(study.score)
    where = "the validation set of " if study.is_classification else ""
    lower = "" if study.score.higher_is_better else "; lower is better"
    return Grid(
        caption=f"{heading[:1].upper()}{heading[1:]} on {where}{study.name}, by (GPUs, samples per "
        f"GPU){lower}.",
        columns=tuple(map(str, settings)),
        rows=tuple(rows),
        notes=(
            *(f"{mark} {note}." for note, mark in footnotes.items()),
            *(
                f"{mark} {text}{': ' * bool(marked[mark])}{', '.join(marked[mark])}."
                for mark, text in MARKS.items()
                if mark in marked
            ),
            *_reading_notes(study),
            *departure_notes(study.runs),
        ),
    )


def best_methods(study: Study, methods: Sequence[str]) -> dict[Setting, set[str]]:
    """Setting -> the methods with the best mean as printed; none where fewer than two methods
    have a mean. A mean that leaves out diverged seeds does not count."""
    best: dict[Setting, set[str]] = {}
    for setting in study.settings:
        means = {
            m: round_half_up(cell.mean, study.digits)
            for m in methods
            if (cell := study.cell(m, setting)).mean is not None and not cell.omits_diverged
        }
        choose = max if study.score.higher_is_better else min
        top = choose(means.values(), default=None)
        best[setting] = {m for m, mean in means.items() if mean == top and len(means) > 1}
    return best


def _reading_notes(study: Study) -> list[str]:
    """Notes that explain how to read the grid."""
    notes = [
        f"Mean ± sample standard deviation (number of seeds); no brackets: one seed. {MISSING}: no "
        "run. Bold: the best mean of a column. Intervals over seeds: Student's for a cell, Welch's "
        "for a difference. Rounded half up; differences are of the unrounded means.",
        f"{'Accuracy' if study.is_classification else 'Score'} of a run: "
        f"{EPOCHS[study.collection.epoch]}.",
    ]
    if study.is_classification and not study.matches_paper:
        notes.append(
            f"The paper's numbers are for {study.paper.label}. They are shown for orientation "
            "only; no difference from them is computed."
        )
    statistics: list[str] = []
    omegas: list[str] = []
    for method in study.methods:
        used: dict[str, list[Setting]] = {}
        chosen: dict[str, list[Setting]] = {}
        for setting in study.settings:
            runs = study.cell(method, setting).runs
            for name in {run.statistics for run in runs if run.statistics}:
                used.setdefault(statistics_label(name), []).append(setting)
            for omega in {tuple(run.norm_args.get("omega") or ()) for run in runs} - {()}:
                members = f"{{{', '.join(map(method_label, omega))}}}"
                chosen.setdefault(members, []).append(setting)
        if used:
            statistics.append(f"{method_label(method)} {_with_exceptions(used)}")
        if chosen:  # Omega may differ between settings
            omegas.append(f"{method_label(method)} chooses from {_with_exceptions(chosen)}.")
    if statistics:
        notes.append(f"Evaluation statistics: {'; '.join(statistics)}.")
    notes += omegas
    single = [
        run
        for setting in study.settings
        if setting.samples_per_gpu == 1
        for run in study.cell("sn", setting).runs
    ]
    if single and all("bn" not in (run.norm_args.get("omega") or ()) for run in single):
        notes.append("At one sample per GPU SN is {IN, LN}, as in the paper: BN would equal IN.")
    return notes


def _with_exceptions(choices: dict[str, list[Setting]]) -> str:
    """``batch average (at (8,1) per-sample statistics)``: the most common choice first."""
    first, *others = sorted(choices, key=lambda words: -len(choices[words]))
    if not others:
        return first
    exceptions = (f"at {', '.join(map(str, choices[words]))} {words}" for words in others)
    return f"{first} ({'; '.join(exceptions)})"


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
        if not any(set(run.counted_evaluations) & STORED_STATISTICS for run in of_method):
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
