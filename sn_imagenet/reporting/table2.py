"""The accuracy tables: Table 2, other methods (Sec. 4.1), and SN - BN under changes of the protocol
and by network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from sn_imagenet.reporting.accuracy import accuracy_grid, averages_grid
from sn_imagenet.reporting.cells import method_label, minus
from sn_imagenet.reporting.departures import gather_departures
from sn_imagenet.reporting.paper import NO_PAPER
from sn_imagenet.reporting.render import (
    Document,
    Grid,
    code_span,
    grid_markdown,
    interval_columns,
    markdown_escape,
    markdown_table,
    rounded,
)
from sn_imagenet.reporting.rivals import rivals_of
from sn_imagenet.reporting.study import RunCollection, Study, studies_of, study_warnings
from sn_imagenet.reporting.variants import (
    networks_grid,
    networks_of,
    variant_columns,
    variants_grid,
    variants_of,
    variants_warnings,
)
from sn_imagenet.runs import FINISHED, Setting

OTHER_METHODS = ("in", "ln", "brn", "bkn", "bn", "sn")
OTHER_DIFFERENCES = (("in", "sn"), ("ln", "sn"), ("brn", "bn"), ("brn", "sn"))
OTHER_SETTINGS = (Setting(8, 32), Setting(8, 4))

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

    def rows(study: Study) -> list[Columns]:
        return _rows(study, study.methods, study.compared_methods)

    return _document(title, studies, [table2_grid, averages_grid], rows)


def methods(collection: RunCollection) -> Document:
    """The other methods of Sec. 4.1, in the formats of :func:`table2`."""

    def rows(study: Study) -> list[Columns]:
        return _rows(study, *_other_methods(study))

    studies = [study for study in studies_of(collection) if study.is_classification]
    return _document("Other methods (Sec. 4.1)", studies, [methods_grid], rows)


def variants(collection: RunCollection) -> Document:
    """SN - BN under each change of the protocol among the runs, and how far each moves it."""

    def rows(study: Study) -> list[Columns]:
        labels = {"data": study.data, "model": study.model}
        return [
            {**labels, "setting": v.setting.name, "change": v.label, **variant_columns(v)}
            for v in variants_of(study)
        ]

    # Without cells: here runs of one cell differ on purpose.
    studies = [replace(study, cells={}) for study in studies_of(collection)]
    problems = [w for study in studies for w in variants_warnings(variants_of(study), collection)]
    return _document("Changes of the protocol", studies, [variants_grid], rows, problems)


def networks(collection: RunCollection) -> Document:
    """SN - BN of each network that was run on a data set, and how far the network moves it."""

    def rows(study: Study) -> list[Columns]:
        return [
            {
                "data": study.data,
                "model": v.label,
                "setting": v.setting.name,
                **variant_columns(v),
            }
            for v in networks_of(study)
        ]

    grouped: dict[tuple[object, ...], Study] = {}
    unpublished = replace(collection, paper=NO_PAPER)
    for study in studies_of(collection):
        key = (study.data, study.row, study.task, study.score)
        runs = [*(grouped[key].runs if key in grouped else ()), *study.runs]
        models = len({run.cell.model for run in runs})
        name = study.model if models == 1 else f"{models} networks"
        grouped[key] = replace(study, model=name, cells={}, runs=runs, collection=unpublished)
    studies = list(grouped.values())
    problems = [w for study in studies for w in variants_warnings(networks_of(study), collection)]
    return _document("Networks", studies, [networks_grid], rows, problems)


def _document(
    title: str,
    studies: Sequence[Study],
    grids: Sequence[GridOf],
    rows: Callable[[Study], list[Columns]],
    warnings: Sequence[str] | None = None,
) -> Document:
    if warnings is None:
        warnings = [line for study in studies for line in study_warnings(study)]
    grids_of = [[g for grid in grids if (g := grid(study))] for study in studies]
    sections = [_section(*pair) for pair in zip(studies, grids_of, strict=True)]
    several = any(study.row or not study.is_classification for study in studies)
    columns = [
        # The last three tell rows and tasks apart.
        {**row, "task_row": study.row, "task": study.task, "score": study.score.key}
        if several
        else row
        for study in studies
        for row in rows(study)
    ]
    return Document(title, sections, grids_of, columns, warnings)


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
            f"{markdown_escape(f'{method_label(method)} {setting}: {cell.conflict}')} "
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
    if any(run.evaluations or run.departures for run in runs):
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
    for method in methods:
        for setting in study.settings:
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
    for pair in pairs:
        for setting in study.settings:
            difference = study.difference(*pair, setting)
            seeds = min(len(difference.first.values), len(difference.second.values))
            own = {
                "n_seeds": seeds,
                "mean": rounded(difference.mean),
                **interval_columns(difference.interval),
                "paper": rounded(study.paper.difference(*pair, setting)),
                "marks": " ".join(MARK_WORDS[mark] for mark in difference.marks),
            }
            rows.append(columns("-".join(pair), setting, own))
    return rows


MARK_WORDS = {"†": "different_seeds", "‡": "survivors", "§": "unlike_runs"}
