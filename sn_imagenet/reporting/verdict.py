"""One of four verdicts from comparisons. The rules were fixed before any run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from sn_imagenet.reporting.comparison import LEAST_SEEDS, Comparison
from sn_imagenet.reporting.statistics import holm
from sn_imagenet.runs import Run, Setting

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
class Judgment:
    """The verdict on a claim about one study; ``verdicts`` has one for each of ``comparisons``.

    ``counted``: the effect in words where the claim is judged by counting (claims 5 and 12, and
    studies' statements). ``measured``: range and margin over pairs of seeds, in short. ``runs``,
    ``seeds`` (by label of a cell) and ``settings``: what it is about."""

    verdict: Verdict
    comparisons: tuple[Comparison, ...]
    verdicts: tuple[Verdict, ...]
    runs: tuple[Run, ...]
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
        _combined(verdicts, all_parts),
        tuple(comparisons),
        tuple(verdicts),
        tuple(dict.fromkeys(run for c in shown for run in c.runs)),
        {label: count for c in shown for label, count in c.seeds.items()},
        tuple(dict.fromkeys(setting for c in tested for setting in c.settings)),
    )


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
