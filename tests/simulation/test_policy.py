"""The short form of `calibrator simulate`: 60 backends, wide bounds. The full one is `benchmarks/bench_policy.py`."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from calibrator.core.records.history import Bounds
from calibrator.core.simulation.backends import CORE, MAX_LEVEL, Family, SyntheticBackend, draw
from calibrator.core.simulation.figures import figures, groups
from calibrator.core.simulation.runs import (
    COLD,
    RECALIBRATED,
    Result,
    SimulatedSweep,
    Stress,
    bound_requests,
    run,
    run_baseline,
    simulate_cold,
    simulate_recalibrations,
)


@functools.cache
def cold(stress: Stress = Stress.NONE, backends: int = 60) -> tuple[Result, ...]:
    return tuple(result for i in range(backends) for result in simulate_cold(7, i, CORE, stress, Bounds()))


def table(policy: str, results: tuple[Result, ...]) -> dict[str, float]:
    chosen = figures([result for result in results if result.policy == policy])
    return {name: figure.value for name, figure in chosen.items()}


def test_a_cold_sweep_keeps_its_promises() -> None:
    """Three standard errors of 60 backends above the figures of the full table."""
    ours = table(COLD[0], cold())
    assert ours["requests_mean"] <= 1700
    assert ours["minutes_median"] <= 10.0
    assert ours["error_median_ratio"] <= 0.14
    assert ours["within_15pct_ratio"] >= 0.6
    assert ours["unsafe_ratio"] <= 0.12
    assert ours["over_twice_allowance_ratio"] <= 0.06
    assert ours["requests_above_ratio"] <= 0.35
    assert ours["seconds_above_mean"] <= 150.0
    assert ours["seconds_hard_mean"] <= 60.0
    assert ours["highest_probed_p95"] <= 4.0
    assert ours["certified_ratio"] >= 0.4


def test_it_beats_doubling_and_bisection_on_cost_and_harm() -> None:
    ours, theirs = (table(policy, cold()) for policy in COLD)
    for name in ("requests_mean", "minutes_median", "seconds_above_mean", "seconds_hard_mean"):
        assert ours[name] < 0.75 * theirs[name], name


@pytest.mark.parametrize("stress", [Stress.CORRELATION, Stress.FALLING])
def test_stress_costs_accuracy_not_safety(stress: Stress) -> None:
    ours, theirs = (table(policy, cold(stress, 30)) for policy in COLD)
    assert ours["unsafe_ratio"] <= 0.34
    assert ours["seconds_hard_mean"] < theirs["seconds_hard_mean"]


def test_recalibration_is_cheap_and_stays_safe() -> None:
    results = tuple(r for i in range(15) for r in simulate_recalibrations(7, i, CORE, 4, Bounds()))
    ours, theirs = (table(policy, results) for policy in RECALIBRATED)
    assert ours["requests_mean"] < 0.4 * theirs["requests_mean"]
    assert ours["unsafe_ratio"] <= 0.15
    assert ours["over_twice_allowance_ratio"] <= 0.08


def test_a_seed_is_a_backend() -> None:
    assert simulate_cold(3, 5, CORE, Stress.NONE, Bounds()) == simulate_cold(3, 5, CORE, Stress.NONE, Bounds())


def test_groups_are_shown_apart_only_where_there_are_two() -> None:
    both = (Family.SEED, Family.BUMP)
    results = [result for i in range(6) for result in simulate_cold(1, i, both, Stress.NONE, Bounds())]
    assert [group for group, _ in groups(results, both)] == ["core", "all"]
    assert [group for group, _ in groups(results, CORE)] == ["core"]
    assert [group for group, _ in groups([r for r in results if r.family is Family.BUMP], both)] == ["all"]


# ------------------------------------------------------------------------------------------------ the synthetic field
def backend(family: Family, seed: int = 3, **options: float) -> SyntheticBackend:
    rng = np.random.default_rng(seed)
    return SyntheticBackend(draw(rng, (family,), **options), rng)


@pytest.mark.parametrize("family", list(Family))
def test_latencies_exceed_as_often_as_the_truth_says(family: Family) -> None:
    source = backend(family, correlation=0.0)
    for level in (1, max(1, source.truth.capacity), min(MAX_LEVEL, 2 * source.truth.capacity + 1)):
        ratio = source.truth.exceedance_ratio(level)
        n = 40_000
        seen = float((source.sample(level, n) > 1.0).mean())
        assert abs(seen - ratio) <= 4.0 * math.sqrt(ratio * (1.0 - ratio) / n) + 1e-4


@pytest.mark.parametrize("family", list(Family))
def test_correlation_comes_in_clumps_and_leaves_the_ratio(family: Family) -> None:
    source = backend(family, correlation=0.9)
    level = max(8, source.truth.capacity)
    ratio = source.truth.exceedance_ratio(level)
    bits = np.concatenate([source.sample(level, 16) for _ in range(2500)]) > 1.0
    assert 0.3 * ratio <= bits.mean() <= 2.5 * ratio


def test_capacity_is_the_highest_level_below_which_all_hold() -> None:
    truth = backend(Family.BUMP).truth
    assert truth.exceedance_ratio(truth.capacity) <= 0.01 < truth.exceedance_ratio(truth.capacity + 1)
    assert any(truth.exceedance_ratio(level) <= 0.01 for level in range(truth.capacity + 2, MAX_LEVEL))


def test_the_families_keep_their_shares() -> None:
    rng = np.random.default_rng(1)
    drawn = [draw(rng).family for _ in range(2000)]
    assert drawn.count(Family.SEED) == pytest.approx(500, abs=70)
    assert drawn.count(Family.BUMP) == pytest.approx(200, abs=50)
    assert {draw(rng, CORE).family for _ in range(50)} <= set(CORE)


# ---------------------------------------------------------------------------------------------------------- the ledger
def steady(capacity: int) -> SimulatedSweep:
    rng = np.random.default_rng(5)
    truth = draw(rng, (Family.KNEE,))
    return SimulatedSweep(SyntheticBackend(truth.moved(capacity / truth.knee), rng))


def test_the_books_count_added_users_warm_ups_samples_and_harm() -> None:
    simulated = steady(10)
    assert simulated.go_to(8)
    simulated.take(8)
    simulated.take(30)
    assert not simulated.go_to(8)
    assert simulated.ledger.requests == 8 + 8 + 30
    assert simulated.ledger.requests_above == 0
    simulated.go_to(40)
    simulated.take(40)
    assert simulated.ledger.requests == 46 + 32 + 40
    assert simulated.ledger.requests_above == 72
    assert simulated.ledger.above_s == pytest.approx(simulated.truth.residence_s(40))
    assert simulated.ledger.hard_s == pytest.approx(simulated.ledger.above_s)
    assert simulated.ledger.highest_level == 40
    simulated.go_to(20)
    assert simulated.ledger.requests == 118  # users who leave were counted when they came


def test_the_history_counts_what_the_books_count() -> None:
    simulated = steady(30)
    _, history = run(simulated, Bounds())
    assert history.requests == simulated.ledger.requests
    assert history.elapsed_s == pytest.approx(simulated.ledger.wall_s)


def test_a_falling_capacity_falls_once() -> None:
    simulated = steady(40)
    simulated.falls = True
    before = simulated.truth.capacity
    simulated.go_to(4)
    simulated.take(600)
    simulated.take(600)
    assert simulated.truth.capacity == pytest.approx(0.75 * before, abs=1.5)


def test_the_baseline_finds_a_knee_and_stops_at_the_highest_level() -> None:
    assert run_baseline(steady(20), MAX_LEVEL) == pytest.approx(20, abs=2)
    assert run_baseline(steady(400), 64) == 64


def test_the_lower_bound_grows_as_the_slope_flattens() -> None:
    steep, flat = backend(Family.KNEE).truth, backend(Family.SHALLOW).truth
    assert bound_requests(steep.moved(30 / steep.knee), Bounds()) < 200
    assert bound_requests(flat.moved(30 / flat.knee), Bounds()) > 1000
    assert bound_requests(flat.moved(1e12), Bounds()) <= Bounds().requests + Bounds().requests_per_level * MAX_LEVEL
