"""Intervals and tests for a handful of seeds, and for a finite validation set.

The two uncertainties are different and never mixed. The spread over *seeds* tells how another run
of the same experiment would do on the same validation images. The finite *validation set* tells how
the same networks would do on another draw of as many images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

import scipy  # imports scipy.stats, which takes a second, on first use

LEVEL = 0.95
Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A linear contrast of group means with its uncertainty over seeds.

    ``error``: standard error, None without one (a group of one value, or no spread at all).
    ``degrees``: degrees of freedom (Welch, Satterthwaite).
    """

    effect: float
    error: float | None
    degrees: float = math.nan

    @property
    def interval(self) -> Interval | None:
        """The two-sided 95 % t interval of the effect, None without a standard error."""
        if self.error is None:
            return None
        half = scipy.stats.t.ppf(0.5 + LEVEL / 2, self.degrees) * self.error
        return self.effect - half, self.effect + half

    def level_of(self, low: float, high: float) -> tuple[bool, float]:
        """Whether the effect is within [low, high], and the smallest p for which the two-sided
        interval of level 1 - p is entirely on the same side as the effect (inside or outside); 1
        without a standard error, as then nothing can be shown.
        """
        inside = low <= self.effect <= high
        if self.error is None:
            return inside, 1.0
        gaps = self.effect - low, high - self.effect
        distance = min(gaps) if inside else -min(gaps)
        return inside, float(2 * scipy.stats.t.sf(distance / self.error, self.degrees))


def contrast(groups: Sequence[Sequence[float]], coefficients: Sequence[float]) -> Estimate | None:
    """sum_i c_i mean(group_i), each group with its own variance (Welch, Satterthwaite); None if a
    group is empty.

    (1,) gives the t interval of one mean, (1, -1) Welch's of a difference, the centered
    log2(samples) the slope of a trend.

    A shared seed does not pair runs of two methods. It gives them the same initial convolutions and
    order of samples, but after a few hundred steps the weights have nothing in common, so the runs
    are treated as independent.
    """
    if not all(groups):
        return None
    effect = math.fsum(c * fmean(g) for c, g in zip(coefficients, groups, strict=True))
    if any(len(group) < 2 for group in groups):
        return Estimate(effect, None)
    parts = [c**2 * variance(g) / len(g) for c, g in zip(coefficients, groups, strict=True)]
    total = math.fsum(parts)
    # Values that are differences may be equal only up to rounding.
    if total <= (1e-12 * max(1.0, abs(effect))) ** 2:
        return Estimate(effect, None)
    degrees = total**2 / math.fsum(p**2 / (len(g) - 1) for p, g in zip(parts, groups, strict=True))
    return Estimate(effect, math.sqrt(total), degrees)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """The 95 % t interval of a mean over seeds; None below two seeds or without spread."""
    estimate = contrast([values], [1.0])
    return estimate.interval if estimate else None


def holm(p_values: Sequence[float], alpha: float = 1 - LEVEL) -> list[bool]:
    """Which hypotheses Holm's step-down method rejects at family-wise level ``alpha``."""
    rejected = [False] * len(p_values)
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[i] > alpha / (len(p_values) - rank):
            break
        rejected[i] = True
    return rejected


def proportion_interval(correct: float, seen: int) -> Interval:
    """Wilson's 95 % interval of an accuracy, in percent, for another draw of ``seen`` images.
    ``correct`` may be a mean of counts over seeds, which all saw the same images."""
    wilson = scipy.stats.binomtest(round(correct), seen).proportion_ci(LEVEL, method="wilson")
    return 100 * float(wilson.low), 100 * float(wilson.high)


def proportion_difference(first: tuple[float, int], second: tuple[float, int]) -> Interval:
    """Newcombe's 95 % interval of the difference of two accuracies, in percent, for another draw
    of the validation images; each accuracy is (correct, seen).

    Counts do not tell which images both classify correctly, so the accuracies are treated as
    independent. The interval is too wide if both misclassify the same images.
    """
    a, b = (100 * correct / seen for correct, seen in (first, second))
    (a_low, a_high), (b_low, b_high) = (proportion_interval(*side) for side in (first, second))
    return (a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low))
