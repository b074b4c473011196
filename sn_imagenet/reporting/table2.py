"""The accuracy tables: Table 2, and the moving and batch average of the statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
    markdown_escape,
    markdown_list,
    markdown_table,
    round_half_up,
)
from sn_imagenet.reporting.study import RunCollection, Study, studies_of, study_warnings
from sn_imagenet.runs import FINISHED, NOT_EVALUATED, Run, Setting
from sn_imagenet.runs.reading import mapping

STORED_STATISTICS = {"moving_average", "batch_average"}


def table2(collection: RunCollection) -> Document:
    """Table 2 of the paper, once for each (data, model) among the runs.

    Markdown has, beneath each table, the statistics used, BN and SN under both moving and batch
    average, departures from the protocol and git revisions. CSV is tidy: one row per method or
    difference and setting, accuracies in percent.
    """
    studies = studies_of(collection)
    title = "Table 2" if any(study.is_classification for study in studies) else "Scores"
    return accuracy_document(title, studies, [table2_grid, averages_grid])


def methods(collection: RunCollection) -> Document:
    """:func:`table2` with the difference of every method from SN, as in Sec. 4.1."""
    return table2(replace(collection, against=["sn"]))


def averages(collection: RunCollection) -> Document:
    """The moving and the batch average of the methods that store statistics."""
    return accuracy_document("Moving and batch average", studies_of(collection), [averages_grid])


def accuracy_document(
    title: str,
    studies: Sequence[Study],
    grids: Sequence[Callable[[Study], Grid | None]],
    warnings_of: Callable[[Study], list[str]] = study_warnings,
) -> Document:
    """The grids of each study, where they have rows, and what belongs to them."""
    grids_of = [[g for grid in grids if (g := grid(study))] for study in studies]
    warnings = [warnings_of(study) for study in studies]
    sections = list(map(_section, studies, grids_of, warnings))
    return Document(title, sections, grids_of, [line for lines in warnings for line in lines])


def _section(study: Study, grids: Sequence[Grid], warnings: Sequence[str]) -> str:
    runs = study.runs
    texts = [f"## {markdown_escape(study.title)}"]
    for i, grid in enumerate(grids):
        heading = "### Moving average and batch average" if i else markdown_escape(grid.caption)
        texts += [heading, grid_markdown(grid)]
    unfinished = [
        f"{code_span(study.collection.folders([run])[0])}: {run.state}"
        + (f", {markdown_escape(run.detail)}" if run.detail else "")
        for run in runs
        if run.state != FINISHED
    ]
    departures = ""
    if study.collection.paper is not NO_PAPER and any(r.evaluations or r.departures for r in runs):
        rows = [[d.item, d.paper, d.ours, d.which] for d in gather_departures(runs)]
        departures = markdown_table(["item", "paper", "ours", "runs"], rows) if rows else "None."
    counts = Counter((r.git_revision, r.git_dirty) for r in runs if r.git_revision)
    revisions = [
        f"{code_span(revision[:12])}{', with uncommitted changes' if dirty else ''}: {count} "
        f"run{'s' if count > 1 else ''}"
        for (revision, dirty), count in sorted(counts.items())
    ]
    below = {
        "Warnings": markdown_list(list(map(markdown_escape, warnings))),
        "Runs without a number": markdown_list(unfinished),
        "Departures from the paper's protocol, as recorded by the runs": departures,
        "Git revisions": markdown_list(revisions),
    }
    texts += [f"### {heading}\n\n{text}" for heading, text in below.items() if text]
    return "\n\n".join(texts)


def table2_grid(study: Study) -> Grid:
    """A row for each method above those for differences; beneath each its 95 % intervals, the
    paper's numbers and, for methods on the paper's task, the difference from them."""
    paper, digits, settings = study.paper, study.digits, study.settings
    footnotes: dict[str, str] = {}
    marked: dict[str, list[str]] = {}
    if any(cell.omits_diverged for cell in study.cells.values()):
        marked["‡"] = []
    rows: list[Row] = []

    def add(
        name: str,
        label: str,
        cells: Sequence[Summary | Difference],
        published: Sequence[float | None],
        below: Mapping[str, Sequence[str]],
        bold: Sequence[int] = (),
    ) -> None:
        folders = [study.collection.folders(cell.runs) for cell in cells]
        csv = [
            {
                **study.columns,
                "epoch": study.collection.epoch,
                "method": name,
                "setting": s.name,
                "gpus": s.gpus,
                "samples_per_gpu": s.samples_per_gpu,
                **cell.columns,
                "paper": there if study.matches_paper else None,
                "run_dirs": ";".join(runs),
            }
            for s, cell, there, runs in zip(settings, cells, published, folders, strict=True)
        ]
        texts = [cell.text(digits) for cell in cells]
        rows.append(Row(label, texts, rule=bool(rows), bold=bold, runs=folders, csv=csv))
        below = {"95 % interval": [interval_text(cell.interval, digits) for cell in cells], **below}
        rows.extend(Row(key, texts, indent=True) for key, texts in below.items() if any(texts))

    def entry_text(method: str, setting: Setting) -> str:
        if not (entry := paper.cells.get((method, setting))):
            return ""
        number = MISSING if entry.top1 is None else str(round_half_up(entry.top1, 1))
        if not entry.note:
            return number
        note = f"{entry.by}, {study.label(method)} at {setting}: {entry.note} ({entry.source})"
        return number + footnotes.setdefault(note, FOOTNOTES[len(footnotes)])

    source = "" if study.matches_paper else f" ({paper.label})"
    best = _best_methods(study)
    by = {method: entry.by for (method, _), entry in paper.cells.items()}
    for method in study.methods:
        ours = [study.cell(method, s) for s in settings]
        theirs = [paper.top1(method, s) for s in settings]
        texts = [entry_text(method, s) for s in settings]
        below = {by.get(method, "") + source: texts}
        if study.matches_paper and any(texts):
            below["ours − paper"] = [
                signed_text(minus(cell.mean, top1), 1) + "‡" * cell.omits_diverged
                for cell, top1 in zip(ours, theirs, strict=True)
            ]
        bold = [i for i, methods in enumerate(best) if method in methods]
        add(method, study.label(method), ours, theirs, below, bold)
    for pair in study.compared_methods:
        label = (" - " if "+" in "".join(pair) else "-").join(map(study.label, pair))
        differences = [study.difference(*pair, s) for s in settings]
        gaps = [minus(*(paper.top1(m, s) for m in pair)) for s in settings]
        known = any(gap is not None for gap in gaps)
        origin = "published" if "published" in map(by.get, pair) else "paper"
        below = {origin + source: [signed_text(gap, 1) for gap in gaps if known]}
        add("-".join(pair), label, differences, gaps, below)
        for setting, difference in zip(settings, differences, strict=True):
            for mark, detail in difference.marks.items():
                where = f"{label} {setting}" + (f" ({detail})" if detail else "")
                marked.setdefault(mark, []).append(where)
    heading = score_heading(study.score)
    where = "the validation set of " if study.is_classification else ""
    lower = "" if study.score.higher_is_better else "; lower is better"
    return Grid(
        f"{heading[:1].upper()}{heading[1:]} on {where}{study.name}, by (GPUs, samples per GPU)"
        f"{lower}.",
        list(map(str, settings)),
        rows,
        [
            *(f"{mark} {note}." for note, mark in footnotes.items()),
            *(
                f"{mark} {text}{': ' * bool(marked[mark])}{', '.join(marked[mark])}."
                for mark, text in MARKS.items()
                if mark in marked
            ),
            *_reading_notes(study),
            *(departure_notes(study.runs) if study.collection.paper is not NO_PAPER else ()),
        ],
    )


def _best_methods(study: Study) -> list[set[str]]:
    """For each setting the methods with the best mean as printed; none where fewer than two have a
    mean. A mean that leaves out diverged seeds does not count."""
    choose = max if study.score.higher_is_better else min
    best = []
    for setting in study.settings:
        means = {
            m: round_half_up(cell.mean, study.digits)
            for m in study.methods
            if (cell := study.cell(m, setting)).mean is not None and not cell.omits_diverged
        }
        top = choose(means.values(), default=None)
        best.append({m for m, mean in means.items() if mean == top and len(means) > 1})
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
    statistics = [
        f"{study.label(m)} {used}"
        for m in study.methods
        if (used := _by_setting(study, m, lambda run: statistics_label(run.statistics)))
    ]
    if statistics:
        notes.append(f"Evaluation statistics: {'; '.join(statistics)}.")
    notes += [
        f"{study.label(m)} chooses from {omega}."
        for m in study.methods
        if (omega := _by_setting(study, m, _omega))
    ]
    return notes


def _omega(run: Run) -> str:
    members = ", ".join(map(method_label, run.weights[0].mean)) if run.weights else ""
    return f"{{{members}}}" if members else ""


def _by_setting(study: Study, method: str, describe: Callable[[Run], str]) -> str:
    """What the runs of a method have in common, with exceptions by setting: ``batch average (at
    (8,1) per-sample statistics)``. Empty without any."""
    choices: dict[str, list[Setting]] = {}
    for setting in study.settings:
        for words in {describe(run): None for run in study.cell(method, setting).runs}:
            choices.setdefault(words, []).append(setting)
    first, *others = sorted(filter(None, choices), key=lambda w: -len(choices[w])) or [""]
    exceptions = (f"at {', '.join(map(str, choices[words]))} {words}" for words in others)
    return f"{first} ({'; '.join(exceptions)})" if others else first


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
            seeds = by_cell(_calibrated_with(run, samples) for run in runs)
            at = {cell.setting: same for cell, same in seeds.items()}
            cells = [summarize(at.get(s, []), statistics) for s in study.settings]
            texts = [cell.text(study.digits + 1) for cell in cells]
            folders = [study.collection.folders(cell.runs) for cell in cells]
            rule = bool(rows) and i == 0
            rows.append(Row(f"{study.label(method)}, {label}", texts, rule=rule, runs=folders))
    if not rows:
        return None
    used: dict[str, list[int]] = {}
    for calibration in (c for run in study.runs for c in _calibrations(run)):
        request = f"{calibration.get('estimator')}, {calibration['samples_requested']}"
        used.setdefault(request, []).append(calibration.get("samples_used") or 0)
    return Grid(
        f"Moving average and batch average: {score_heading(study.score)} on {study.name}.",
        list(map(str, study.settings)),
        rows,
        [
            *(
                f"Batch average: {request} training samples requested, "
                f"{' to '.join(map(str, sorted({min(counts), max(counts)})))} used."
                for request, counts in used.items()
            ),
            f"{MISSING}: no run, or a run that stores no statistics (SN at one sample per GPU).",
            *([study.paper.averages] if study.matches_paper else []),
        ],
    )


def _calibrated_with(run: Run, samples: Any) -> Run:
    """``run`` as if its config requested a batch average over ``samples``, so that the evaluations
    with that number of samples count."""
    if not run.config:
        return run
    calibration = {**mapping(run.config.get("calibration")), "samples": samples}
    return replace(run, config={**run.config, "calibration": calibration})


def _calibrations(run: Run) -> list[dict[str, Any]]:
    calibrations = [mapping(evaluation.get("calibration")) for evaluation in run.evaluations]
    return [calibration for calibration in calibrations if calibration.get("samples_requested")]
