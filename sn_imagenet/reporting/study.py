"""The runs of one task on one data set with one network, and comparisons between their cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from sn_imagenet.errors import UserError, as_text
from sn_imagenet.reporting.cells import (
    Difference,
    Summary,
    by_cell,
    cell_label,
    method_label,
    summarize,
)
from sn_imagenet.reporting.curves import (
    Epoch,
    recorded_score,
    score_of_epochs,
    try_epochs,
    validates_by_step,
)
from sn_imagenet.reporting.paper import NO_PAPER, PAPER_SETTINGS, Paper, in_paper_order
from sn_imagenet.reporting.render import Columns, decimals
from sn_imagenet.runs import DIVERGED, FINISHED, Run, Setting, find_runs
from sn_imagenet.runs.evaluations import EVALNORM
from sn_imagenet.runs.methods import BUILT_IN, IMPORTED
from sn_imagenet.runs.scores import TOP1, UNKNOWN, Score

TABLE_2_METHODS = ("bn", "gn", "sn")
TABLE_2_DIFFERENCES = (("gn", "bn"), ("sn", "bn"), ("sn", "gn"))
FOUND = "cell"  # the model of networks that an architecture search found


@dataclass(frozen=True)
class RunCollection:
    """The runs below ``root``, the paper's numbers, the settings and methods to show, the methods
    with which to compare the others, and the epoch whose score counts (``final``, ``best``,
    ``median5``).

    None shows what was run, beside published numbers also the paper's settings and methods. By
    default the pairs of the paper's Table 2 are compared, built-in methods with SN, and one's own
    with all others."""

    runs: Sequence[Run]
    root: Path
    paper: Paper = NO_PAPER
    settings: Sequence[Setting] | None = None
    methods: Sequence[str] | None = None
    against: Sequence[str] | None = None
    epoch: str = "final"

    @classmethod
    def read(
        cls,
        root: Path,
        paper: Paper = NO_PAPER,
        settings: Sequence[str] | None = None,
        **options: Any,
    ) -> tuple[RunCollection, list[str]]:
        """The runs below ``root``, and one line for each that cannot be read. ``settings``: names
        such as ``8x32``; ``options``: the other fields.

        Raises:
            UserError: no runs, or none that can be read; a name is not a setting, or no run is of
                that method.
        """
        columns = list(dict.fromkeys(map(Setting.parse, settings))) if settings else None
        found, warnings = find_runs(root, compare_configs=True)
        runs = list(map(_by_search, found))
        if not runs:
            raise UserError(f"{root}: holds no readable runs: {'; '.join(warnings)}")
        norms = {run.cell.norm for run in runs}
        norms |= {EVALNORM for run in runs if EVALNORM in run.counted_evaluations}
        known = ", ".join(sorted(norms))
        for name in (*(options.get("methods") or ()), *(options.get("against") or ())):
            if name not in norms:
                raise UserError(f"method '{name}': expected one of the runs': {known}")
        return cls(runs, root, paper, columns, **options), warnings

    def folders(self, runs: Sequence[Run]) -> list[str]:
        """The runs' folders relative to ``root``."""
        return [as_text(run.path.relative_to(self.root).as_posix()) for run in runs]


@dataclass(frozen=True)
class Study:
    """The runs of one task and score on one data set with one network, as tables, figures and
    verdicts show them.

    ``row``: what else the task tells apart; ``task``: its name, empty for classification;
    ``cells``: an entry for each of ``methods`` at each of ``settings``, also without runs. BN's
    runs have a second one, ``evalnorm``, if they were evaluated with EvalNorm."""

    data: str
    model: str
    row: str
    task: str
    score: Score
    settings: list[Setting]
    methods: list[str]
    cells: dict[tuple[str, Setting], Summary]
    runs: list[Run]
    collection: RunCollection

    @property
    def is_classification(self) -> bool:
        """Whether the paper's claims and the numbers of its Table 2 are about this task."""
        return not self.task and self.score == TOP1 and not self.is_found

    @property
    def is_found(self) -> bool:
        """Whether the network is one that an architecture search found, trained from scratch."""
        return self.model == FOUND and not self.task

    @property
    def paper(self) -> Paper:
        """The published numbers, none for other tasks."""
        return self.collection.paper if self.is_classification else NO_PAPER

    @property
    def matches_paper(self) -> bool:
        """Whether data and network are the paper's, so that its numbers and thresholds apply."""
        theirs = (self.paper.data, self.paper.model)
        return not self.row and (self.data, self.model) == theirs

    @property
    def name(self) -> str:
        """``digits, resnet50_mini``, and the row if any."""
        row = "found and trained from scratch" if self.is_found else self.row
        return ", ".join(filter(None, (self.data, self.model, row)))

    @property
    def title(self) -> str:
        """:attr:`name`; for other tasks than classification with the task and its score."""
        label = "" if self.score == TOP1 else self.score.label
        return ", ".join(filter(None, (self.name, self.task, label)))

    @property
    def columns(self) -> Columns:
        """Its columns in CSV files."""
        names = {"data": self.data, "model": self.model, "row": self.row, "task": self.task}
        return {**names, "score": self.score.key}

    @cached_property
    def digits(self) -> int:
        """Decimals of a mean in tables: one in percent, else four significant digits in all."""
        return decimals((run.score_value() for run in self.runs), self.score.unit) - 1

    def cell(self, method: str, setting: Setting) -> Summary:
        """The runs of a cell; empty where there are none."""
        return self.cells.get((method, setting), Summary())

    @cached_property
    def own_methods(self) -> list[str]:
        """The methods that are neither the paper's nor built in."""
        return [
            m for m in self.methods if m.removesuffix(IMPORTED) not in {*BUILT_IN, "bkn", EVALNORM}
        ]

    @property
    def compared_methods(self) -> Sequence[tuple[str, str]]:
        """The pairs of methods whose differences the table shows; see :class:`RunCollection`. In
        other tasks than classification every pair."""
        pairs = [(second, first) for first, second in combinations(self.methods, 2)]
        if self.collection.against is not None:
            chosen = [m for m in self.collection.against if m in self.methods]
            pairs = [(m, other) for other in chosen for m in self.methods if m != other]
            return [(a, b) for i, (a, b) in enumerate(pairs) if (b, a) not in pairs[:i]]
        if not self.is_classification:
            return pairs
        papers = [pair for pair in TABLE_2_DIFFERENCES if {*pair} <= {*self.methods}]
        own = self.own_methods
        return papers + [
            (m, other)
            for m, other in pairs
            if m in own or (other == "sn" and m not in TABLE_2_METHODS)
        ]

    def label(self, method: str) -> str:
        """The method as shown: as its config says, or :func:`method_label`."""
        cells = (run.cell for run in self.runs if run.cell.norm == method)
        return next(map(cell_label, cells), method_label(method))

    def cell_name(self, method: str, setting: Setting) -> str:
        """``BN (8,2)``."""
        return f"{self.label(method)} {setting}"

    def difference(self, first: str, second: str, setting: Setting) -> Difference:
        """``first`` minus ``second`` at one setting."""
        return Difference(((1.0, self.cell(first, setting)), (-1.0, self.cell(second, setting))))

    def settings_of(self, method: str) -> list[Setting]:
        """The settings at which ``method`` has runs, in the paper's order."""
        return in_paper_order({s for s in self.settings if self.cell(method, s).runs})

    @cached_property
    def drawn(self) -> dict[tuple[str, Setting], Summary]:
        """The cells that figures show: those with runs that are seeds of one experiment."""
        # EvalNorm is no other training, so it has no curves of its own.
        shown = {key: cell for key, cell in self.cells.items() if cell.runs and not cell.conflict}
        return {key: cell for key, cell in shown.items() if key[0] != EVALNORM}

    @property
    def drawn_methods(self) -> list[str]:
        return [m for m in self.methods if any((m, s) in self.drawn for s in self.settings)]

    @property
    def drawn_settings(self) -> list[Setting]:
        return [s for s in self.settings if any((m, s) in self.drawn for m in self.methods)]

    def curves_of(self, method: str, setting: Setting) -> list[list[Epoch]]:
        """The epochs of each seed that has any, finished or not; none if the cell is not drawn."""
        return [epochs for epochs, _ in self._read.get((method, setting), []) if epochs]

    @property
    def damaged(self) -> list[str]:
        """One line for each run whose epochs cannot be read."""
        return [why for read in self._read.values() for _, why in read if why]

    @cached_property
    def _read(self) -> dict[tuple[str, Setting], list[tuple[list[Epoch], str]]]:
        return {key: list(map(try_epochs, cell.runs)) for key, cell in self.drawn.items()}

    @property
    def x_label(self) -> str:
        """What the numbers of its epochs count: ``epoch``, or ``step`` (see :class:`Epoch`)."""
        return "step" if any(map(validates_by_step, self.runs)) else "epoch"

    def validation(self, method: str, setting: Setting) -> Callable[[Epoch], float | None]:
        """A function that gives an epoch's score: under the statistics that tables use for the cell
        if every seed was validated under them, else under the statistics of every epoch."""
        used = {run.statistics for run in self.cell(method, setting).runs}
        name = used.pop() if len(used) == 1 else ""
        curves = self.curves_of(method, setting)
        validated = all(any(name in epoch.validation for epoch in curve) for curve in curves)

        def of_epoch(epoch: Epoch) -> float | None:
            if validated:
                return epoch.validation.get(name)
            return next(iter(epoch.validation.values()), None)

        return of_epoch


def _by_search(run: Run) -> Run:
    """A network that a search found is a row of the method that found it."""
    cell = run.cell
    if cell.model != FOUND or cell.task or not cell.row:
        return run
    return replace(run, cell=replace(cell, norm=cell.row, row=""))


def studies_of(collection: RunCollection) -> list[Study]:
    """One study for each data set, network, row, task and score among the runs, the paper's own
    first."""
    keys = [(_experiment(run), recorded_score(run)) for run in collection.runs]
    known = dict(reversed([(key, score) for key, score in keys if score]))
    groups: dict[tuple[StudyKey, Score], list[Run]] = {}
    for (key, score), run in zip(keys, collection.runs, strict=True):
        # A run that has not been validated yet has not recorded its score.
        default = known.get(key, UNKNOWN if key.task else TOP1)
        groups.setdefault((key, score or default), []).append(run)
    studies = [_study(collection, *key, runs) for key, runs in groups.items()]
    return sorted(studies, key=lambda s: (not s.matches_paper, s.data, s.model, s.title))


def study_of(collection: RunCollection, key: StudyKey) -> Study:
    """The study of one task on one data set with one network, perhaps without runs."""
    runs = [run for run in collection.runs if _experiment(run) == key]
    score = next(filter(None, map(recorded_score, runs)), TOP1)
    return _study(collection, key, score, runs)


class StudyKey(NamedTuple):
    """What the runs of a study share; ``row`` and ``task`` may be empty, as in :class:`Study`."""

    data: str
    model: str
    row: str
    task: str


def _experiment(run: Run) -> StudyKey:
    cell = run.cell
    return StudyKey(cell.data, cell.model, cell.row, cell.task)


def _study(collection: RunCollection, key: StudyKey, score: Score, runs: Sequence[Run]) -> Study:
    is_classification = not key.task and score == TOP1 and key.model != FOUND
    settings, norms = ({run.cell.setting for run in runs}, {run.cell.norm for run in runs})
    if is_classification and collection.paper is not NO_PAPER:
        settings, norms = settings | set(PAPER_SETTINGS), norms | set(TABLE_2_METHODS)
    columns = list(collection.settings or in_paper_order(settings))
    methods = sorted(norms, key=lambda norm: (*(norm != m for m in TABLE_2_METHODS), norm))
    if collection.methods:
        methods = [method for method in collection.methods if method in norms]
    runs = [run for run in runs if run.cell.setting in columns and run.cell.norm in methods]
    seeds = {(cell.norm, cell.setting): same for cell, same in by_cell(runs).items()}
    if EVALNORM in (collection.methods or [EVALNORM]):
        for setting in columns:
            bn = seeds.get(("bn", setting), [])
            if evaluated := [run for run in bn if EVALNORM in run.counted_evaluations]:
                evaluated += [run for run in bn if run.state == DIVERGED]  # has no evaluations
                seeds[EVALNORM, setting] = [replace(r, statistics=EVALNORM) for r in evaluated]
        methods += [EVALNORM] if any(norm == EVALNORM for norm, _ in seeds) else []
    cells = {
        (m, s): summarize(seeds.get((m, s), []), epoch=collection.epoch)
        for m in methods
        for s in columns
    }
    return Study(*key, score, columns, methods, cells, runs, collection)


def conflict_warnings(
    study: Study, verb: str, cells: Iterable[tuple[str, Summary]] | None = None
) -> list[str]:
    """One line for each cell that is not ``verb`` (averaged, drawn), of the study or among those
    named."""
    if cells is None:
        cells = ((f"{study.title}, {study.cell_name(*key)}", c) for key, c in study.cells.items())
    return [
        f"{name}: not {verb}, the runs are not seeds of one experiment: {cell.conflict}: "
        f"{', '.join(study.collection.folders(cell.runs))}"
        for name, cell in cells
        if cell.conflict
    ]


def study_warnings(study: Study) -> list[str]:
    """One line for each cell that is not averaged, and for each run without the chosen epoch."""
    return conflict_warnings(study, "averaged") + [
        f"{run.path}: no epoch that can be read was validated under {run.statistics}, which "
        "represents the run in tables; it has a final score only"
        for run in study.runs
        if run.state == FINISHED and score_of_epochs(run, study.collection.epoch) is None
    ]
