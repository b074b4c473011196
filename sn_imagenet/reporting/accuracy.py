"""The grid of scores: methods by setting, intervals, the paper's numbers, differences."""

from __future__ import annotations

from collections.abc import Sequence

from sn_imagenet.reporting.cells import (
    MISSING,
    Summary,
    method_label,
    minus,
    run_differences,
    score_heading,
    statistics_label,
)
from sn_imagenet.reporting.departures import departure_notes
from sn_imagenet.reporting.render import FOOTNOTES, Grid, Row, round_half_up
from sn_imagenet.reporting.statistics import Interval, difference_interval
from sn_imagenet.reporting.study import Study
from sn_imagenet.runs import DIVERGED, Run, Setting

EPOCHS = {
    "final": "the evaluation after the last epoch",
    "best": "the best epoch, chosen on the validation set itself, which favors it",
    "median5": "the median of the last five epochs",
}
INTERVAL = "95 % interval"


def accuracy_grid(
    study: Study, methods: Sequence[str], differences: Sequence[tuple[str, str]]
) -> Grid:
    """A row per method above the paper's row, then a row per difference (first - second)."""
    paper, digits = study.paper, study.digits
    marks: dict[str, str] = {}

    def published(method: str, setting: Setting) -> str:
        entry = paper.cell(method, setting)
        if not entry:
            return ""
        number = MISSING if entry.top1 is None else str(round_half_up(entry.top1, 1))
        if not entry.note:
            return number
        note = f"paper, {method_label(method)} at {setting}: {entry.note} ({entry.source})"
        marks.setdefault(note, FOOTNOTES[len(marks)])
        return number + marks[note]

    paper_label = "paper" if study.matches_paper else f"paper ({paper.label})"
    best = best_methods(study, methods)
    rows: list[Row] = []
    for method in methods:
        ours = [study.cell(method, s) for s in study.settings]
        rows.append(
            Row(
                method_label(method),
                tuple(cell.text(digits) for cell in ours),
                rule=bool(rows),
                bold=frozenset(i for i, s in enumerate(study.settings) if method in best[s]),
                runs=tuple(tuple(study.collection.folders(cell.runs)) for cell in ours),
            )
        )
        rows += _interval_row([cell.interval for cell in ours], digits)
        if any(paper.cell(method, s) for s in study.settings):
            rows.append(
                Row(paper_label, tuple(published(method, s) for s in study.settings), indent=True)
            )
            if study.matches_paper:
                theirs = [paper.top1(method, s) for s in study.settings]
                cells = tuple(
                    signed_text(minus(cell.mean, top1), 1) + ("‡" if omits_diverged(cell) else "")
                    for cell, top1 in zip(ours, theirs, strict=True)
                )
                rows.append(Row("ours − paper", cells, indent=True))
    for first, second in differences:
        pairs = [(study.cell(first, s), study.cell(second, s)) for s in study.settings]
        theirs_gap = [minus(paper.top1(first, s), paper.top1(second, s)) for s in study.settings]
        gaps = tuple(
            signed_text(minus(a.mean, b.mean), digits) + difference_marks(a, b) for a, b in pairs
        )
        rows.append(Row(f"{method_label(first)}-{method_label(second)}", gaps, rule=True))
        rows += _interval_row([difference_interval(a.values, b.values) for a, b in pairs], digits)
        if any(gap is not None for gap in theirs_gap):
            theirs_text = tuple(signed_text(gap, 1) for gap in theirs_gap)
            rows.append(Row(paper_label, theirs_text, indent=True))
    heading = score_heading(study.score)
    where = "the validation set of " if study.is_classification else ""
    lower = "" if study.score.higher_is_better else "; lower is better"
    return Grid(
        caption=f"{heading[:1].upper()}{heading[1:]} on {where}{study.name}, by (GPUs, samples per "
        f"GPU){lower}.",
        columns=tuple(str(s) for s in study.settings),
        rows=tuple(rows),
        notes=(
            *(f"{mark} {note}." for note, mark in marks.items()),
            *_mark_notes(study, differences),
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
            if (cell := study.cell(m, setting)).mean is not None and not omits_diverged(cell)
        }
        choose = max if study.score.higher_is_better else min
        top = choose(means.values(), default=None)
        best[setting] = {m for m, mean in means.items() if mean == top and len(means) > 1}
    return best


def omits_diverged(cell: Summary) -> bool:
    """Whether the cell's mean leaves out seeds that diverged."""
    return bool(cell.values) and cell.states[DIVERGED] > 0


def difference_marks(first: Summary, second: Summary) -> str:
    """† different seeds, ‡ diverged seeds left out, § more than the method differs."""
    if first.mean is None or second.mean is None:
        return ""
    return (
        "†" * (set(first.seeds) != set(second.seeds))
        + "‡" * (omits_diverged(first) or omits_diverged(second))
        + "§" * bool(run_differences(first.runs, second.runs))
    )


def _mark_notes(study: Study, differences: Sequence[tuple[str, str]]) -> list[str]:
    named: dict[str, list[str]] = {}
    for first, second in differences:
        for setting in study.settings:
            a, b = study.cell(first, setting), study.cell(second, setting)
            name = f"{method_label(first)}-{method_label(second)} {setting}"
            marks = difference_marks(a, b)
            if "†" in marks:
                seeds = (" ".join(map(str, cell.seeds)) for cell in (a, b))
                named.setdefault("†", []).append(f"{name} (seeds {' against '.join(seeds)})")
            if "‡" in marks:
                named.setdefault("‡", []).append(name)
            if "§" in marks:
                named.setdefault("§", []).append(f"{name} ({run_differences(a.runs, b.runs)})")
    if any(omits_diverged(cell) for cell in study.cells.values()):
        named.setdefault("‡", [])
    words = {
        "†": "the two cells have different seeds",
        "‡": "seeds that diverged are left out of the mean",
        "§": "the two cells differ in more than the normalization method",
    }
    return [
        f"{mark} {words[mark]}{': ' if where else ''}{', '.join(where)}."
        for mark, where in sorted(named.items(), key=lambda item: "†‡§".index(item[0]))
    ]


def _interval_row(intervals: Sequence[Interval | None], digits: int) -> list[Row]:
    if not any(intervals):
        return []
    return [Row(INTERVAL, tuple(interval_text(i, digits) for i in intervals), indent=True)]


def interval_text(interval: Interval | None, digits: int) -> str:
    """``[76.2, 77.6]``; empty without an interval."""
    return "[{}, {}]".format(*(round_half_up(end, digits) for end in interval)) if interval else ""


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
    return notes + _statistics_used(study) + _omega_notes(study)


def _statistics_used(study: Study) -> list[str]:
    parts = []
    for method in study.methods:
        used: dict[str, list[Setting]] = {}
        for setting in study.settings:
            for name in {r.statistics for r in study.cells[method, setting].runs if r.statistics}:
                used.setdefault(statistics_label(name), []).append(setting)
        if used:
            parts.append(f"{method_label(method)} {_with_exceptions(used)}")
    return [f"Evaluation statistics: {'; '.join(parts)}."] if parts else []


def _omega_notes(study: Study) -> list[str]:
    """Omega of each switchable method, which may differ between settings."""
    notes = []
    for method in study.methods:
        sets: dict[str, list[Setting]] = {}
        for setting in study.settings:
            for omega in {
                tuple(r.norm_args.get("omega") or ()) for r in _runs(study, method, setting)
            }:
                if omega:
                    members = f"{{{', '.join(map(method_label, omega))}}}"
                    sets.setdefault(members, []).append(setting)
        if sets:
            notes.append(f"{method_label(method)} chooses from {_with_exceptions(sets)}.")
    single = [r for s in study.settings if s.samples_per_gpu == 1 for r in _runs(study, "sn", s)]
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


def _runs(study: Study, method: str, setting: Setting) -> Sequence[Run]:
    return study.cell(method, setting).runs


def signed_text(difference: float | None, digits: int) -> str:
    """``+0.4``; a dash without a difference."""
    return MISSING if difference is None else f"{round_half_up(difference, digits):+}"
