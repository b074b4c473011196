"""The accuracy tables: Table 2, other methods (Sec. 4.1), averages (Sec. 2.1), and SN - BN under
changes of the protocol and by network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations

from sn_imagenet.reporting.accuracy import accuracy_grid, difference_marks
from sn_imagenet.reporting.appendix import appendix_markdown
from sn_imagenet.reporting.averages import averages_grid
from sn_imagenet.reporting.cells import method_label, minus
from sn_imagenet.reporting.departures import gather_departures
from sn_imagenet.reporting.paper import NO_PAPER
from sn_imagenet.reporting.render import (
    Document,
    Grid,
    code_span,
    csv_text,
    grid_latex,
    grid_markdown,
    markdown_escape,
    rounded,
)
from sn_imagenet.reporting.statistics import difference_interval
from sn_imagenet.reporting.study import RunCollection, Study, studies_of, study_warnings
from sn_imagenet.reporting.variants import (
    networks_grid,
    networks_of,
    networks_rows,
    variants_grid,
    variants_of,
    variants_rows,
    variants_warnings,
)
from sn_imagenet.runs import Setting

DIFFERENCES = (("gn", "bn"), ("sn", "bn"), ("sn", "gn"))
OTHER_METHODS = ("in", "ln", "brn", "bkn", "bn", "sn")
OTHER_DIFFERENCES = (("in", "sn"), ("ln", "sn"), ("brn", "bn"), ("brn", "sn"))
OTHER_SETTINGS = (Setting(8, 32), Setting(8, 4))

GridOf = Callable[[Study], Grid | None]


def table2_grid(study: Study) -> Grid:
    """BN, GN, SN and every other method that was run."""
    return accuracy_grid(study, study.methods, differences_of(study))


def differences_of(study: Study) -> Sequence[tuple[str, str]]:
    """The pairs of methods that Table 2 compares; in other tasks every pair."""
    if study.is_classification:
        return DIFFERENCES
    return [(second, first) for first, second in combinations(study.methods, 2)]


def methods_grid(study: Study) -> Grid | None:
    """IN, LN, BRN and BKN beside BN and SN (Sec. 4.1), at the paper's two settings and wherever one
    of the four was run; None if no such setting is shown, and for other tasks."""
    tried = {run.cell.setting for run in study.runs if run.cell.norm in OTHER_METHODS[:4]}
    settings = [s for s in study.settings if s in tried or s in OTHER_SETTINGS]
    if not settings or not study.is_classification:
        return None
    study = replace(study, settings=settings)
    return accuracy_grid(study, OTHER_METHODS, OTHER_DIFFERENCES)


def table2(collection: RunCollection) -> Document:
    """Table 2 of the paper, once for each (data, model) among the runs.

    Markdown has, beneath each table, the statistics used, BN and SN under both moving and batch
    average, departures from the protocol and git revisions. CSV is tidy: one row per method or
    difference and setting, accuracies in percent.
    """
    studies = studies_of(collection)
    title = "Table 2" if any(study.is_classification for study in studies) else "Scores"
    return _document(collection, title, [table2_grid, averages_grid], study_rows, studies)


def methods(collection: RunCollection) -> Document:
    """The other methods of Sec. 4.1, in the formats of :func:`table2`."""

    def rows(study: Study) -> list[dict[str, object]]:
        return study_rows(study, OTHER_METHODS, OTHER_DIFFERENCES)

    studies = [study for study in studies_of(collection) if study.is_classification]
    return _document(collection, "Other methods (Sec. 4.1)", [methods_grid], rows, studies)


def averages(collection: RunCollection) -> Document:
    """Moving and batch average (Sec. 2.1), by calibration samples. CSV has the cells' text."""

    def rows(study: Study) -> list[dict[str, object]]:
        grid = averages_grid(study)
        return [
            {
                "data": study.data,
                "model": study.model,
                "row": row.label,
                "setting": s,
                study.score.key: cell,
            }
            for row in (grid.rows if grid else ())
            for s, cell in zip((s.name for s in study.settings), row.cells, strict=True)
        ]

    return _document(collection, "Moving and batch average (Sec. 2.1)", [averages_grid], rows)


def variants(collection: RunCollection) -> Document:
    """SN - BN under each change of the protocol among the runs, and how far each moves it."""
    # Without cells: here runs of one cell differ on purpose.
    studies = [replace(study, cells={}) for study in studies_of(collection)]
    warnings = [
        line for study in studies for line in variants_warnings(variants_of(study), collection)
    ]
    return _document(
        collection, "Changes of the protocol", [variants_grid], variants_rows, studies, warnings
    )


def networks(collection: RunCollection) -> Document:
    """SN - BN of each network that was run on a data set, and how far the network moves it."""
    studies: dict[tuple[object, ...], Study] = {}
    unpublished = replace(collection, paper=NO_PAPER)
    for study in studies_of(collection):
        key = (study.data, study.row, study.task, study.score)
        runs = [*(studies[key].runs if key in studies else ()), *study.runs]
        models = len({run.cell.model for run in runs})
        name = study.model if models == 1 else f"{models} networks"
        studies[key] = replace(study, model=name, cells={}, runs=runs, collection=unpublished)
    warnings = [
        line
        for study in studies.values()
        for line in variants_warnings(networks_of(study), collection)
    ]
    return _document(
        collection, "Networks", [networks_grid], networks_rows, list(studies.values()), warnings
    )


def _document(
    collection: RunCollection,
    title: str,
    grids: Sequence[GridOf],
    rows: Callable[[Study], list[dict[str, object]]],
    studies: Sequence[Study] | None = None,
    warnings: Sequence[str] | None = None,
) -> Document:
    if studies is None:
        studies = studies_of(collection)
    if warnings is None:
        warnings = [line for study in studies for line in study_warnings(study)]
    grids_of = [[g for grid in grids if (g := grid(study))] for study in studies]
    head = f"% {title} of arXiv 1806.10779, reproduced. Needs \\usepackage{{booktabs,graphicx}}."

    def printed(notes: bool) -> str:
        parts = [
            f"{title}. {markdown_escape(grid.caption)}\n\n{grid_markdown(grid, notes=notes)}"
            for grids in grids_of
            for grid in grids[:1]
        ]
        return "\n\n".join(parts) + "\n"

    csv = [{**row, **_subject_columns(study, studies)} for study in studies for row in rows(study)]
    return Document(
        markdown="\n\n".join(
            [
                f"# {title}",
                *map(_markdown, studies, grids_of),
            ]
        )
        + "\n",
        summary=printed(notes=True),
        brief=printed(notes=False),
        latex="\n\n".join([head, *(grid_latex(grid) for grids in grids_of for grid in grids)])
        + "\n",
        csv=csv_text(csv) if csv else "",
        warnings=list(warnings),
    )


def _subject_columns(study: Study, studies: Sequence[Study]) -> dict[str, object]:
    """Columns of the CSV that tell rows and tasks apart; none if all is classification."""
    if all(s.is_classification and not s.row for s in studies):
        return {}
    return {"task_row": study.row, "task": study.task, "score": study.score.key}


def _markdown(study: Study, grids: Sequence[Grid]) -> str:
    parts = [f"## {markdown_escape(study.title)}"]
    for i, grid in enumerate(grids):
        heading = "### Moving average and batch average" if i else markdown_escape(grid.caption)
        parts += [heading, grid_markdown(grid)]
    if study.matches_paper:
        parts.append(_elsewhere_markdown(study))
    conflicts = [
        f"- {markdown_escape(f'{method_label(method)} {setting}: {cell.conflict}')} "
        f"({', '.join(map(code_span, study.collection.folders(cell.runs)))})"
        for (method, setting), cell in study.cells.items()
        if cell.conflict
    ]
    if conflicts:
        parts += ["### Cells whose runs are not seeds of one experiment", "\n".join(conflicts)]
    parts += appendix_markdown(study.runs, study.collection.root)
    return "\n\n".join(part for part in parts if part)


def _elsewhere_markdown(study: Study) -> str:
    paper = study.paper
    lines = [
        f"- {method_label(entry.method)} {entry.setting}: {entry.top1}, {entry.source}"
        + (f" ({entry.note})" if entry.note else "")
        for entry in (*paper.elsewhere, *paper.cells)
        if entry.setting in study.settings
        and (entry in paper.elsewhere or entry.method not in study.methods)
    ]
    return "\n".join(["Other published numbers:", "", *lines]) if lines else ""


def study_rows(
    study: Study,
    methods: Sequence[str] | None = None,
    differences: Sequence[tuple[str, str]] | None = None,
) -> list[dict[str, object]]:
    """The rows of the CSV: a method (default: all of the study) or ``sn-bn`` at one setting."""
    rows: list[dict[str, object]] = []
    gathered = gather_departures(study.runs)
    for method in methods or study.methods:
        for setting in study.settings:
            cell = study.cell(method, setting)
            paper = study.paper.top1(method, setting)
            states = {"mixed configs": len(cell.runs)} if cell.conflict else dict(cell.states)
            departures = [d for d in gathered if set(d.runs) & set(cell.runs)]
            rows.append(
                {
                    "data": study.data,
                    "model": study.model,
                    "method": method,
                    "setting": setting.name,
                    "gpus": setting.gpus,
                    "samples_per_gpu": setting.samples_per_gpu,
                    "n_seeds": len(cell.values),
                    "mean": rounded(cell.mean),
                    "std": rounded(cell.std),
                    **_ends(cell.interval),
                    "paper": paper,
                    "paper_is_same_task": "yes" if study.matches_paper else "no",
                    "difference": rounded(minus(cell.mean, paper)) if study.matches_paper else None,
                    "epoch": study.collection.epoch,
                    "states": ";".join(f"{s}:{n}" for s, n in states.items()) or "missing",
                    "statistics": ";".join(sorted({r.statistics for r in cell.runs} - {""})),
                    "marks": "",
                    "departures": "; ".join(f"{d.item}: {d.paper} -> {d.ours}" for d in departures),
                    "run_dirs": ";".join(study.collection.folders(cell.runs)),
                }
            )
    columns = dict.fromkeys(rows[0]) if rows else {}
    for first, second in differences_of(study) if differences is None else differences:
        for setting in study.settings:
            a, b = study.cell(first, setting), study.cell(second, setting)
            paper = minus(study.paper.top1(first, setting), study.paper.top1(second, setting))
            rows.append(
                {
                    **columns,
                    "data": study.data,
                    "model": study.model,
                    "method": f"{first}-{second}",
                    "setting": setting.name,
                    "gpus": setting.gpus,
                    "samples_per_gpu": setting.samples_per_gpu,
                    "n_seeds": min(len(a.values), len(b.values)),
                    "mean": rounded(minus(a.mean, b.mean)),
                    **_ends(difference_interval(a.values, b.values)),
                    "paper": rounded(paper),
                    "paper_is_same_task": "yes" if study.matches_paper else "no",
                    "epoch": study.collection.epoch,
                    "marks": " ".join(MARK_WORDS[mark] for mark in difference_marks(a, b)),
                }
            )
    return rows


MARK_WORDS = {"†": "different_seeds", "‡": "survivors", "§": "unlike_runs"}


def _ends(interval: tuple[float, float] | None) -> dict[str, object]:
    low, high = interval or (None, None)
    return {"ci95_low": rounded(low), "ci95_high": rounded(high)}
