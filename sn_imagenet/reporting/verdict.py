"""From comparisons to one of four verdicts. The rules were fixed before any run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from sn_imagenet.reporting.statistics import Estimate, Interval, holm
from sn_imagenet.runs import Run, Setting

LEAST_SEEDS = 3

RULES = (
    'holds: the whole 95 % interval lies on the claim\'s side (for "within d": inside ±d). '
    "does not hold: it lies wholly on the other side. Otherwise undecided.",
    "Several comparisons in one claim: Holm's method at 5 % over those tested. All hold: the claim "
    "holds; one does not: it does not. Settings that were not run are named, not guessed.",
    f"Fewer than {LEAST_SEEDS} seeds a side: not tested; a counted claim needs no seeds.",
    "Not tested either: a side with a diverged seed (a mean over survivors is no mean of the "
    "method), runs that differ in more than normalizer and setting, and a threshold of ImageNet's "
    "on other data, where the effect is given instead.",
    "Intervals are over seeds (Welch). What the finite validation set adds is given apart "
    "(validation_interval: Wilson, Newcombe) and enters no verdict.",
    "Seeds do not pair methods: after a few hundred steps runs of one seed have nothing in common. "
    "Two statistics, or two layers, of the same network are paired: the interval is of the "
    "runs' own differences.",
)


class Verdict(StrEnum):
    """The four answers; the value is what ``claims.json`` says."""

    HOLDS = "holds"
    DOES_NOT = "does not hold"
    UNDECIDED = "undecided"
    NOT_TESTED = "not tested"


@dataclass(frozen=True)
class Comparison:
    """One effect, and where it must lie for the claim: within [low, high], or, ``differs``,
    anywhere but at 0.

    ``estimate`` is None without seeds or spread to judge by. ``why_not`` says why it does not enter
    the verdict; an effect may still be shown, say because the threshold is of other data.
    ``seeds``: label of a side -> seeds. ``validation``: the interval of the finite validation set.
    """

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
        """Whether it enters the verdict."""
        return not self.why_not

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval over seeds."""
        return self.estimate.interval() if self.estimate else None

    @property
    def threshold(self) -> str:
        """Where the effect must lie, in words."""
        if self.differs:
            return "≠ 0"
        if math.isinf(self.high):
            return f"≥ {self.low:g}"
        if math.isinf(self.low):
            return f"≤ {self.high:g}"
        return f"within ±{self.high:g}"

    @property
    def margin(self) -> float | None:
        """By how much the interval's nearer end lies on the claim's side; negative where the
        interval reaches over the threshold."""
        if not self.interval:
            return None
        first, last = self.interval
        if self.differs:
            return max(first, -last)
        return min(first - self.low, self.high - last)

    def level(self) -> tuple[bool, float]:
        """On the claim's side or not, and the smallest p at which that is shown."""
        if self.estimate is None:
            return False, 1.0  # without an error nothing can be shown
        if self.differs:
            _at_zero, p = self.estimate.level_of(0.0, 0.0)
            return True, p
        return self.estimate.level_of(self.low, self.high)


@dataclass(frozen=True)
class Judgment:
    """A claim about one task with its verdict; ``verdicts`` has one for each of ``comparisons``.

    ``counted`` is the effect in words where the claim is counted (claims 5 and 12).
    """

    verdict: Verdict
    comparisons: tuple[Comparison, ...]
    verdicts: tuple[Verdict, ...]
    note: str = ""
    counted: str = ""
    runs: tuple[Run, ...] = ()
    seeds: dict[str, int] = field(default_factory=dict)
    settings: tuple[Setting, ...] = ()

    @property
    def deciding(self) -> Comparison | None:
        """The comparison furthest from the claim's side: the claim is as strong as this one."""
        shown = [c for c in self.comparisons if c.effect is not None]
        of_tested = [c for c in shown if c.tested] or shown
        return min(of_tested, key=lambda c: c.margin or 0.0, default=None)

    @property
    def why_not(self) -> str:
        """Why comparisons do not enter the verdict, four reasons and how many more: first why what
        was measured does not count, then what is not there."""
        measured_first = sorted(self.comparisons, key=lambda c: c.effect is None)
        reasons = [r for c in measured_first if c.why_not for r in c.why_not.split("; ")]
        each_once = list(dict.fromkeys(reasons))
        more = len(each_once) - 4
        return "; ".join(each_once[:4] + ([f"and {more} more"] if more > 0 else []))


def judge(
    comparisons: Sequence[Comparison], *, all_parts: bool = False, note: str = ""
) -> Judgment:
    """Judge a claim by its comparisons; ``all_parts``: they are parts of one statement, so that
    it cannot hold before each is tested, while settings that were not run are only named."""
    tested = [c for c in comparisons if c.tested]
    shown = holm([c.level()[1] for c in tested])
    verdicts: dict[int, Verdict] = {}
    for comparison, rejected in zip(tested, shown, strict=True):
        inside, _p = comparison.level()
        side = Verdict.HOLDS if inside else Verdict.DOES_NOT
        verdicts[id(comparison)] = side if rejected else Verdict.UNDECIDED
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
    """A claim of the paper and how it is judged on the runs of one task."""

    number: int
    text: str
    source: str
    judge: Callable[..., Judgment]
