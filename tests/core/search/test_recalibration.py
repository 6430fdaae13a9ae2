"""Recalibration: a cheap check confirms, and only a change is searched."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from support.synthetic import P99, Player, Synthetic, cliff, run_sweep

from calibrator.core.records.history import Bounds, History, WarmStart
from calibrator.core.records.sweep import Grade, SweepOutcome
from calibrator.core.search.policy import next_step
from calibrator.core.search.recalibration import probed_above, warm_start
from calibrator.core.search.steps import Conclusion, Measure, Test

LONG = Bounds(duration_s=1e9, overload_s=1e9)


def player(knee: int, seed: int = 1) -> Player:
    return Player(Synthetic(cliff(knee), np.random.default_rng(seed)))


def cold(knee: int = 44) -> tuple[Conclusion, History]:
    return run_sweep(player(knee), LONG)


def again(
    before: tuple[Conclusion, History], knee: int, sweeps_since_upward_probe: int = 0, bounds: Bounds = LONG
) -> tuple[Conclusion, History]:
    conclusion, history = before
    assert conclusion.capacity is not None
    warm = warm_start(history, bounds, conclusion.capacity.estimate, sweeps_since_upward_probe)
    return run_sweep(player(knee, 2), bounds, warm=warm)


def test_an_unchanged_backend_is_confirmed_by_one_stage() -> None:
    before = cold()
    conclusion, history = again(before, 44)
    assert len(history.stages) == 1
    assert history.requests < 420
    assert conclusion.outcome is SweepOutcome.CALIBRATED
    assert conclusion.grade is Grade.CERTIFIED  # with the evidence of the sweep before
    assert conclusion.capacity is not None
    assert before[0].capacity is not None
    assert conclusion.capacity.estimate == before[0].capacity.estimate
    assert not probed_above(history)


def test_without_the_earlier_evidence_a_sentinel_confirms_only_provisionally() -> None:
    conclusion, history = cold()
    assert conclusion.capacity is not None
    warm = replace(warm_start(history, LONG, conclusion.capacity.estimate, 0), stages=())
    confirmed, _ = run_sweep(player(44, 2), LONG, warm=warm)
    assert confirmed.grade is Grade.PROVISIONAL


def test_a_fallen_capacity_is_found_again() -> None:
    conclusion, history = again(cold(), 20)
    assert conclusion.capacity is not None
    assert 13 <= conclusion.capacity.estimate <= 20
    assert len(history.stages) > 1


def test_a_risen_capacity_is_found_when_a_look_is_due() -> None:
    before = cold()
    unseen, _ = again(before, 80)
    assert unseen.capacity is not None
    assert unseen.capacity.estimate <= 44
    conclusion, history = again(before, 80, sweeps_since_upward_probe=2)
    assert conclusion.capacity is not None
    assert conclusion.capacity.estimate > 44
    assert probed_above(history)
    assert max(stage.level for stage in history.stages) <= 2.1 * 80


def test_a_look_that_fails_confirms() -> None:
    before = cold()
    conclusion, history = again(before, 44, sweeps_since_upward_probe=2)
    assert probed_above(history)
    assert len({stage.level for stage in history.stages}) == 2
    assert conclusion.capacity is not None
    assert before[0].capacity is not None
    assert conclusion.capacity.estimate == before[0].capacity.estimate


def test_at_the_highest_level_there_is_nothing_to_look_at() -> None:
    bounds = replace(LONG, max_level=32)
    conclusion, history = again(run_sweep(player(99), bounds), 99, sweeps_since_upward_probe=2, bounds=bounds)
    assert {stage.level for stage in history.stages} == {32}
    assert conclusion.capacity is not None
    assert conclusion.capacity.estimate == 32


def test_the_evidence_of_several_sweeps_is_pooled_up_to_a_full_test() -> None:
    before = cold()
    for _ in range(5):
        before = again(before, 44)
        assert before[0].grade is Grade.CERTIFIED
    assert before[1].warm is not None
    assert sum(stage.evidence[0].n for stage in before[1].warm.stages) <= 700 + 420


def test_an_undecided_sentinel_is_continued_and_answers_by_its_ratio() -> None:
    before = cold()
    assert before[0].capacity is not None
    level = before[0].capacity.estimate
    warm = warm_start(before[1], LONG, level, 0)
    first = next_step(History((P99,), warm=warm), LONG)
    assert first == Measure(level, Test.SENTINEL, 420, f"sentinel at {level}")
    measured = player(44).stage(History((P99,), warm=warm), replace(first, max_samples=1))
    for bits, ends in [("0" * 99 + "1", False), (("0" * 104 + "1") * 4, True), (("0" * 52 + "1") * 8, True)]:
        places = tuple(5.0 * index for index in range(bits.count("1")))
        stage = replace(measured, evidence=(replace(measured.evidence[0], bits=bits, violation_at_s=places),))
        step = next_step(History((P99,), (stage,), warm=warm), LONG)
        if not ends:
            assert step == Measure(level, Test.SENTINEL, 320, f"sentinel at {level}")
        elif bits.count("1") == 4:
            assert isinstance(step, Conclusion)
        else:
            assert isinstance(step, Measure)
            assert step.test is Test.VERDICT


def test_a_failed_warm_up_of_the_sentinel_opens_the_search() -> None:
    before = cold()
    conclusion, history = again(before, 5)
    assert history.stages[0].ramp_failed
    assert conclusion.capacity is not None
    assert conclusion.capacity.estimate <= 5


def test_an_invalid_sentinel_is_repeated_and_then_provisional() -> None:
    conclusion, history = cold()
    assert conclusion.capacity is not None
    warm = warm_start(history, LONG, conclusion.capacity.estimate, 0)
    source = player(44)
    source.invalidate = lambda _: ("generator saturated: late",)
    ended, seen = run_sweep(source, LONG, warm=warm)
    assert len(seen.stages) == 2
    assert ended.outcome is SweepOutcome.INCONCLUSIVE


def test_the_carried_posterior_is_smeared_and_follows_other_bounds() -> None:
    conclusion, history = cold()
    assert conclusion.capacity is not None
    warm = warm_start(history, LONG, conclusion.capacity.estimate, 1)
    assert isinstance(warm, WarmStart)
    weights, capacities = np.array(warm.weights), np.array(warm.capacities)
    assert weights.min() > 0.0
    assert weights.sum() == pytest.approx(1.0, abs=1e-2)
    mean = float((weights * np.log(capacities)).sum())
    assert math.exp(mean) == pytest.approx(44, rel=0.25)
    spread = math.sqrt(float((weights * (np.log(capacities) - mean) ** 2).sum()))
    assert 0.2 < spread < 0.7
    other, _ = run_sweep(player(44, 3), replace(LONG, min_level=4, max_level=64), warm=warm)
    assert other.capacity is not None
    assert 30 <= other.capacity.estimate <= 44


def test_a_published_level_outside_the_bounds_is_clamped() -> None:
    _, history = cold()
    warm = warm_start(history, LONG, 40, 0)
    step = next_step(History((P99,), warm=warm), replace(LONG, max_level=16))
    assert isinstance(step, Measure)
    assert step.level == 16
