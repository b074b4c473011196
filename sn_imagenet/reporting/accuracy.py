"""The grid of accuracies: methods by setting with intervals, the paper's numbers, differences."""

from __future__ import annotations

from collections.abc import Sequence

from sn_imagenet.reporting.cells import (
    MISSING,
    Summary,
    method_label,
    statistics_label,
    unlike,
)
from sn_imagenet.reporting.departures import departure_notes
from sn_imagenet.reporting.render import FOOTNOTES, Grid, Row, half_up
from sn_imagenet.reporting.statistics import Interval, difference_interval
from sn_imagenet.reporting.task import Report, Task
from sn_imagenet.runs import DIVERGED, Run, Setting

EPOCHS = {
    "final": "the evaluation after the last epoch",
    "best": "the best epoch, chosen on the validation set itself: too high",
    "median5": "the median of the last five epochs",
}
INTERVAL = "95 % interval"


def accuracy_grid(
    task: Task, report: Report, methods: Sequence[str], differences: Sequence[tuple[str, str]]
) -> Grid:
    """A row per method with the paper's below it, then a row per difference (first - second)."""
    paper = report.paper
    marks: dict[str, str] = {}

    def published(method: str, setting: Setting) -> str:
        entry = paper.cell(method, setting)
        if not entry:
            return ""
        number = MISSING if entry.top1 is None else str(half_up(entry.top1, 1))
        if not entry.note:
            return number
        note = f"paper, {method_label(method)} at {setting}: {entry.note} ({entry.source})"
        marks.setdefault(note, FOOTNOTES[len(marks)])
        return number + marks[note]

    paper_label = "paper" if task.comparable else f"paper ({paper.label})"
    best = best_of(task, methods)
    rows: list[Row] = []
    for method in methods:
        ours = [cell_of(task, method, s) for s in task.settings]
        rows.append(
            Row(
                method_label(method),
                tuple(cell.text() for cell in ours),
                rule=bool(rows),
                bold=frozenset(i for i, s in enumerate(task.settings) if method in best[s]),
                runs=tuple(tuple(report.folders(cell.runs)) for cell in ours),
            )
        )
        rows += _interval_row([cell.interval for cell in ours])
        if any(paper.cell(method, s) for s in task.settings):
            rows.append(
                Row(paper_label, tuple(published(method, s) for s in task.settings), indent=True)
            )
            if task.comparable:
                theirs = [paper.top1(method, s) for s in task.settings]
                cells = tuple(
                    signed(minus(cell.mean, top1)) + ("‡" if survivors(cell) else "")
                    for cell, top1 in zip(ours, theirs, strict=True)
                )
                rows.append(Row("ours − paper", cells, indent=True))
    for first, second in differences:
        pairs = [(cell_of(task, first, s), cell_of(task, second, s)) for s in task.settings]
        theirs_gap = [minus(paper.top1(first, s), paper.top1(second, s)) for s in task.settings]
        gaps = tuple(signed(minus(a.mean, b.mean)) + difference_marks(a, b) for a, b in pairs)
        rows.append(Row(f"{method_label(first)}-{method_label(second)}", gaps, rule=True))
        rows += _interval_row([difference_interval(a.values, b.values) for a, b in pairs])
        if any(gap is not None for gap in theirs_gap):
            rows.append(Row(paper_label, tuple(map(signed, theirs_gap)), indent=True))
    return Grid(
        caption=f"Top-1 (%) on the validation set of {task.title}, by (GPUs, samples per GPU).",
        columns=tuple(str(s) for s in task.settings),
        rows=tuple(rows),
        notes=(
            *(f"{mark} {note}." for note, mark in marks.items()),
            *_mark_notes(task, differences),
            *_reading(task, report),
            *departure_notes(task.runs),
        ),
    )


def cell_of(task: Task, method: str, setting: Setting) -> Summary:
    """The cell, empty for a method that was not run."""
    return task.cells.get((method, setting), Summary((), ()))


def best_of(task: Task, methods: Sequence[str]) -> dict[Setting, set[str]]:
    """The methods with the highest mean as it is printed, by setting; none where fewer than two
    have one, and never a mean over survivors."""
    best: dict[Setting, set[str]] = {}
    for setting in task.settings:
        means = {
            m: half_up(cell.mean, 1)
            for m in methods
            if (cell := cell_of(task, m, setting)).mean is not None and not survivors(cell)
        }
        top = max(means.values(), default=None)
        best[setting] = {m for m, mean in means.items() if mean == top and len(means) > 1}
    return best


def survivors(cell: Summary) -> bool:
    """Whether the mean leaves out seeds that diverged."""
    return bool(cell.values) and cell.states[DIVERGED] > 0


def difference_marks(first: Summary, second: Summary) -> str:
    """† over different seeds, ‡ over survivors, § of runs that differ in more than normalizer."""
    if first.mean is None or second.mean is None:
        return ""
    return (
        "†" * (set(first.seeds) != set(second.seeds))
        + "‡" * (survivors(first) or survivors(second))
        + "§" * bool(unlike(first.runs, second.runs))
    )


def _mark_notes(task: Task, differences: Sequence[tuple[str, str]]) -> list[str]:
    named: dict[str, list[str]] = {}
    for first, second in differences:
        for setting in task.settings:
            a, b = cell_of(task, first, setting), cell_of(task, second, setting)
            name = f"{method_label(first)}-{method_label(second)} {setting}"
            marks = difference_marks(a, b)
            if "†" in marks:
                seeds = (" ".join(map(str, cell.seeds)) for cell in (a, b))
                named.setdefault("†", []).append(f"{name} (seeds {' against '.join(seeds)})")
            if "‡" in marks:
                named.setdefault("‡", []).append(name)
            if "§" in marks:
                named.setdefault("§", []).append(f"{name} ({unlike(a.runs, b.runs)})")
    if any(survivors(cell) for cell in task.cells.values()):
        named.setdefault("‡", [])
    words = {
        "†": "the two sides have different seeds",
        "‡": "a mean over survivors: seeds that diverged are left out of it",
        "§": "the two sides differ in more than the normalizer",
    }
    return [
        f"{mark} {words[mark]}{': ' if where else ''}{', '.join(where)}."
        for mark, where in sorted(named.items(), key=lambda item: "†‡§".index(item[0]))
    ]


def _interval_row(intervals: Sequence[Interval | None]) -> list[Row]:
    if not any(intervals):
        return []
    return [Row(INTERVAL, tuple(map(interval_text, intervals)), indent=True)]


def interval_text(interval: Interval | None, digits: int = 1) -> str:
    """``[76.2, 77.6]``; empty without one."""
    return "[{}, {}]".format(*(half_up(end, digits) for end in interval)) if interval else ""


def _reading(task: Task, report: Report) -> list[str]:
    """What a reader must know to read the grid."""
    notes = [
        f"Mean ± sample standard deviation (number of seeds); no brackets: one seed. {MISSING}: no "
        "run. Bold: the best mean of a column. Intervals: Student's over the seeds of a cell, "
        "Welch's over those of a difference. Rounded half up; differences are of the unrounded "
        "means.",
        f"Number of a run: {EPOCHS[report.epoch]}.",
    ]
    if not task.comparable:
        notes.append(
            f"The paper's numbers are of {report.paper.label}: another task, shown for "
            "orientation, so no difference from them is computed."
        )
    return notes + _statistics_used(task) + _omegas(task)


def _statistics_used(task: Task) -> list[str]:
    parts = []
    for method in task.methods:
        used: dict[str, list[Setting]] = {}
        for setting in task.settings:
            for name in {r.statistics for r in task.cells[method, setting].runs if r.statistics}:
                used.setdefault(statistics_label(name), []).append(setting)
        if used:
            parts.append(f"{method_label(method)} {_with_exceptions(used)}")
    return [f"Evaluation statistics: {'; '.join(parts)}."] if parts else []


def _omegas(task: Task) -> list[str]:
    """Which normalizers each switchable one chose from; not the same at one sample per GPU."""
    notes = []
    for method in task.methods:
        sets: dict[str, list[Setting]] = {}
        for setting in task.settings:
            for omega in {
                tuple(r.norm_args.get("omega") or ()) for r in _runs(task, method, setting)
            }:
                if omega:
                    members = f"{{{', '.join(map(method_label, omega))}}}"
                    sets.setdefault(members, []).append(setting)
        if sets:
            notes.append(f"{method_label(method)} chooses from {_with_exceptions(sets)}.")
    single = [r for s in task.settings if s.samples_per_gpu == 1 for r in _runs(task, "sn", s)]
    if single and all("bn" not in (run.norm_args.get("omega") or ()) for run in single):
        notes.append("At one sample per GPU SN is {IN, LN}, as in the paper: BN would equal IN.")
    return notes


def _with_exceptions(choices: dict[str, list[Setting]]) -> str:
    """``batch average (at (8,1) each sample's own)``: the most common first."""
    first, *others = sorted(choices, key=lambda words: -len(choices[words]))
    if not others:
        return first
    exceptions = (f"at {', '.join(map(str, choices[words]))} {words}" for words in others)
    return f"{first} ({'; '.join(exceptions)})"


def _runs(task: Task, method: str, setting: Setting) -> Sequence[Run]:
    return task.cells[method, setting].runs


def minus(first: float | None, second: float | None) -> float | None:
    """The difference where both are there."""
    return None if first is None or second is None else first - second


def signed(difference: float | None) -> str:
    """``+0.4``; a dash without one."""
    return MISSING if difference is None else f"{half_up(difference, 1):+}"
