"""The guard's change test: what is counted, what a block says, and how simulated traffic fares with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom
from support.guard_simulation import STEP_S, ManyTests, Traffic, delays_s, false_alarms

from calibrator.core.live.change_test import (
    RATIOS,
    ChangeTest,
    GuardPolicy,
    above,
    alarm_at_s,
    histogram_of,
    least_exceeding,
    likelihood_ratio,
    next_bound_s,
    null_ratio,
)
from calibrator.core.records.objective import Metric, parse_objective
from calibrator.core.records.server_load import Histogram, ServerLoad

BOUNDS_S = (0.25, 0.5, 1.0, 2.5, math.inf)
HISTOGRAM = Histogram(BOUNDS_S, (70.0, 90.0, 96.0, 99.0, 100.0))


@pytest.mark.parametrize(
    ("text", "bound_s"),
    [
        ("ttft p99 <= 500ms", 0.5),  # a limit on a bound is judged exactly
        ("ttft p99 <= 0.5000000001s", 0.5),  # as is one that differs by rounding
        ("ttft p99 <= 501ms", 1.0),
        ("ttft p99 <= 3s", None),  # above the last bound the histogram tells nothing
        ("ttft p99 <= 500ms for prompts <= 1024 tokens", None),  # engines count all prompts together
    ],
)
def test_the_next_bound_at_or_above_the_limit_is_used(text: str, bound_s: float | None) -> None:
    assert next_bound_s(parse_objective(text), BOUNDS_S) == bound_s


@pytest.mark.parametrize(
    ("text", "bound_s", "expected"),
    [
        ("ttft p99 <= 500ms", 0.5, 0.02),  # on the bound: twice the allowance
        ("ttft p99 <= 500ms", 1.0, 0.0004),  # twice the limit, twice the exponent
        ("ttft p90 <= 500ms", 0.5, 0.2),
        ("ttft p50 <= 500ms", 0.5, 0.75),  # as in the zone of verdicts: never above certainty
    ],
)
def test_the_null_follows_an_exponential_tail_to_the_bound(text: str, bound_s: float, expected: float) -> None:
    assert null_ratio(parse_objective(text), bound_s) == pytest.approx(expected)


def test_each_metric_is_judged_by_its_own_histogram() -> None:
    load = ServerLoad("vllm", ttft_s=HISTOGRAM, e2e_s=Histogram((math.inf,), (1.0,)))
    assert histogram_of(load, Metric.TTFT) is histogram_of(load, Metric.TTFC) is load.ttft_s
    assert histogram_of(load, Metric.E2E) is load.e2e_s
    assert histogram_of(load, Metric.TPOT) is histogram_of(load, Metric.ITL) is None


def test_requests_above_a_bound() -> None:
    assert above(HISTOGRAM, 1.0) == (100.0, 4.0)


@pytest.mark.parametrize("p0", [0.0004, 0.02, 0.2, 0.75])
@pytest.mark.parametrize("n", [1, 6, 150, 3000])
def test_under_the_null_a_block_is_no_evidence_even_if_its_requests_stall_together(n: int, p0: float) -> None:
    """E[likelihood ratio] <= 1 is what the false alarm rate rests on; independent, and all of a cluster or none."""
    for ratio in RATIOS:
        needed = least_exceeding(n, p0, ratio)
        high, low = (likelihood_ratio(n, k, p0, ratio) for k in (n, 0))
        for worst in (binom.sf(needed - 1, n, p0), p0 * n / max(needed, 1) if needed <= n else 0.0):
            chance = min(1.0, float(worst))
            assert chance * high + (1.0 - chance) * low <= 1.0 + 1e-9
        assert high >= 1.0 >= low > 0.0


def test_one_stall_however_long_its_queue_is_one_bit() -> None:
    one, hundred = (ChangeTest().after(150.0, k, 3.0, 0.002).evidence_s for k in (1.0, 100.0))
    few = likelihood_ratio(150.0, 100.0, 0.002, 4.0)
    assert few < 5.0
    assert one <= hundred < 30.0


def test_time_without_requests_says_nothing() -> None:
    known = ChangeTest().after(6.0, 0.0, 3.0, 0.02)
    assert known.after(0.0, 0.0, 36_000.0, 0.02).evidence_s == known.evidence_s > 0.0


def test_a_block_is_judged_when_it_is_complete_and_may_be_forgotten() -> None:
    open_block = ChangeTest().after(2.0, 2.0, 1.0, 0.02).after(2.0, 2.0, 1.0, 0.02)
    assert open_block.evidence_s == 0.0
    assert open_block.after(2.0, 0.0, 1.0, 0.02) == ChangeTest().after(6.0, 4.0, 3.0, 0.02)
    assert open_block.without_block() == ChangeTest()


def test_several_objectives_share_the_false_alarms() -> None:
    policy = GuardPolicy(false_alarm_s=1000.0)
    assert alarm_at_s(policy, 3) == 3 * alarm_at_s(policy, 1)


def test_a_breach_from_one_moment_to_the_next_is_found_within_half_a_minute() -> None:
    """Every second request above the bound, 2 requests/s, the bound at 1.67 times the limit."""
    test, p0, time_s = ChangeTest(), null_ratio(parse_objective("ttft p99 <= 300ms"), 0.5), 0.0
    while test.evidence_s < alarm_at_s(GuardPolicy(), 1):
        test, time_s = test.after(6.0, 3.0, 3.0, p0), time_s + 3.0
    assert 9.0 <= time_s <= 30.0  # and not at once: one stall never decides


# ------------------------------------------------------------------------------ simulated traffic; in full: bench_guard
def test_the_simulation_repeats_the_test_itself() -> None:
    traffic, p0, rng = Traffic(2.0, 0.05), 0.02, np.random.default_rng(5)
    many = ManyTests(p0, 60, 1)
    alone = ChangeTest()
    for n, k in zip(*traffic.blocks(rng, 40, 1), strict=True):
        alone = alone.after(float(n[0]), float(k[0]), STEP_S, p0)
        many.step(n, k)
        assert many.statistics_s[:, 0] == pytest.approx(alone.statistics_s)


@pytest.mark.parametrize(
    ("shape", "bound_ratio", "per_second", "median_s", "found_ratio"),
    [
        ("exponential", 1.25, 2.0, 120.0, 0.90),
        ("exponential", 1.67, 2.0, 180.0, 0.70),  # 8 requests above the bound in 3 minutes are all there is to see
        ("0.5", 1.25, 2.0, 90.0, 0.95),
        ("0.3", 1.67, 2.0, 90.0, 0.95),
        ("exponential", 1.67, 50.0, 60.0, 0.99),
    ],
)
def test_a_doubled_p99_is_found_within_three_minutes(
    shape: str, bound_ratio: float, per_second: float, median_s: float, found_ratio: float
) -> None:
    found = delays_s(shape, bound_ratio, per_second, copies=400, seed=3)
    assert np.median(found) <= median_s
    assert (found <= 180.0).mean() >= found_ratio


@pytest.mark.parametrize(("per_second", "cluster"), [(2.0, 1.0), (50.0, 1.0), (2.0, 4.0), (50.0, 16.0)])
def test_at_the_upper_end_of_the_zone_a_week_passes_between_false_alarms(per_second: float, cluster: float) -> None:
    """30 weeks; 45 alarms would be 2.7 standard deviations too many for one a week."""
    assert false_alarms("exponential", 1.25, per_second, weeks=0.2, copies=150, seed=4, cluster=cluster) <= 45
