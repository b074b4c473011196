"""The accuracy tables: Table 2, other methods (Sec. 4.1), and the moving and batch average of the
statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
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
from sn_imagenet.reporting.curves import EPOCH_CHOICES
from sn_imagenet.reporting.departures import departure_notes, gather_departures
from sn_imagenet.reporting.paper import NO_PAPER
from sn_imagenet.reporting.render import (
    FOOTNOTES,
    Document,
    Grid,
    Row,
    code_span,
    grid_markdown,
    interval_columns,
    markdown_escape,
    markdown_table,
    round_half_up,
    rounded,
)
from sn_imagenet.reporting.rivals import rivals_of
from sn_imagenet.reporting.study import RunCollection, Study, studies_of, study_warnings
from sn_imagenet.runs import FINISHED, NOT_EVALUATED, Run, Setting
from sn_imagenet.runs.reading import mapping

OTHER_METHODS = ("in", "ln", "brn", "bkn", "bn", "sn")
OTHER_DIFFERENCES = (("in", "sn"), ("ln", "sn"), ("brn", "bn"), ("brn", "sn"))
OTHER_SETTINGS = (Setting(8, 32), Setting(8, 4))
STORED_STATISTICS = {"moving_average", "batch_average"}

GridOf = Callable[[Study], Grid | None]
Columns = dict[str, object]  # of a row of the CSV


def table2_grid(study: Study) -> Grid:
    """BN, GN, SN and every other method that was run."""
    return accuracy_grid(study, study.methods, study.compared_methods)


def methods_grid(study: Study) -> Grid | None:
    """IN, LN, BRN and BKN beside BN and SN (Sec. 4.1), at the paper's two settings and wherever one
    of the four was run; or, if rivals of SN were run, these beside BN, GN and SN at the settings of
    all runs. None if no such setting is shown, and for other tasks."""
    tried = {run.cell.setting for run in study.runs if run.cell.norm in OTHER_METHODS[:4]}
    shown = {*tried, *OTHER_SETTINGS}
    if rivals_of(study):
        shown = {run.cell.setting for run in study.runs}
    settings = [s for s in study.settings if s in shown]
    if not settings or not study.is_classification:
        return None
    return accuracy_grid(replace(study, settings=settings), *_other_methods(study))


def _other_methods(study: Study) -> tuple[Sequence[str], Sequence[tuple[str, str]]]:
    """The rows of :func:`methods_grid` and its differences."""
    if not (rivals := rivals_of(study)):
        return OTHER_METHODS, OTHER_DIFFERENCES
    others = [m for m in study.methods if m in OTHER_METHODS[:4]]
    pairs = [("sn", "bn"), *((m, "sn") for m in rivals), *((m, "bn") for m in rivals)]
    return ["bn", "gn", "sn", *others, *rivals], pairs


def table2(collection: RunCollection) -> Document:
    """Table 2 of the paper, once for each (data, model) among the runs.

    Markdown has, beneath each table, the statistics used, BN and SN under both moving and batch
    average, departures from the protocol and git revisions. CSV is tidy: one row per method or
    difference and setting, accuracies in percent.
    """
    studies = studies_of(collection)
    title = "Table 2" if any(study.is_classification for study in studies) else "Scores"
    rows = [_rows(study, study.methods, study.compared_methods) for study in studies]
    return accuracy_document(title, studies, [table2_grid, averages_grid], rows)


def averages(collection: RunCollection) -> Document:
    """The moving and the batch average of the methods that store statistics."""
    studies = studies_of(collection)
    return accuracy_document(
        "Moving and batch average", studies, [averages_grid], [[] for _ in studies]
    )


def methods(collection: RunCollection) -> Document:
    """The other methods of Sec. 4.1, in the formats of :func:`table2`."""
    studies = [study for study in studies_of(collection) if study.is_classification]
    rows = [_rows(study, *_other_methods(study)) for study in studies]
    return accuracy_document("Other methods (Sec. 4.1)", studies, [methods_grid], rows)


def accuracy_document(
    title: str,
    studies: Sequence[Study],
    grids: Sequence[GridOf],
    rows: Sequence[list[Columns]],
    warnings: Sequence[str] | None = None,
) -> Document:
    if warnings is None:
        warnings = [line for study in studies for line in study_warnings(study)]
    grids_of = [[g for grid in grids if (g := grid(study))] for study in studies]
    sections = [_section(*pair) for pair in zip(studies, grids_of, strict=True)]
    several = any(study.row or not study.is_classification for study in studies)
    for study, of_study in zip(studies, rows, strict=True):
        for row in of_study if several else ():  # tells rows and tasks apart
            row |= {"task_row": study.row, "task": study.task, "score": study.score.key}
    return Document(title, sections, grids_of, [row for group in rows for row in group], warnings)


def _section(study: Study, grids: Sequence[Grid]) -> str:
    """The Markdown of a study: its tables, and what belongs to them."""
    folders, runs = study.collection.folders, study.runs
    parts = [f"## {markdown_escape(study.title)}"]
    for i, grid in enumerate(grids):
        heading = "### Moving average and batch average" if i else markdown_escape(grid.caption)
        parts += [heading, grid_markdown(grid)]

    def add_list(heading: str, items: Iterable[str]) -> None:
        if lines := [f"- {item}" for item in items]:
            parts.extend([heading, "\n".join(lines)])

    if study.matches_paper:
        add_list("Other published numbers:", _published_elsewhere(study))
    add_list(
        "### Cells whose runs are not seeds of one experiment",
        (
            f"{markdown_escape(f'{study.cell_name(method, setting)}: {cell.conflict}')} "
            f"({', '.join(map(code_span, folders(cell.runs)))})"
            for (method, setting), cell in study.cells.items()
            if cell.conflict
        ),
    )
    add_list(
        "### Runs without a number",
        (
            f"{code_span(folders([run])[0])}: {run.state}"
            + (f", {markdown_escape(run.detail)}" if run.detail else "")
            for run in runs
            if run.state != FINISHED
        ),
    )
    published = study.collection.paper is not NO_PAPER
    if published and any(run.evaluations or run.departures for run in runs):
        rows = [[d.item, d.paper, d.ours, d.which] for d in gather_departures(runs)]
        parts.append("### Departures from the paper's protocol, as recorded by the runs")
        header = ["item", "paper", "ours", "runs"]
        parts.append(markdown_table(header, rows) if rows else "None.")
    revisions = Counter((r.git_revision, r.git_dirty) for r in runs if r.git_revision)
    add_list(
        "### Git revisions",
        (
            f"{code_span(revision[:12])}{', with uncommitted changes' if dirty else ''}: {count} "
            f"run{'s' if count > 1 else ''}"
            for (revision, dirty), count in sorted(revisions.items())
        ),
    )
    return "\n\n".join(parts)


def _published_elsewhere(study: Study) -> list[str]:
    paper = study.paper
    return [
        f"{method_label(entry.method)} {entry.setting}: {entry.top1}, {entry.source}"
        + (f" ({entry.note})" if entry.note else "")
        for entry in (*paper.elsewhere, *paper.cells)
        if entry.setting in study.settings
        and (entry in paper.elsewhere or entry.method not in study.methods)
    ]


def _rows(study: Study, methods: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[Columns]:
    """The rows of the CSV: a method, or a difference such as ``sn-bn``, at one setting."""
    gathered, matches = gather_departures(study.runs), study.matches_paper

    def columns(label: str, setting: Setting, own: Columns) -> Columns:
        return {
            "data": study.data,
            "model": study.model,
            "method": label,
            "setting": setting.name,
            "gpus": setting.gpus,
            "samples_per_gpu": setting.samples_per_gpu,
            **own,
            "paper_is_same_task": "yes" if matches else "no",
            "epoch": study.collection.epoch,
        }

    rows: list[Columns] = []
    for method, setting in product(methods, study.settings):
        cell, paper = study.cell(method, setting), study.paper.top1(method, setting)
        states = {"mixed configs": len(cell.runs)} if cell.conflict else dict(cell.states)
        departures = [d for d in gathered if set(d.runs) & set(cell.runs)]
        own = {
            "n_seeds": len(cell.values),
            "mean": rounded(cell.mean),
            "std": rounded(cell.std),
            **interval_columns(cell.interval),
            "paper": paper,
            "paper_is_same_task": None,
            "difference": rounded(minus(cell.mean, paper)) if matches else None,
            "epoch": None,
            "states": ";".join(f"{s}:{n}" for s, n in states.items()) or "missing",
            "statistics": ";".join(sorted({r.statistics for r in cell.runs} - {""})),
            "marks": "",
            "departures": "; ".join(f"{d.item}: {d.paper} -> {d.ours}" for d in departures),
            "run_dirs": ";".join(study.collection.folders(cell.runs)),
        }
        rows.append(columns(method, setting, own))
    for pair, setting in product(pairs, study.settings):
        difference = study.difference(*pair, setting)
        own = {
            "n_seeds": min(len(difference.first.values), len(difference.second.values)),
            "mean": rounded(difference.mean),
            **interval_columns(difference.interval),
            "paper": rounded(study.paper.difference(*pair, setting)),
            "marks": " ".join(MARK_WORDS[mark] for mark in difference.marks),
        }
        rows.append(columns("-".join(pair), setting, own))
    return rows


MARK_WORDS = {"†": "different_seeds", "‡": "survivors", "§": "unlike_runs"}


def accuracy_grid(study: Study, methods: Sequence[str], pairs: Sequence[tuple[str, str]]) -> Grid:
    """A row per method above the paper's row, then a row per difference (first - second)."""
    paper, digits, settings = study.paper, study.digits, study.settings
    paper_label = "paper" if study.matches_paper else f"paper ({paper.label})"
    footnotes: dict[str, str] = {}
    marked: dict[str, list[str]] = {}
    if any(cell.omits_diverged for cell in study.cells.values()):
        marked["‡"] = []
    rows: list[Row] = []

    def published(method: str, setting: Setting) -> str:
        entry = paper.cell(method, setting)
        if not entry:
            return ""
        number = MISSING if entry.top1 is None else str(round_half_up(entry.top1, 1))
        if not entry.note:
            return number
        source = "published" if entry in paper.elsewhere else "paper"
        note = f"{source}, {study.label(method)} at {setting}: {entry.note} ({entry.source})"
        return number + footnotes.setdefault(note, FOOTNOTES[len(footnotes)])

    def add(
        row: Row,
        cells: Sequence[Summary | Difference],
        theirs: tuple[str, ...],
        source: str = "paper",
    ) -> None:
        texts = tuple(interval_text(cell.interval, digits) for cell in cells)
        below = {"95 % interval": texts, paper_label.replace("paper", source, 1): theirs}
        rows.append(replace(row, rule=bool(rows)))
        rows.extend(Row(label, t, indent=True) for label, t in below.items() if any(t))

    best = best_methods(study, methods)
    for method in methods:
        ours = [study.cell(method, s) for s in settings]
        row = Row(
            study.label(method),
            tuple(cell.text(digits) for cell in ours),
            bold=frozenset(i for i, s in enumerate(settings) if method in best[s]),
            runs=tuple(tuple(study.collection.folders(cell.runs)) for cell in ours),
        )
        theirs = tuple(published(method, s) for s in settings)
        in_paper = any(entry.method == method for entry in paper.cells)
        add(row, ours, theirs, "paper" if in_paper else "published")
        if study.matches_paper and any(theirs):
            gaps = tuple(
                signed_text(minus(cell.mean, paper.top1(method, s)), 1) + "‡" * cell.omits_diverged
                for cell, s in zip(ours, settings, strict=True)
            )
            rows.append(Row("ours − paper", gaps, indent=True))
    for pair in pairs:
        name = "-".join(map(study.label, pair))
        differences = {s: study.difference(*pair, s) for s in settings}
        texts = tuple(signed_text(d.mean, digits) + "".join(d.marks) for d in differences.values())
        gaps_there = [paper.difference(*pair, s) for s in settings]
        known = any(gap is not None for gap in gaps_there)
        theirs = tuple(signed_text(gap, 1) for gap in gaps_there) if known else ()
        add(Row(name, texts), list(differences.values()), theirs)
        for setting, difference in differences.items():
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
            *(departure_notes(study.runs) if study.collection.paper is not NO_PAPER else ()),
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
        f"{EPOCH_CHOICES[study.collection.epoch]}.",
    ]
    if study.paper is not NO_PAPER and not study.matches_paper:
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
            statistics.append(f"{study.label(method)} {_with_exceptions(used)}")
        if chosen:  # Omega may differ between settings
            omegas.append(f"{study.label(method)} chooses from {_with_exceptions(chosen)}.")
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
        papers = ", as in the paper" if study.paper is not NO_PAPER else ""
        notes.append(f"At one sample per GPU SN is {{IN, LN}}{papers}: BN would equal IN.")
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
        runs = [run for run in study.runs if run.cell.norm == method]
        trained = [run for run in runs if run.state in (FINISHED, NOT_EVALUATED)]
        if not any(set(run.counted_evaluations) & STORED_STATISTICS for run in trained):
            continue
        requested = {str(c["samples_requested"]): c for run in trained for c in _calibrations(run)}
        averages: list[tuple[str, str, Any]] = [("moving average", "moving_average", None)]
        for text in sorted(requested, key=lambda n: (not n.isdigit(), len(n), n)):
            count = f"{int(text):,}" if text.isdigit() else text
            # With a single number of samples a note below the table gives it.
            label = f"batch average, {count} samples" if len(requested) > 1 else "batch average"
            averages.append((label, "batch_average", requested[text]["samples_requested"]))
        for i, (label, statistics, samples) in enumerate(averages):
            seeds = by_cell(calibrated_with(run, samples) for run in runs)
            at = {cell.setting: same for cell, same in seeds.items()}
            cells = [_summarize(at.get(s, []), statistics) for s in study.settings]
            rows.append(
                Row(
                    f"{study.label(method)}, {label}",
                    tuple(cell.text(study.digits + 1) for cell in cells),
                    rule=bool(rows) and i == 0,
                    runs=tuple(tuple(study.collection.folders(cell.runs)) for cell in cells),
                )
            )
    if not rows:
        return None
    used: dict[str, list[int]] = {}
    for calibration in (c for run in study.runs for c in _calibrations(run)):
        request = f"{calibration.get('estimator')}, {calibration['samples_requested']}"
        used.setdefault(request, []).append(calibration.get("samples_used") or 0)
    notes = [
        f"Batch average: {request} training samples requested, "
        f"{' to '.join(map(str, sorted({min(counts), max(counts)})))} used."
        for request, counts in used.items()
    ]
    notes.append(
        f"{MISSING}: no run, or a run that stores no statistics (SN at one sample per GPU)."
    )
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
