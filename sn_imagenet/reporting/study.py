"""The runs of one data set with one network, and comparisons between their cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from sn_imagenet.reporting.cells import (
    Summary,
    by_cell,
    method_label,
    run_differences,
    summarize,
)
from sn_imagenet.reporting.curves import why_no_epochs
from sn_imagenet.reporting.paper import PAPER_SETTINGS, Paper, in_paper_order
from sn_imagenet.reporting.statistics import (
    Interval,
    contrast,
    permutation_p,
    proportion_difference,
    smallest_permutation_p,
)
from sn_imagenet.reporting.verdict import LEAST_SEEDS, Comparison
from sn_imagenet.runs import DIVERGED, FINISHED, Cell, Run, Setting

TABLE_2_METHODS = ("bn", "gn", "sn")
OTHER_DATA = "the paper's threshold is for ImageNet; the effect is measured on other data"


@dataclass(frozen=True)
class RunCollection:
    """The runs below ``root``, the paper's numbers, the settings to show (None: the paper's nine
    and all others among the runs), and the epoch whose accuracy counts (``final``, ``best``,
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
class Study:
    """One data set with one network. ``cells`` has an entry for each of ``methods`` at each of
    ``settings``, also without runs. ``matches_paper``: data set and network are the paper's, so
    that its numbers and thresholds apply."""

    data: str
    model: str
    settings: list[Setting]
    methods: list[str]
    cells: dict[tuple[str, Setting], Summary]
    runs: list[Run]
    matches_paper: bool

    @property
    def title(self) -> str:
        """``digits, resnet50_mini``."""
        return f"{self.data}, {self.model}"

    def cell(self, method: str, setting: Setting) -> Summary:
        """The runs of a cell; empty where there are none."""
        return self.cells.get((method, setting), Summary((), ()))

    def settings_of(self, method: str) -> list[Setting]:
        """The settings at which ``method`` has runs, in the paper's order."""
        return in_paper_order(
            {s for (m, s), cell in self.cells.items() if m == method and cell.runs}
        )


def studies_of(collection: RunCollection) -> list[Study]:
    """One study for each (data, model) among the runs, the paper's own first."""
    pairs = {(run.cell.data, run.cell.model) for run in collection.runs}
    matches = collection.paper.matches
    order = sorted(pairs, key=lambda pair: (not matches(*pair), pair))
    return [study_of(collection, data, model) for data, model in order]


def study_of(collection: RunCollection, data: str, model: str) -> Study:
    """The study of one data set and network; without cells' runs where there are none."""
    runs = [run for run in collection.runs if (run.cell.data, run.cell.model) == (data, model)]
    with_runs = {run.cell.setting for run in runs}
    settings = list(collection.settings or in_paper_order(with_runs | set(PAPER_SETTINGS)))
    runs = [run for run in runs if run.cell.setting in settings]
    others = sorted({run.cell.norm for run in runs} - set(TABLE_2_METHODS))
    methods = [*TABLE_2_METHODS, *others]
    seeds = by_cell(runs)
    cells = {
        (m, s): summarize(seeds.get(Cell(data, model, m, s), []), epoch=collection.epoch)
        for m in methods
        for s in settings
    }
    matches_paper = collection.paper.matches(data, model)
    return Study(data, model, settings, methods, cells, runs, matches_paper)


def study_warnings(study: Study, collection: RunCollection) -> list[str]:
    """One line for each cell that is not averaged, and for each run without the chosen epoch."""
    mixed = [
        f"{study.title}, {method_label(method)} {setting}: not averaged, the runs are not seeds "
        f"of one experiment: {cell.conflict}: {', '.join(collection.folders(cell.runs))}"
        for (method, setting), cell in study.cells.items()
        if cell.conflict
    ]
    finished = [run for run in study.runs if run.state == FINISHED]
    without = [why for run in finished if (why := why_no_epochs(run))]
    return mixed + (without if collection.epoch != "final" else [])


@dataclass(frozen=True)
class ContrastTerm:
    """A cell in a linear contrast, and its coefficient."""

    norm: str
    setting: Setting
    coefficient: float = 1.0

    @property
    def label(self) -> str:
        """``SN (8,2)``."""
        return f"{method_label(self.norm)} {self.setting}"


def why_not_comparable(study: Study, term: ContrastTerm) -> str:
    """Why the mean of a cell may not be compared; empty if it may."""
    cell = study.cell(term.norm, term.setting)
    diverged = cell.states[DIVERGED]
    if not cell.runs:
        return f"{term.label} was not run"
    if cell.conflict:
        return f"{term.label}: the runs are not seeds of one experiment ({cell.conflict})"
    if diverged:
        return f"{term.label}: {diverged} of {len(cell.runs)} seeds diverged"
    if len(cell.values) < LEAST_SEEDS:
        return f"{term.label}: {len(cell.values)} finished, {LEAST_SEEDS} seeds are needed"
    return ""


def compare(
    study: Study,
    name: str,
    terms: Sequence[ContrastTerm],
    low: float = -math.inf,
    high: float = math.inf,
    *,
    threshold_of_imagenet: bool = False,
) -> Comparison:
    """Compare top-1 (percent) of two cells, first minus second, by Welch's interval over seeds.

    The effect is given wherever both means exist. It enters a verdict only where both cells are
    comparable and differ in nothing else (:data:`~sn_imagenet.reporting.verdict.RULES`).
    """
    cells = [study.cell(term.norm, term.setting) for term in terms]
    problems = [problem for term in terms if (problem := why_not_comparable(study, term))]
    if all(cell.runs for cell in cells) and (
        difference := run_differences(cells[0].runs, cells[1].runs)
    ):
        problems.append(f"the two cells differ in {difference}")
    if threshold_of_imagenet and not study.matches_paper and not problems:
        problems.append(OTHER_DATA)
    means = [cell.mean for cell in cells]
    groups = [cell.values for cell in cells]
    first, second = means
    return Comparison(
        name,
        tuple(dict.fromkeys(term.setting for term in terms)),
        low,
        high,
        effect=None if first is None or second is None else first - second,
        estimate=contrast(groups, [term.coefficient for term in terms]) if all(groups) else None,
        why_not="; ".join(problems),
        test=_welch_text(groups),
        seeds={term.label: len(cell.values) for term, cell in zip(terms, cells, strict=True)},
        runs=tuple(run for cell in cells for run in cell.runs),
        validation=validation_interval(cells),
    )


def difference(
    study: Study,
    first: str,
    second: str,
    setting: Setting,
    low: float = -math.inf,
    high: float = math.inf,
) -> Comparison:
    """Method ``first`` minus method ``second`` at one setting."""
    name = f"{method_label(first)}-{method_label(second)} {setting}"
    terms = [ContrastTerm(first, setting), ContrastTerm(second, setting, -1.0)]
    return compare(study, name, terms, low, high)


def _welch_text(groups: Sequence[Sequence[float]]) -> str:
    text = "Welch's t interval over seeds"
    if min(map(len, groups)) < LEAST_SEEDS:
        return text
    p = permutation_p(*groups)
    if p is None:
        return text
    least = smallest_permutation_p(*map(len, groups))
    sizes = " against ".join(str(len(group)) for group in groups)
    return f"{text}; exact permutation p = {p:.2g} ({sizes} cannot go below {least:.2g})"


def validation_interval(cells: Sequence[Summary]) -> Interval | None:
    """The interval that the finite validation set gives the difference of two cells; None without
    counts."""
    counts = [_mean_counts(cell) for cell in cells]
    if counts[0] is None or counts[1] is None:
        return None
    return proportion_difference(counts[0], counts[1])


def _mean_counts(cell: Summary) -> tuple[float, int] | None:
    counted = [r.counted_evaluations[r.statistics] for r in cell.runs if r.state == FINISHED]
    seen = {evaluation.get("seen") for evaluation in counted}
    size = seen.pop() if len(seen) == 1 else None
    if not isinstance(size, int) or size < 1 or cell.mean is None:
        return None
    return cell.mean * size / 100, size


def paired(
    name: str,
    setting: Setting,
    runs: Sequence[Run],
    value: Callable[[Run], float | None],
    low: float = -math.inf,
    high: float = math.inf,
    *,
    differs: bool = False,
    why_not: str = "",
    unit: str = "points of top-1",
) -> Comparison:
    """Compare two quantities of the same network. ``value`` is their difference in one run, and
    the interval is that of its mean over runs. Pairing is valid because both share the weights."""
    values = [v for run in runs if (v := value(run)) is not None]
    if not why_not and len(values) < LEAST_SEEDS:
        why_not = f"{len(values)} seeds, {LEAST_SEEDS} are needed"
    return Comparison(
        name,
        (setting,),
        low,
        high,
        effect=fmean(values) if values else None,
        estimate=contrast([values], [1.0]) if values else None,
        why_not=why_not,
        differs=differs,
        test="t interval over seeds of the difference within each run",
        unit=unit,
        seeds={str(setting): len(values)},
        runs=tuple(runs),
    )
