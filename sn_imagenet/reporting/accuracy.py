"""The grid of scores: methods by setting, intervals, the paper's numbers, differences."""

from __future__ import annotations

from collections.abc import Sequence

from sn_imagenet.reporting.cells import (
    MARKS,
    MISSING,
    Difference,
    Summary,
    interval_text,
    method_label,
    minus,
    score_heading,
    signed_text,
    statistics_label,
)
from sn_imagenet.reporting.departures import departure_notes
from sn_imagenet.reporting.render import FOOTNOTES, Grid, Row, round_half_up
from sn_imagenet.reporting.study import Study
from sn_imagenet.runs import Setting

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
        note = f"paper, {method_label(method)} at {setting}: {entry.note} ({entry.source})"
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
            rows.append(Row(paper_label, theirs, indent=True))
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
