"""The tables of accuracies: Table 2, other methods (Sec. 4.1), averages (Sec. 2.1), and SN - BN
under changes of the protocol and by network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sn_imagenet.reporting.accuracy import accuracy_grid, cell_of, difference_marks, minus
from sn_imagenet.reporting.appendix import appendix_markdown
from sn_imagenet.reporting.averages import averages_grid
from sn_imagenet.reporting.cells import method_label
from sn_imagenet.reporting.departures import gather_departures
from sn_imagenet.reporting.paper import Paper
from sn_imagenet.reporting.render import (
    Grid,
    code_span,
    csv_text,
    grid_latex,
    grid_markdown,
    markdown_escape,
    rounded,
)
from sn_imagenet.reporting.statistics import difference_interval
from sn_imagenet.reporting.task import Document, Report, Task, task_warnings, tasks_of
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

GridOf = Callable[[Task, Report], Grid | None]


def table2_grid(task: Task, report: Report) -> Grid:
    """BN, GN, SN and every other method that was run."""
    return accuracy_grid(task, report, task.methods, DIFFERENCES)


def methods_grid(task: Task, report: Report) -> Grid | None:
    """IN, LN, BRN and BKN beside BN and SN, in the paper's two settings and those in which one of
    them was run (Sec. 4.1); None where none of these is to be shown."""
    tried = {run.cell.setting for run in task.runs if run.cell.norm in OTHER_METHODS[:4]}
    settings = [s for s in task.settings if s in tried or s in OTHER_SETTINGS]
    if not settings:
        return None
    shown = Task(
        task.data, task.model, settings, task.methods, task.cells, task.runs, task.comparable
    )
    return accuracy_grid(shown, report, OTHER_METHODS, OTHER_DIFFERENCES)


def table2(report: Report) -> Document:
    """Table 2 of the paper, once for each (data, model) among the runs.

    Markdown has, beneath each table, the statistics used, BN and SN under moving and batch
    average both, the departures from the protocol and the git revisions. CSV is tidy: one row per
    method or difference and setting, accuracies in percent.
    """
    return _document(report, "Table 2", [table2_grid, averages_grid], task_rows)


def methods(report: Report) -> Document:
    """The other methods of Sec. 4.1, in the formats of :func:`table2`."""

    def rows(task: Task, report: Report) -> list[dict[str, object]]:
        return task_rows(task, report, OTHER_METHODS, OTHER_DIFFERENCES)

    return _document(report, "Other methods (Sec. 4.1)", [methods_grid], rows)


def averages(report: Report) -> Document:
    """Moving against batch average (Sec. 2.1), by the samples of the calibration. CSV has the text
    of the cells."""

    def rows(task: Task, report: Report) -> list[dict[str, object]]:
        grid = averages_grid(task, report)
        return [
            {"data": task.data, "model": task.model, "row": row.label, "setting": s, "top1": cell}
            for row in (grid.rows if grid else ())
            for s, cell in zip((s.name for s in task.settings), row.cells, strict=True)
        ]

    return _document(report, "Moving and batch average (Sec. 2.1)", [averages_grid], rows)


def variants(report: Report) -> Document:
    """SN - BN under each change of the protocol among the runs, by how much each moves it."""
    # Without its cells: here runs of one cell that differ are no mistake.
    tasks = [replace(task, cells={}) for task in tasks_of(report)]
    warnings = [line for task in tasks for line in variants_warnings(variants_of(task), report)]
    return _document(
        report, "Changes of the protocol", [variants_grid], variants_rows, tasks, warnings
    )


def networks(report: Report) -> Document:
    """SN - BN of each network that was run on a data set, and how far it moves with the network."""
    tasks: dict[str, Task] = {}
    for task in tasks_of(report):
        others = tasks.get(task.data)
        runs = [*(others.runs if others else ()), *task.runs]
        models = len({run.cell.model for run in runs})
        name = task.model if models == 1 else f"{models} networks"
        tasks[task.data] = replace(task, model=name, cells={}, runs=runs, comparable=False)
    warnings = [
        line for task in tasks.values() for line in variants_warnings(networks_of(task), report)
    ]
    return _document(
        report, "Networks", [networks_grid], networks_rows, list(tasks.values()), warnings
    )


def _document(
    report: Report,
    title: str,
    grids: Sequence[GridOf],
    rows: Callable[[Task, Report], list[dict[str, object]]],
    tasks: Sequence[Task] | None = None,
    warnings: Sequence[str] | None = None,
) -> Document:
    if tasks is None:
        tasks = tasks_of(report)
    if warnings is None:
        warnings = [line for task in tasks for line in task_warnings(task, report)]
    made = {task.title: [g for grid in grids if (g := grid(task, report))] for task in tasks}
    head = f"% {title} of arXiv 1806.10779, reproduced. Needs \\usepackage{{booktabs,graphicx}}."
    csv = [row for task in tasks for row in rows(task, report)]
    return Document(
        markdown="\n\n".join(
            [f"# {title}", *(_markdown(task, made[task.title], report) for task in tasks)]
        )
        + "\n",
        summary="\n\n".join(
            "\n\n".join([f"{title}. {markdown_escape(grid.caption)}", grid_markdown(grid)])
            for task in tasks
            for grid in made[task.title][:1]
        )
        + "\n",
        latex="\n\n".join([head, *(grid_latex(g) for task in tasks for g in made[task.title])])
        + "\n",
        csv=csv_text(csv) if csv else "",
        warnings=list(warnings),
    )


def _markdown(task: Task, grids: Sequence[Grid], report: Report) -> str:
    parts = [f"## {markdown_escape(task.title)}"]
    for i, grid in enumerate(grids):
        heading = "### Moving average and batch average" if i else markdown_escape(grid.caption)
        parts += [heading, grid_markdown(grid)]
    if task.comparable:
        parts.append(_elsewhere_markdown(task, report.paper))
    conflicts = [
        f"- {markdown_escape(f'{method_label(method)} {setting}: {cell.conflict}')} "
        f"({', '.join(map(code_span, report.folders(cell.runs)))})"
        for (method, setting), cell in task.cells.items()
        if cell.conflict
    ]
    if conflicts:
        parts += ["### Cells whose runs are not seeds of one experiment", "\n".join(conflicts)]
    parts += appendix_markdown(task.runs, report.root)
    return "\n\n".join(part for part in parts if part)


def _elsewhere_markdown(task: Task, paper: Paper) -> str:
    lines = [
        f"- {method_label(entry.method)} {entry.setting}: {entry.top1}, {entry.source}"
        + (f" ({entry.note})" if entry.note else "")
        for entry in (*paper.elsewhere, *paper.cells)
        if entry.setting in task.settings
        and (entry in paper.elsewhere or entry.method not in task.methods)
    ]
    return "\n".join(["Other published numbers:", "", *lines]) if lines else ""


def task_rows(
    task: Task,
    report: Report,
    methods: Sequence[str] | None = None,
    differences: Sequence[tuple[str, str]] = DIFFERENCES,
) -> list[dict[str, object]]:
    """The rows of the CSV: a method (default: all of the task) or ``sn-bn`` in one setting."""
    rows: list[dict[str, object]] = []
    gathered = gather_departures(task.runs)
    for method in methods or task.methods:
        for setting in task.settings:
            cell = cell_of(task, method, setting)
            paper = report.paper.top1(method, setting)
            states = {"mixed configs": len(cell.runs)} if cell.conflict else dict(cell.states)
            departures = [d for d in gathered if set(d.runs) & set(cell.runs)]
            rows.append(
                {
                    "data": task.data,
                    "model": task.model,
                    "method": method,
                    "setting": setting.name,
                    "gpus": setting.gpus,
                    "samples_per_gpu": setting.samples_per_gpu,
                    "n_seeds": len(cell.values),
                    "mean": rounded(cell.mean),
                    "std": rounded(cell.std),
                    **_ends(cell.interval),
                    "paper": paper,
                    "paper_is_same_task": "yes" if task.comparable else "no",
                    "difference": rounded(minus(cell.mean, paper)) if task.comparable else None,
                    "epoch": report.epoch,
                    "states": ";".join(f"{s}:{n}" for s, n in states.items()) or "missing",
                    "statistics": ";".join(sorted({r.statistics for r in cell.runs} - {""})),
                    "marks": "",
                    "departures": "; ".join(f"{d.item}: {d.paper} -> {d.ours}" for d in departures),
                    "run_dirs": ";".join(report.folders(cell.runs)),
                }
            )
    columns = dict.fromkeys(rows[0]) if rows else {}
    for first, second in differences:
        for setting in task.settings:
            a, b = cell_of(task, first, setting), cell_of(task, second, setting)
            paper = minus(report.paper.top1(first, setting), report.paper.top1(second, setting))
            rows.append(
                {
                    **columns,
                    "data": task.data,
                    "model": task.model,
                    "method": f"{first}-{second}",
                    "setting": setting.name,
                    "gpus": setting.gpus,
                    "samples_per_gpu": setting.samples_per_gpu,
                    "n_seeds": min(len(a.values), len(b.values)),
                    "mean": rounded(minus(a.mean, b.mean)),
                    **_ends(difference_interval(a.values, b.values)),
                    "paper": rounded(paper),
                    "paper_is_same_task": "yes" if task.comparable else "no",
                    "epoch": report.epoch,
                    "marks": " ".join(MARK_WORDS[mark] for mark in difference_marks(a, b)),
                }
            )
    return rows


MARK_WORDS = {"†": "different_seeds", "‡": "survivors", "§": "unlike_runs"}


def _ends(interval: tuple[float, float] | None) -> dict[str, object]:
    low, high = interval or (None, None)
    return {"ci95_low": rounded(low), "ci95_high": rounded(high)}
