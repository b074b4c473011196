"""One of four verdicts from comparisons. The rules were fixed before any run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from sn_imagenet.reporting.statistics import Estimate, Interval, holm
from sn_imagenet.runs import Run, Setting

LEAST_SEEDS = 3

RULES = (
    'holds: the whole 95 % interval is where the claim requires it (for "within d": inside ±d). '
    "does not hold: the whole interval is elsewhere. Otherwise undecided.",
    "Several comparisons in one claim: Holm's method at 5 % over the tested ones. The claim holds "
    "if all hold, and does not hold if one does not. Settings that were not run are named.",
    f"Fewer than {LEAST_SEEDS} seeds in a cell: not tested. A counted claim needs no seeds.",
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
    unit: str = "points of top-1"
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


@dataclass(frozen=True)
class Judgment:
    """The verdict on a claim about one study; ``verdicts`` has one for each of ``comparisons``.

    ``counted``: the effect in words where the claim is judged by counting (claims 5 and 12, and
    studies' statements). ``measured``: range and margin over pairs of seeds, in short."""

    verdict: Verdict
    comparisons: tuple[Comparison, ...]
    verdicts: tuple[Verdict, ...]
    note: str = ""
    counted: str = ""
    measured: str = ""
    runs: tuple[Run, ...] = ()
    seeds: dict[str, int] = field(default_factory=dict)
    settings: tuple[Setting, ...] = ()

    @property
    def deciding(self) -> Comparison | None:
        """The comparison with the smallest margin: the claim is as strong as this one."""
        shown = [c for c in self.comparisons if c.effect is not None]
        candidates = [c for c in shown if c.tested] or shown
        return min(candidates, key=lambda c: c.margin or 0.0, default=None)

    @property
    def why_not(self) -> str:
        """Why comparisons do not enter the verdict: four reasons and the number of others, those of
        measured comparisons first."""
        measured_first = sorted(self.comparisons, key=lambda c: c.effect is None)
        reasons = [r for c in measured_first if c.why_not for r in c.why_not.split("; ")]
        unique = list(dict.fromkeys(reasons))
        more = len(unique) - 4
        return "; ".join(unique[:4] + ([f"and {more} more"] if more > 0 else []))


def judge(
    comparisons: Sequence[Comparison], *, all_parts: bool = False, note: str = ""
) -> Judgment:
    """Judge a claim by its comparisons. ``all_parts``: the comparisons are parts of one statement,
    which cannot hold before each is tested. Otherwise untested settings are only named."""
    tested = [c for c in comparisons if c.tested]
    rejections = holm([c.level()[1] for c in tested])
    verdicts: dict[int, Verdict] = {}
    for comparison, rejected in zip(tested, rejections, strict=True):
        inside, _p = comparison.level()
        verdict = Verdict.HOLDS if inside else Verdict.DOES_NOT
        verdicts[id(comparison)] = verdict if rejected else Verdict.UNDECIDED
    each = tuple(verdicts.get(id(c), Verdict.NOT_TESTED) for c in comparisons)
    return Judgment(_combined(each, all_parts), tuple(comparisons), each, note)


def _combined(verdicts: Sequence[Verdict], all_parts: bool) -> Verdict:
    tested = [v for v in verdicts if v is not Verdict.NOT_TESTED]
    if Verdict.DOES_NOT in tested:
        return Verdict.DOES_NOT
    if not tested or (all_parts and len(tested) < len(verdicts)):
        return Verdict.NOT_TESTED
    return Verdict.UNDECIDED if Verdict.UNDECIDED in tested else Verdict.HOLDS


@dataclass(frozen=True)
class Claim:
    """A claim of the paper or of a study, and the function that judges it on a study."""

    number: int
    text: str
    source: str
    judge: Callable[..., Judgment]
