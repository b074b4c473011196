"""Comparisons of two cells, or of two numbers of the same network, and the verdict on a claim that
follows from them. The rules were fixed before any run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from itertools import chain
from statistics import fmean
from typing import NamedTuple

from sn_imagenet.reporting.cells import Summary, run_differences
from sn_imagenet.reporting.render import decimals
from sn_imagenet.reporting.statistics import (
    Estimate,
    Interval,
    contrast,
    holm,
    proportion_difference,
)
from sn_imagenet.reporting.study import Study
from sn_imagenet.runs import DIVERGED, Run, Setting
from sn_imagenet.runs.scores import TOP1

LEAST_SEEDS = 3
OTHER_DATA = "the paper's threshold is for ImageNet; the effect is measured on other data"
WEIGHT = "importance weight"
Value = Callable[[Run], float | None]

RULES = (
    'holds: the whole 95 % interval is where the claim requires it (for "within d": inside ±d). '
    "does not hold: the whole interval is elsewhere. Otherwise undecided.",
    "Several comparisons in one claim: Holm's method at 5 % over the tested ones. The claim holds "
    "if all hold, and does not hold if one does not. Settings that were not run are named.",
    f"Fewer than {LEAST_SEEDS} seeds in a cell: not tested. A counted claim needs no seeds. "
    "3 seeds against 3 cannot give p < 0.1 in an exact permutation test.",
    "Also not tested: cells with a diverged seed (the mean of the others is not the method's "
    "mean), runs that differ in more than method and setting, and ImageNet's thresholds on other "
    "data, where only the effect is given.",
    "Intervals are over seeds (Welch). The uncertainty of the finite validation set is given "
    "separately (validation_interval: Wilson, Newcombe) and does not affect verdicts.",
    "A shared seed does not pair two methods: after a few hundred steps their runs have nothing in "
    "common. Two statistics or two layers of the same network are paired: the interval is of the "
    "differences within runs.",
)


class Verdict(StrEnum):
    """The four verdicts, as ``claims.json`` writes them."""

    HOLDS = "holds"
    DOES_NOT = "does not hold"
    UNDECIDED = "undecided"
    NOT_TESTED = "not tested"


@dataclass(frozen=True)
class Comparison:
    """One effect, and where the claim requires it: within [low, high], or not at 0 (``differs``).

    The effect is the sum of the means of ``groups`` (label of a cell -> values of its seeds) times
    ``coefficients``. ``why_not`` says why the comparison does not enter the verdict; its effect may
    still be shown, e.g. if the threshold is for other data. ``validation``: the interval for the
    finite validation set.
    """

    name: str
    settings: tuple[Setting, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    groups: Mapping[str, Sequence[float]] = field(default_factory=dict)
    coefficients: Sequence[float] = (1.0, -1.0)
    why_not: str = ""
    differs: bool = False
    test: str = ""
    unit: str = ""
    runs: tuple[Run, ...] = ()
    validation: Interval | None = None

    @cached_property
    def estimate(self) -> Estimate | None:
        """The effect with its uncertainty; None without seeds."""
        return contrast([*self.groups.values()], self.coefficients) if self.groups else None

    @property
    def seeds(self) -> dict[str, int]:
        """Label of a cell -> number of seeds."""
        return {label: len(values) for label, values in self.groups.items()}

    @property
    def digits(self) -> int:
        """Decimals of the effect as shown."""
        unit = "%" if self.unit.startswith("points") else ""
        return 4 if self.unit == WEIGHT else decimals(chain(*self.groups.values()), unit)

    @property
    def tested(self) -> bool:
        """Whether the comparison enters the verdict."""
        return not self.why_not

    @property
    def effect(self) -> float | None:
        return self.estimate.effect if self.estimate else None

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval over seeds."""
        return self.estimate.interval if self.estimate else None

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
            return False, 1.0
        if self.differs:
            return True, self.estimate.level_of(0.0, 0.0)[1]
        return self.estimate.level_of(self.low, self.high)


class Term(NamedTuple):
    """A cell in a comparison."""

    norm: str
    setting: Setting

    @classmethod
    def parse(cls, text: str) -> Term:
        """From ``bn 8x2``."""
        norm, _, setting = text.partition(" ")
        return cls(norm, Setting.parse(setting))


def values_of(cell: Summary, value: Value) -> list[float]:
    """The numbers ``value`` of the seeds of a cell that have one."""
    return [number for run in cell.counted if (number := value(run)) is not None]


def why_not_comparable(study: Study, term: Term, value: Value = Run.score_value) -> str:
    """Why the mean of a cell may not be compared; empty if it may."""
    cell, name = study.cell(*term), study.cell_name(*term)
    diverged, count = cell.states[DIVERGED], len(values_of(cell, value))
    if not cell.runs:
        return f"{name} was not run"
    if cell.conflict:
        return f"{name}: the runs are not seeds of one experiment ({cell.conflict})"
    if diverged:
        return f"{name}: {diverged} of {len(cell.runs)} seeds diverged"
    if count < LEAST_SEEDS:
        return f"{name}: {count} finished, {LEAST_SEEDS} seeds are needed"
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
    value: Value = Run.score_value,
    unit: str = "",
    test: str = "Welch's t interval over seeds",
) -> Comparison:
    """Compare two cells, first minus second, by Welch's interval over seeds: their scores, or the
    numbers ``value`` of their runs, in ``unit``.

    The effect is given wherever both means exist. It enters a verdict only where both cells are
    comparable and differ in nothing else (:data:`~sn_imagenet.reporting.verdict.RULES`).
    """
    terms, cells = (first, second), (study.cell(*first), study.cell(*second))
    names = [study.cell_name(*term) for term in terms]
    problems = [problem for term in terms if (problem := why_not_comparable(study, term, value))]
    if different := run_differences(cells[0].runs, cells[1].runs):
        problems.append(f"the two cells differ in {different}")
    if threshold_of_imagenet and not study.matches_paper and not problems:
        problems.append(OTHER_DATA)
    label = study.score.label
    return Comparison(
        name or " - ".join(names),
        tuple(dict.fromkeys(term.setting for term in terms)),
        low,
        high,
        {name: values_of(cell, value) for name, cell in zip(names, cells, strict=True)},
        why_not="; ".join(problems),
        test=test,
        unit=unit or (f"points of {label}" if study.score.unit == "%" else label),
        runs=tuple(run for cell in cells for run in cell.runs),
        validation=_validation_interval(cells) if value is Run.score_value else None,
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
    name = f"{study.label(first)}-{study.label(second)} {setting}"
    return compare(study, Term(first, setting), Term(second, setting), low, high, name=name)


def _validation_interval(cells: Sequence[Summary]) -> Interval | None:
    """The interval that the finite validation set gives the difference of two top-1; None without
    counts."""
    counts = []
    for cell in cells:
        evaluations = [run.counted_evaluations[run.statistics] for run in cell.counted]
        sizes = {numbers.get("seen") for numbers in evaluations}
        size = sizes.pop() if len(sizes) == 1 else None
        if not size or cell.counted[0].score != TOP1:
            return None
        counts.append((fmean(cell.values) * size / 100, size))
    return proportion_difference(*counts)


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
    unit: str = "points of top-1",
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
        {str(setting): values},
        (1.0,),
        why_not,
        differs,
        test="t interval over seeds of the difference within each run",
        unit=unit,
        runs=tuple(runs),
    )


@dataclass(frozen=True)
class Judgment:
    """The verdict on a claim about one study; ``verdicts`` has one for each of ``comparisons``.

    ``counted``: the effect in words where the claim is judged by counting (claims 5 and 12, and
    studies' statements). ``measured``: range and margin over pairs of seeds, in short. ``runs``,
    ``seeds`` (by label of a cell) and ``settings``: what it is about."""

    verdict: Verdict
    comparisons: tuple[Comparison, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    runs: tuple[Run, ...] = ()
    seeds: dict[str, int] = field(default_factory=dict)
    settings: tuple[Setting, ...] = ()
    note: str = ""
    counted: str = ""
    measured: str = ""

    @property
    def deciding(self) -> Comparison | None:
        """The comparison with the smallest margin: the claim is as strong as this one."""
        shown = [c for c in self.comparisons if c.effect is not None]
        candidates = [c for c in shown if c.tested] or shown
        return min(candidates, key=lambda c: c.margin or 0.0, default=None)

    @property
    def why_not(self) -> str:
        """Why a claim is not tested: four reasons and the number of others, those of measured
        comparisons first. Empty for other verdicts."""
        if self.verdict is not Verdict.NOT_TESTED:
            return ""
        measured_first = sorted(self.comparisons, key=lambda c: c.effect is None)
        reasons = [r for c in measured_first if c.why_not for r in c.why_not.split("; ")]
        unique = list(dict.fromkeys(reasons))
        more = len(unique) - 4
        return "; ".join(unique[:4] + ([f"and {more} more"] if more > 0 else []))


def judge(comparisons: Sequence[Comparison], *, all_parts: bool = False) -> Judgment:
    """Judge a claim by its comparisons. ``all_parts``: the comparisons are parts of one statement,
    which cannot hold before each is tested. Otherwise untested settings are only named."""
    tested = [c for c in comparisons if c.tested]
    rejections = iter(holm([c.level()[1] for c in tested]))
    verdicts = [
        Verdict.NOT_TESTED
        if not comparison.tested
        else Verdict.UNDECIDED
        if not next(rejections)
        else Verdict.HOLDS
        if comparison.level()[0]
        else Verdict.DOES_NOT
        for comparison in comparisons
    ]
    shown = tested or comparisons
    return Judgment(
        combined(verdicts, all_parts),
        tuple(comparisons),
        tuple(verdicts),
        tuple(dict.fromkeys(run for c in shown for run in c.runs)),
        {label: count for c in shown for label, count in c.seeds.items()},
        tuple(dict.fromkeys(setting for c in tested for setting in c.settings)),
    )


def combined(verdicts: Sequence[Verdict], all_parts: bool = False) -> Verdict:
    """The verdict on a claim from those of its parts; ``all_parts`` as in :func:`judge`."""
    tested = [v for v in verdicts if v is not Verdict.NOT_TESTED]
    if Verdict.DOES_NOT in tested:
        return Verdict.DOES_NOT
    if not tested or (all_parts and len(tested) < len(verdicts)):
        return Verdict.NOT_TESTED
    return Verdict.UNDECIDED if Verdict.UNDECIDED in tested else Verdict.HOLDS


def count_verdict(agreeing: int, total: int) -> Verdict:
    """The verdict by counting: it holds if all agree, and does not hold if none does."""
    if not total:
        return Verdict.NOT_TESTED
    if agreeing == total:
        return Verdict.HOLDS
    return Verdict.UNDECIDED if agreeing else Verdict.DOES_NOT


@dataclass(frozen=True)
class Claim:
    """A claim of the paper or of a study, and the function that judges it on a study."""

    number: int
    text: str
    source: str
    judge: Callable[..., Judgment]
