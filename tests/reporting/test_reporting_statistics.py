"""Intervals and tests against independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sn_imagenet.reporting.statistics import (
    contrast,
    holm,
    mean_interval,
    proportion_difference,
    proportion_interval,
)

A, B = [76.9, 76.6, 77.2], [75.9, 76.4, 76.0, 75.1]


def test_interval_of_one_mean_is_students() -> None:
    expected = stats.ttest_1samp(A, 0).confidence_interval(0.95)
    assert mean_interval(A) == pytest.approx((expected.low, expected.high))


def test_interval_of_a_difference_is_welchs() -> None:
    expected = stats.ttest_ind(A, B, equal_var=False)
    interval = expected.confidence_interval(0.95)
    estimate = contrast([A, B], [1, -1])
    assert estimate is not None
    assert estimate.interval == pytest.approx((interval.low, interval.high))
    inside, p = estimate.level_of(-math.inf, 0)
    assert (inside, p) == (False, pytest.approx(expected.pvalue))


@settings(max_examples=50, deadline=None)
@given(st.floats(-2, 2), st.floats(0.01, 2))
def test_the_level_is_where_the_interval_touches_the_region(low: float, width: float) -> None:
    estimate = contrast([A, B], [1, -1])
    assert estimate is not None
    inside, p = estimate.level_of(low, low + width)
    assert estimate.error is not None
    half = stats.t.ppf(1 - p / 2, estimate.degrees) * estimate.error
    first, last = estimate.effect - half, estimate.effect + half
    if inside:
        assert max(low - first, last - low - width) == pytest.approx(0, abs=1e-7)
    else:
        assert min(abs(last - low), abs(first - low - width)) == pytest.approx(0, abs=1e-7)


def test_no_interval_without_spread_or_seeds() -> None:
    def interval(*groups: list[float]) -> tuple[float, float] | None:
        estimate = contrast(groups, [1, -1])
        assert estimate is not None and estimate.effect == np.mean(groups[0]) - np.mean(groups[1])
        return estimate.interval

    assert contrast([[], [2.0, 3.0]], [1, -1]) is None
    assert interval([1.0], [2.0, 3.0]) is None
    assert interval([1.0, 1.0], [2.0, 2.0]) is None
    assert interval([1.0, 1.0], [2.0, 2.5]) is not None


def test_welch_interval_has_its_nominal_coverage() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        groups = [list(rng.normal(1.0, 2.0, 3)), list(rng.normal(0.0, 0.5, 3))]
        estimate = contrast(groups, [1, -1])
        assert estimate is not None and estimate.interval is not None
        covered += estimate.interval[0] <= 1.0 <= estimate.interval[1]
    # With three seeds per group and unequal variances Welch is slightly conservative or liberal.
    assert 0.92 < covered / 2000 < 0.98


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert holm([0.04]) == [True]
    assert holm([0.02, 0.03]) == [True, True]
    assert holm([]) == []


def test_validation_set_intervals_by_formula() -> None:
    def wilson(p: float, n: int) -> tuple[float, float]:
        z = 1.959963984540054
        center = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return 100 * (center - half), 100 * (center + half)

    assert proportion_interval(300, 400) == pytest.approx(wilson(0.75, 400))
    (l1, u1), (l2, u2) = wilson(0.75, 400), wilson(0.6, 400)
    assert proportion_difference((300, 400), (240, 400)) == pytest.approx(
        (15 - math.hypot(75 - l1, u2 - 60), 15 + math.hypot(u1 - 75, 60 - l2))
    )
