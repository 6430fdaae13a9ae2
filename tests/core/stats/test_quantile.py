"""Quantiles and ratios say what a sample supports, and None or (0, 1) beyond."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from calibrator.core.stats.quantile import quantile_estimate, ratio_interval, summarise


@pytest.mark.parametrize(
    ("n", "quantile", "supported"),
    [
        (0, 0.5, False),  # nothing seen
        (5, 0.5, False),  # the smallest of five is above the median in more than 2.5 % of samples
        (6, 0.5, True),
        (99, 0.99, False),  # less than one value expected above the P99
        (100, 0.99, True),
        (999, 0.999, False),
        (1000, 0.999, True),
    ],
)
def test_a_quantile_is_given_only_where_n_supports_it(n: int, quantile: float, supported: bool) -> None:  # noqa: FBT001 - a column
    assert (quantile_estimate(range(n), quantile) is not None) is supported


def test_ranks_agree_with_an_independent_calculation() -> None:
    for n, quantile in [(100, 0.5), (500, 0.9), (1000, 0.99), (2000, 0.99)]:
        estimate = quantile_estimate(range(1, n + 1), quantile)  # value = rank
        assert estimate is not None
        assert estimate.value_s == math.ceil(n * quantile)
        assert estimate.low_s == stats.binom.ppf(0.025, n, quantile)
        assert estimate.high_s == stats.binom.ppf(0.975, n, quantile) + 1


def test_100_values_do_not_bound_a_p99_from_above() -> None:
    estimate = quantile_estimate(range(100), 0.99)
    assert estimate is not None
    assert estimate.high_s is None


def test_a_quantile_among_failures_is_none() -> None:
    values = [1.0] * 95 + [math.inf] * 5
    assert quantile_estimate(values, 0.99) is None
    median = quantile_estimate(values, 0.5)
    assert median is not None
    assert median.value_s == 1.0


def test_an_upper_bound_among_failures_is_none() -> None:
    values = [*np.linspace(0.0, 1.0, 992), *[math.inf] * 8]
    estimate = quantile_estimate(values, 0.99)
    assert estimate is not None
    assert estimate.high_s is None


def test_intervals_cover_the_true_quantile() -> None:
    """Nominal 95 % and conservative; 2000 samples of 300 lognormal latencies."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(2000):
        estimate = quantile_estimate(rng.lognormal(0.0, 0.5, 300), 0.9)
        assert estimate is not None
        assert estimate.high_s is not None
        covered += estimate.low_s <= math.exp(0.5 * 1.2815516) <= estimate.high_s
    assert covered / 2000 >= 0.94


@given(st.lists(st.floats(0.0, 100.0), max_size=300))
def test_order_does_not_matter_and_bounds_are_ordered(values: list[float]) -> None:
    summary = summarise(values)
    assert summary == summarise(sorted(values))
    assert summary.n == len(values)
    for estimate in (summary.p50, summary.p90, summary.p99):
        if estimate is not None:
            assert estimate.low_s <= estimate.value_s
            assert estimate.high_s is None or estimate.value_s <= estimate.high_s


@pytest.mark.parametrize(("exceedances", "n"), [(0, 300), (3, 300), (150, 300), (300, 300), (1, 24)])
def test_ratio_interval_is_clopper_pearson(exceedances: int, n: int) -> None:
    low, high = ratio_interval(exceedances, n, float(n))
    exact = stats.binomtest(exceedances, n).proportion_ci(0.95, "exact")
    assert (low, high) == pytest.approx((exact.low, exact.high))


@given(st.integers(1, 2000), st.floats(0.0, 1.0), st.floats(1.0, 8.0))
def test_correlation_widens_the_ratio_interval(n: int, share: float, effect: float) -> None:
    exceedances = round(share * n)
    low, high = ratio_interval(exceedances, n, n / effect)
    sharp_low, sharp_high = ratio_interval(exceedances, n, float(n))
    assert 0.0 <= low <= sharp_low + 1e-9
    assert sharp_high - 1e-9 <= high <= 1.0
    assert low <= exceedances / n <= high


def test_nothing_seen_is_no_ratio() -> None:
    assert ratio_interval(0, 0, 0.0) == (0.0, 1.0)
