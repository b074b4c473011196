"""Comparisons of two cells, or of two numbers of the same network, with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

from sn_imagenet.reporting.cells import Summary, method_label, run_differences
from sn_imagenet.reporting.statistics import (
    Estimate,
    Interval,
    contrast,
    permutation_p,
    proportion_difference,
    smallest_permutation_p,
)
from sn_imagenet.reporting.study import Study
from sn_imagenet.runs import DIVERGED, FINISHED, Run, Setting

LEAST_SEEDS = 3
OTHER_DATA = "the paper's threshold is for ImageNet; the effect is measured on other data"
POINTS = "points of top-1"
WEIGHT = "importance weight"
Value = Callable[[Run], float | None]


@dataclass(frozen=True)
class Comparison:
    """One effect, and where the claim requires it: within [low, high], or not at 0 (``differs``).

    ``estimate`` is None without seeds or spread to judge by. ``why_not`` says why the comparison
    does not enter the verdict; its effect may still be shown, e.g. if the threshold is for other
    data. ``seeds``: label of a cell -> number of seeds. ``validation``: the interval for the finite
    validation set."""

    name: str
    settings: tuple[Setting, ...]
    low: float = -math.inf
    high: float = math.inf
    effect: float | None = None
    estimate: Estimate | None = None
    why_not: str = ""
    differs: bool = False
    test: str = ""
    unit: str = POINTS
    seeds: dict[str, int] = field(default_factory=dict)
    runs: tuple[Run, ...] = ()
    validation: Interval | None = None

    @property
    def tested(self) -> bool:
        """Whether the comparison enters the verdict."""
        return not self.why_not

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval over seeds."""
        return self.estimate.interval() if self.estimate else None

    @property
    def threshold(self) -> str:
        """Where the claim requires the effect to be, in words."""
        if self.differs:
            return "≠ 0"
        if math.isinf(self.high):
            return f"≥ {self.low:g}"
        if math.isinf(self.low):
            return f"≤ {self.high:g}"
        return f"within ±{self.high:g}"

    @property
    def margin(self) -> float | None:
        """Distance from the threshold to the interval's nearer end; negative where the interval
        crosses the threshold."""
        if not self.interval:
            return None
        first, last = self.interval
        if self.differs:
            return max(first, -last)
        return min(first - self.low, self.high - last)

    def level(self) -> tuple[bool, float]:
        """Whether the effect is where the claim requires it, and the smallest p that shows it."""
        if self.estimate is None:
            return False, 1.0  # without a standard error nothing can be shown
        if self.differs:
            _at_zero, p = self.estimate.level_of(0.0, 0.0)
            return True, p
        return self.estimate.level_of(self.low, self.high)


class Term(NamedTuple):
    """A cell in a comparison."""

    norm: str
    setting: Setting

    def __str__(self) -> str:
        return f"{method_label(self.norm)} {self.setting}"


def why_not_comparable(study: Study, term: Term) -> str:
    """Why the mean of a cell may not be compared; empty if it may."""
    cell = study.cell(*term)
    diverged = cell.states[DIVERGED]
    if not cell.runs:
        return f"{term} was not run"
    if cell.conflict:
        return f"{term}: the runs are not seeds of one experiment ({cell.conflict})"
    if diverged:
        return f"{term}: {diverged} of {len(cell.runs)} seeds diverged"
    if len(cell.values) < LEAST_SEEDS:
        return f"{term}: {len(cell.values)} finished, {LEAST_SEEDS} seeds are needed"
    return ""


def compare(
    study: Study,
    first: Term,
    second: Term,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    name: str = "",
    threshold_of_imagenet: bool = False,
    value: Value | None = None,
    unit: str = POINTS,
) -> Comparison:
    """Compare two cells, first minus second, by Welch's interval over seeds: their scores, or the
    numbers ``value`` of their runs, in ``unit``.

    The effect is given wherever both means exist. It enters a verdict only where both cells are
    comparable and differ in nothing else (:data:`~sn_imagenet.reporting.verdict.RULES`).
    """
    terms, cells = (first, second), (study.cell(*first), study.cell(*second))
    groups: list[Sequence[float]] = [cell.values for cell in cells]
    if value is not None:
        groups = [[v for run in cell.runs if (v := value(run)) is not None] for cell in cells]
    problems = [problem for term in terms if (problem := why_not_comparable(study, term))]
    if all(cell.runs for cell in cells) and (
        different := run_differences(cells[0].runs, cells[1].runs)
    ):
        problems.append(f"the two cells differ in {different}")
    if not problems:
        problems = [
            f"{term}: {len(group)} values, {LEAST_SEEDS} seeds are needed"
            for term, group in zip(terms, groups, strict=True)
            if len(group) < LEAST_SEEDS
        ]
    if threshold_of_imagenet and not study.matches_paper and not problems:
        problems.append(OTHER_DATA)
    return Comparison(
        name or f"{first} - {second}",
        tuple(dict.fromkeys(term.setting for term in terms)),
        low,
        high,
        effect=fmean(groups[0]) - fmean(groups[1]) if all(groups) else None,
        estimate=contrast(groups, [1.0, -1.0]) if all(groups) else None,
        why_not="; ".join(problems),
        test=_welch_text(groups) if value is None else "Welch's t interval over seeds",
        unit=unit,
        seeds={str(term): len(group) for term, group in zip(terms, groups, strict=True)},
        runs=tuple(run for cell in cells for run in cell.runs),
        validation=_validation_interval(cells) if value is None else None,
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
    return compare(study, Term(first, setting), Term(second, setting), low, high, name=name)


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


def _validation_interval(cells: Sequence[Summary]) -> Interval | None:
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
    value: Value,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    differs: bool = False,
    why_not: str = "",
    unit: str = POINTS,
) -> Comparison:
    """Compare two quantities of the same network. ``value`` is their difference in one run, and
    the interval is that of its mean over runs. Pairing is valid because both share the weights."""
    values = [v for run in runs if (v := value(run)) is not None]
    if not why_not and len(values) < LEAST_SEEDS:
        why_not = f"{len(values)} seeds, {LEAST_SEEDS} are needed"
    return Comparison(
        f"{name} {setting}",
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
