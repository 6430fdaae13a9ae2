"""Spells of slow requests are seen in the latencies, before there is any violation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from calibrator.core.stats.autocorrelation import CorrelationTime, correlation_time


def ar1(rng: np.random.Generator, n: int, phi: float) -> list[float]:
    value, out = float(rng.standard_normal()), []
    for _ in range(n):
        value = phi * value + math.sqrt(1 - phi * phi) * float(rng.standard_normal())
        out.append(value)
    return out


def clustered(rng: np.random.Generator, n: int, size: int) -> list[float]:
    """Every `size` requests share one latency: the variance of any count is `size` times that of independent ones."""
    return [float(x) for x in np.repeat(rng.exponential(size=n // size + 1), size)[:n]]


@pytest.mark.parametrize("n", [50, 250, 2000])
def test_independent_latencies_count_in_full(n: int) -> None:
    rng = np.random.default_rng(1)
    seen = [correlation_time(rng.exponential(size=n)) for _ in range(40)]
    assert np.median([found.at_tail(0.01) for found in seen if found]) < 1.2


@pytest.mark.parametrize("size", [4, 16])
def test_whole_clusters_count_as_one(size: int) -> None:
    rng = np.random.default_rng(2)
    found = correlation_time(clustered(rng, 20_000, size))
    assert found is not None
    assert found.at_tail(0.01) == pytest.approx(size, rel=0.35)


def test_a_gaussian_tail_forgets_faster_than_its_body() -> None:
    """AR(1): the indicator of a far tail is less correlated; the true inflation is computed from the same series."""
    rng = np.random.default_rng(3)
    values = np.asarray(ar1(rng, 200_000, 0.8))
    found = correlation_time(list(values))
    assert found is not None
    flags = values > np.quantile(values, 0.99)
    blocks = flags[: 200 * 1000].reshape(-1, 200).sum(axis=1)
    true_inflation = blocks.var() / (200 * 0.01 * 0.99)
    assert found.at_p90 < found.at_p80
    assert 0.7 * true_inflation < found.at_tail(0.01) < 1.6 * true_inflation


def test_more_samples_see_longer_spells() -> None:
    rng = np.random.default_rng(4)
    short = [correlation_time(clustered(rng, 60, 20)) for _ in range(50)]
    long = [correlation_time(clustered(rng, 2000, 20)) for _ in range(20)]
    assert np.median([s.at_p80 for s in short if s]) < np.median([s.at_p80 for s in long if s])


def test_too_few_and_constant_latencies() -> None:
    assert correlation_time([0.1] * 23) is None
    assert correlation_time([0.1] * 100) == CorrelationTime(100, 1.0, 1.0)


def test_failures_are_the_slowest_requests() -> None:
    values = [0.1 + 0.001 * (i % 7) for i in range(200)]
    for start in (40, 140):
        values[start : start + 15] = [math.inf] * 15
    found = correlation_time(values)
    assert found is not None
    assert found.at_p90 > 5.0
