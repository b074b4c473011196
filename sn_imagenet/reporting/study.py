"""The runs of one task (data set and network), and comparisons between its cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from sn_imagenet.reporting.cells import Summary, by_cell, method_label, summarize, unlike
from sn_imagenet.reporting.paper import Paper, in_paper_order
from sn_imagenet.reporting.statistics import (
    Interval,
    contrast,
    permutation_p,
    proportion_difference,
    smallest_permutation_p,
)
from sn_imagenet.reporting.verdict import LEAST_SEEDS, Comparison
from sn_imagenet.runs import DIVERGED, FINISHED, Run, Setting

_EMPTY = Summary((), ())
OTHER_DATA = "the paper's threshold is of ImageNet; measured here for itself"


@dataclass(frozen=True)
class Study:
    """``cells``: the runs by (norm, setting); ``of_the_paper``: its thresholds apply here."""

    data: str
    model: str
    cells: dict[tuple[str, Setting], Summary]
    of_the_paper: bool

    @property
    def title(self) -> str:
        """As it is shown: ``digits, resnet50_mini``."""
        return f"{self.data}, {self.model}"

    def cell(self, norm: str, setting: Setting) -> Summary:
        """The runs of a cell, empty where there are none."""
        return self.cells.get((norm, setting), _EMPTY)

    def settings(self, *norms: str) -> list[Setting]:
        """Those in which one of ``norms`` was run, in the paper's order."""
        return in_paper_order({s for norm, s in self.cells if norm in norms})


def studies(runs: Sequence[Run], paper: Paper) -> list[Study]:
    """One for each task among ``runs``, the paper's own first."""
    tasks: dict[tuple[str, str], dict[tuple[str, Setting], Summary]] = {}
    for cell, seeds in by_cell(runs).items():
        cells = tasks.setdefault((cell.data, cell.model), {})
        cells[cell.norm, cell.setting] = summarize(seeds)
    order = sorted(tasks, key=lambda task: (not paper.is_task(*task), task))
    return [Study(*task, tasks[task], paper.is_task(*task)) for task in order]


@dataclass(frozen=True)
class Side:
    """A cell in a contrast, and its coefficient."""

    norm: str
    setting: Setting
    coefficient: float = 1.0

    @property
    def label(self) -> str:
        """``SN (8,2)``."""
        return f"{method_label(self.norm)} {self.setting}"


def sound_cell(study: Study, side: Side) -> str:
    """Why the mean of a cell may not be compared, empty if it may."""
    cell = study.cell(side.norm, side.setting)
    diverged = cell.states[DIVERGED]
    if not cell.runs:
        return f"{side.label} was not run"
    if cell.conflict:
        return f"{side.label}: the runs are not seeds of one experiment ({cell.conflict})"
    if diverged:
        return f"{side.label}: {diverged} of {len(cell.runs)} seeds diverged"
    if len(cell.values) < LEAST_SEEDS:
        return f"{side.label}: {len(cell.values)} finished, {LEAST_SEEDS} seeds are needed"
    return ""


def compare(
    study: Study,
    name: str,
    sides: Sequence[Side],
    low: float = -math.inf,
    high: float = math.inf,
    *,
    threshold_of_imagenet: bool = False,
) -> Comparison:
    """Compare top-1 (percent) of two cells, first minus second, by Welch's interval over seeds.

    The effect is given wherever both means exist; it enters a verdict only where the sides are
    sound and like (:data:`~sn_imagenet.reporting.verdict.RULES`).
    """
    cells = [study.cell(side.norm, side.setting) for side in sides]
    problems = [problem for side in sides if (problem := sound_cell(study, side))]
    if all(cell.runs for cell in cells) and (difference := unlike(cells[0].runs, cells[1].runs)):
        problems.append(f"the sides differ in {difference}")
    if threshold_of_imagenet and not study.of_the_paper and not problems:
        problems.append(OTHER_DATA)
    means = [cell.mean for cell in cells]
    groups = [cell.values for cell in cells]
    first, second = means
    return Comparison(
        name,
        tuple(dict.fromkeys(side.setting for side in sides)),
        low,
        high,
        effect=None if first is None or second is None else first - second,
        estimate=contrast(groups, [side.coefficient for side in sides]) if all(groups) else None,
        why_not="; ".join(problems),
        test=_welch(groups),
        seeds={side.label: len(cell.values) for side, cell in zip(sides, cells, strict=True)},
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
    """``first`` minus ``second``, two methods at one setting."""
    name = f"{method_label(first)}-{method_label(second)} {setting}"
    return compare(study, name, [Side(first, setting), Side(second, setting, -1.0)], low, high)


def _welch(groups: Sequence[Sequence[float]]) -> str:
    words = "Welch's t interval over seeds"
    if min(map(len, groups)) < LEAST_SEEDS:
        return words
    p = permutation_p(*groups)
    if p is None:
        return words
    least = smallest_permutation_p(*map(len, groups))
    sizes = " against ".join(str(len(group)) for group in groups)
    return f"{words}; exact permutation p = {p:.2g} ({sizes} cannot go below {least:.2g})"


def validation_interval(cells: Sequence[Summary]) -> Interval | None:
    """What the finite validation set adds to a difference of two cells; None without counts."""
    sides = [_mean_counts(cell) for cell in cells]
    if sides[0] is None or sides[1] is None:
        return None
    return proportion_difference(sides[0], sides[1])


def _mean_counts(cell: Summary) -> tuple[float, int] | None:
    counted = [r.counted[r.statistics] for r in cell.runs if r.state == FINISHED]
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
    """Compare two things of the same network: ``value`` is their difference in one run, and the
    interval is that of its mean over runs. Here the pairing is real: one set of weights."""
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
