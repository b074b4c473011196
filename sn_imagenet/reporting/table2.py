"""Table 2: top-1 of BN, GN, SN (and whatever else was run) in every batch size setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sn_imagenet.reporting.appendix import appendix_markdown
from sn_imagenet.reporting.cells import (
    MISSING,
    Summary,
    by_cell,
    method_label,
    statistics_label,
    summarise,
)
from sn_imagenet.reporting.paper import PAPER_SETTINGS, Paper, in_paper_order
from sn_imagenet.reporting.render import (
    FOOTNOTES,
    Grid,
    Row,
    csv_text,
    grid_latex,
    grid_markdown,
)
from sn_imagenet.runs import FINISHED, NOT_EVALUATED, Cell, Run, Setting

METHODS = ("bn", "gn", "sn")
DIFFERENCES = (("gn", "bn"), ("sn", "bn"), ("sn", "gn"))
STORED_STATISTICS = ("moving_average", "batch_average")


@dataclass(frozen=True)
class Report:
    """What a table is made of: the runs below ``root``, the paper's numbers, and the settings to
    show (None: the paper's nine and every other that was run)."""

    runs: Sequence[Run]
    root: Path
    paper: Paper
    settings: Sequence[Setting] | None = None


@dataclass(frozen=True)
class Document:
    """One table in its three formats, the part of it to print (``summary``, Markdown), and what
    the user must be told about it."""

    markdown: str
    summary: str
    latex: str
    csv: str
    warnings: list[str]


@dataclass(frozen=True)
class _Task:
    """Table 2 on one data set with one network; ``cells`` has an entry for every cell shown."""

    data: str
    model: str
    settings: list[Setting]
    methods: list[str]
    cells: dict[tuple[str, Setting], Summary]
    runs: list[Run]
    comparable: bool  # with the paper's numbers

    @property
    def title(self) -> str:
        return f"{self.data}, {self.model}"


def table2(report: Report) -> Document:
    """Table 2 of the paper, once for each (data, model) among the runs.

    Markdown has, beneath each table, the statistics used, BN and SN under moving and batch
    average both, the departures from the protocol and the git revisions. CSV is tidy: one row per
    method and setting, accuracies in percent.
    """
    tasks = _tasks(report)
    latex = [
        "% Table 2 of arXiv 1806.10779, reproduced. Needs \\usepackage{booktabs,graphicx}.",
        *(grid_latex(grid) for t in tasks for grid in (_grid(t, report), _both(t, report)) if grid),
    ]
    return Document(
        markdown="\n\n".join(["# Table 2", *(_markdown(task, report) for task in tasks)]) + "\n",
        summary="\n\n".join(_summary(task, report) for task in tasks) + "\n",
        latex="\n\n".join(latex) + "\n",
        csv=csv_text([row for task in tasks for row in _csv_rows(task, report)]),
        warnings=[
            f"{task.title}, {method_label(method)} {setting}: not averaged, the runs are not seeds "
            f"of one experiment: {cell.conflict}: {', '.join(_folders(cell.runs, report))}"
            for task in tasks
            for (method, setting), cell in task.cells.items()
            if cell.conflict
        ],
    )


def _tasks(report: Report) -> list[_Task]:
    paper = report.paper
    pairs = {(run.cell.data, run.cell.model) for run in report.runs}
    tasks = []
    for data, model in sorted(pairs, key=lambda pair: (not paper.is_task(*pair), pair)):
        runs = [run for run in report.runs if (run.cell.data, run.cell.model) == (data, model)]
        found = {run.cell.setting for run in runs}
        settings = list(report.settings or in_paper_order(found | set(PAPER_SETTINGS)))
        runs = [run for run in runs if run.cell.setting in settings]
        others = sorted({run.cell.norm for run in runs} - set(METHODS))
        methods = [*METHODS, *others]
        cells = by_cell(runs)
        tasks.append(
            _Task(
                data,
                model,
                settings,
                methods,
                {
                    (m, s): summarise(cells.get(Cell(data, model, m, s), []))
                    for m in methods
                    for s in settings
                },
                runs,
                paper.is_task(data, model),
            )
        )
    return tasks


def _grid(task: _Task, report: Report) -> Grid:
    paper = report.paper
    notes: list[str] = []
    marks: dict[str, str] = {}

    def published(method: str, setting: Setting) -> str:
        entry = paper.cell(method, setting)
        if not entry:
            return ""
        number = MISSING if entry.top1 is None else f"{entry.top1:.1f}"
        if not entry.note:
            return number
        note = f"paper, {method_label(method)} at {setting}: {entry.note} ({entry.source})"
        marks.setdefault(note, FOOTNOTES[len(marks)])
        return number + marks[note]

    paper_label = "paper" if task.comparable else f"paper ({paper.label})"
    rows: list[Row] = []
    for method in task.methods:
        ours = [task.cells[method, s] for s in task.settings]
        rows.append(Row(method_label(method), tuple(cell.text() for cell in ours), rule=bool(rows)))
        theirs = [paper.top1(method, s) for s in task.settings]
        if any(paper.cell(method, s) for s in task.settings):
            rows.append(
                Row(paper_label, tuple(published(method, s) for s in task.settings), indent=True)
            )
            if task.comparable:
                gaps = zip(ours, theirs, strict=True)
                cells = tuple(_signed(_minus(cell.mean, top1)) for cell, top1 in gaps)
                rows.append(Row("ours − paper", cells, indent=True))
    for first, second in DIFFERENCES:
        label = f"{method_label(first)}-{method_label(second)}"
        ours_gap = [
            _minus(task.cells[first, s].mean, task.cells[second, s].mean) for s in task.settings
        ]
        theirs_gap = [_minus(paper.top1(first, s), paper.top1(second, s)) for s in task.settings]
        rows.append(Row(label, tuple(map(_signed, ours_gap)), rule=True))
        rows.append(Row(paper_label, tuple(map(_signed, theirs_gap)), indent=True))
    notes += [f"{mark} {note}." for note, mark in marks.items()]
    return Grid(
        caption=f"Top-1 (%) on the validation set of {task.title}, by (GPUs, samples per GPU).",
        columns=tuple(str(s) for s in task.settings),
        rows=tuple(rows),
        notes=(*notes, *_reading(task, report)),
    )


def _reading(task: _Task, report: Report) -> list[str]:
    """What a reader must know to read the main table."""
    notes = [
        "Mean ± sample standard deviation (number of seeds); no brackets: one seed. "
        f"{MISSING}: no run. Differences are those of the means."
    ]
    if not task.comparable:
        notes.append(
            f"The paper's numbers are of {report.paper.label}: another task, shown for "
            "orientation, so no difference from them is computed."
        )
    return notes + _statistics_used(task) + _omegas(task)


def _statistics_used(task: _Task) -> list[str]:
    parts = []
    for method in task.methods:
        used: dict[str, list[Setting]] = {}
        for setting in task.settings:
            for name in {r.statistics for r in task.cells[method, setting].runs if r.statistics}:
                used.setdefault(statistics_label(name), []).append(setting)
        if used:
            parts.append(f"{method_label(method)} {_with_exceptions(used)}")
    return [f"Evaluation statistics: {'; '.join(parts)}."] if parts else []


def _omegas(task: _Task) -> list[str]:
    """Which normalisers each switchable one chose from; not the same at one sample per GPU."""
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


def _runs(task: _Task, method: str, setting: Setting) -> Sequence[Run]:
    return task.cells[method, setting].runs


def _both(task: _Task, report: Report) -> Grid | None:
    """BN and SN under moving average and batch average (claim 9 of the paper, and EvalNorm's
    remark that part of BN's loss at small batches is in the statistics); None without a run."""
    cells = by_cell(task.runs)
    rows: list[Row] = []
    for method in task.methods:
        stored = {
            name
            for run in task.runs
            if run.cell.norm == method and run.state in (FINISHED, NOT_EVALUATED)
            for name in run.evaluations
        }
        if not stored & set(STORED_STATISTICS):
            continue
        for i, name in enumerate(STORED_STATISTICS):
            row = [
                summarise(cells.get(Cell(task.data, task.model, method, s), []), name)
                for s in task.settings
            ]
            label = f"{method_label(method)}, {statistics_label(name)}"
            rows.append(
                Row(label, tuple(cell.text(digits=2) for cell in row), rule=bool(rows) and i == 0)
            )
    if not rows:
        return None
    notes = [
        *_calibrations(task),
        f"{MISSING}: no run, or one that stores no statistics (SN at one sample per GPU).",
    ]
    if task.comparable:
        notes += [
            f"Paper ({entry.source}), {method_label(entry.method)} at {entry.setting}, "
            f"{entry.note}: {entry.top1:.2f}."
            for entry in report.paper.statistics
            if entry.setting in task.settings
        ]
    return Grid(
        caption=f"Moving average and batch average: top-1 (%) on {task.title}.",
        columns=tuple(str(s) for s in task.settings),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _calibrations(task: _Task) -> list[str]:
    used: dict[str, list[int]] = {}
    for run in task.runs:
        calibration = run.evaluations.get("batch_average", {}).get("calibration")
        if calibration:
            asked = f"{calibration.get('estimator')}, {calibration.get('samples_requested')}"
            used.setdefault(asked, []).append(calibration.get("samples_used", 0))
    return [
        f"Batch average: {asked} training samples requested, "
        f"{' to '.join(map(str, sorted({min(counts), max(counts)})))} used."
        for asked, counts in used.items()
    ]


def _markdown(task: _Task, report: Report) -> str:
    grid, both = _grid(task, report), _both(task, report)
    parts = [f"## {task.title}", grid.caption, grid_markdown(grid)]
    if both:
        parts += ["### Moving average and batch average", grid_markdown(both)]
    if task.comparable:
        parts.append(_elsewhere_markdown(task, report.paper))
    conflicts = [
        f"- {method_label(method)} {setting}: {cell.conflict} "
        f"({', '.join(f'`{name}`' for name in _folders(cell.runs, report))})"
        for (method, setting), cell in task.cells.items()
        if cell.conflict
    ]
    if conflicts:
        parts += ["### Cells whose runs are not seeds of one experiment", "\n".join(conflicts)]
    parts += appendix_markdown(task.runs, report.root)
    return "\n\n".join(part for part in parts if part)


def _summary(task: _Task, report: Report) -> str:
    grid = _grid(task, report)
    return "\n\n".join([f"Table 2. {grid.caption}", grid_markdown(grid)])


def _elsewhere_markdown(task: _Task, paper: Paper) -> str:
    lines = [
        f"- {method_label(entry.method)} {entry.setting}: {entry.top1}, {entry.source}"
        + (f" ({entry.note})" if entry.note else "")
        for entry in (*paper.elsewhere, *paper.cells)
        if entry.setting in task.settings
        and (entry in paper.elsewhere or entry.method not in task.methods)
    ]
    return "\n".join(["Other published numbers:", "", *lines]) if lines else ""


def _csv_rows(task: _Task, report: Report) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for (method, setting), cell in task.cells.items():
        paper = report.paper.top1(method, setting)
        states = {"mixed configs": len(cell.runs)} if cell.conflict else dict(cell.states)
        rows.append(
            {
                "data": task.data,
                "model": task.model,
                "method": method,
                "setting": setting.name,
                "gpus": setting.gpus,
                "samples_per_gpu": setting.samples_per_gpu,
                "n_seeds": len(cell.values),
                "mean": _rounded(cell.mean),
                "std": _rounded(cell.std),
                "paper": paper,
                "paper_is_same_task": "yes" if task.comparable else "no",
                "difference": _rounded(_minus(cell.mean, paper)) if task.comparable else None,
                "states": ";".join(f"{s}:{n}" for s, n in states.items()) or "missing",
                "statistics": ";".join(sorted({r.statistics for r in cell.runs if r.statistics})),
                "run_dirs": ";".join(_folders(cell.runs, report)),
            }
        )
    return rows


def _folders(runs: Sequence[Run], report: Report) -> list[str]:
    return [run.path.relative_to(report.root).as_posix() for run in runs]


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _signed(difference: float | None) -> str:
    if difference is None:
        return MISSING
    # Adding 0 turns -0.0, which rounding makes of -0.04, into 0.0.
    return f"{round(difference, 1) + 0.0:+.1f}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
