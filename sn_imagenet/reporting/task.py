"""What a table is made of: the runs of one task by method and setting, and the paper's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sn_imagenet.reporting.cells import Summary, by_cell, method_label, summarize
from sn_imagenet.reporting.curves import why_no_epochs
from sn_imagenet.reporting.paper import PAPER_SETTINGS, Paper, in_paper_order
from sn_imagenet.runs import FINISHED, Cell, Run, Setting

TABLE_2_METHODS = ("bn", "gn", "sn")


@dataclass(frozen=True)
class Report:
    """The runs below ``root``, the paper's numbers, the settings to show (None: the paper's nine
    and every other that was run), and which epoch's number counts (``final``, ``best``,
    ``median5``)."""

    runs: Sequence[Run]
    root: Path
    paper: Paper
    settings: Sequence[Setting] | None = None
    epoch: str = "final"

    def folders(self, runs: Sequence[Run]) -> list[str]:
        """The runs' folders relative to ``root``."""
        return [run.path.relative_to(self.root).as_posix() for run in runs]


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
class Task:
    """One data set with one network; ``cells`` has an entry for every cell shown."""

    data: str
    model: str
    settings: list[Setting]
    methods: list[str]
    cells: dict[tuple[str, Setting], Summary]
    runs: list[Run]
    comparable: bool  # with the paper's numbers

    @property
    def title(self) -> str:
        """``digits, resnet50_mini``."""
        return f"{self.data}, {self.model}"


def tasks_of(report: Report) -> list[Task]:
    """One for each (data, model) among the runs, the paper's own first."""
    paper = report.paper
    pairs = {(run.cell.data, run.cell.model) for run in report.runs}
    tasks = []
    for data, model in sorted(pairs, key=lambda pair: (not paper.is_task(*pair), pair)):
        runs = [run for run in report.runs if (run.cell.data, run.cell.model) == (data, model)]
        found = {run.cell.setting for run in runs}
        settings = list(report.settings or in_paper_order(found | set(PAPER_SETTINGS)))
        runs = [run for run in runs if run.cell.setting in settings]
        methods = [
            *TABLE_2_METHODS,
            *sorted({run.cell.norm for run in runs} - set(TABLE_2_METHODS)),
        ]
        seeds = by_cell(runs)
        cells = {
            (m, s): summarize(seeds.get(Cell(data, model, m, s), []), epoch=report.epoch)
            for m in methods
            for s in settings
        }
        is_papers = paper.is_task(data, model)
        tasks.append(Task(data, model, settings, methods, cells, runs, is_papers))
    return tasks


def task_warnings(task: Task, report: Report) -> list[str]:
    """One line for each cell that is not averaged, and each run without the epoch asked for."""
    mixed = [
        f"{task.title}, {method_label(method)} {setting}: not averaged, the runs are not seeds "
        f"of one experiment: {cell.conflict}: {', '.join(report.folders(cell.runs))}"
        for (method, setting), cell in task.cells.items()
        if cell.conflict
    ]
    finished = [run for run in task.runs if run.state == FINISHED]
    without = [why for run in finished if (why := why_no_epochs(run))]
    return mixed + (without if report.epoch != "final" else [])
