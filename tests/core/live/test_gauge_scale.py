"""Gauges that count a request twice, or only some of them, are found out by how they move with ours; users are not."""

from __future__ import annotations

import random

import pytest

from calibrator.core.live.gauge_scale import FEWER_LOOKS, GaugeFault, GaugeScale
from calibrator.core.live.organic_load import OrganicWatch, steered

LEVELS = (2, 4, 8, 16, 12)
HELD_S = 6


def sweep(scale: float, users: list[int], lag_s: int = 0) -> tuple[OrganicWatch, int]:
    """A ramp above what the gauges show at first, one scrape a second, probes steered by them.

    Returns the second at which they were found out.
    """
    watch, probes, history = OrganicWatch(), 0, []
    for second in range(len(users)):
        level = LEVELS[min(len(LEVELS) - 1, max(0, second - 3) // HELD_S)] + round(scale * users[0])
        probes = 0 if second < 3 else steered(level, watch.estimate, probes)
        history.append(scale * (probes + users[second]))
        watch.ours(second - 0.5, probes)
        watch.ours(float(second), probes)
        watch.saw(float(second), float(second), max(0.0, round(history[max(0, second - lag_s)])))
        if watch.is_blind:
            return watch, second
    return watch, -1


@pytest.mark.parametrize("lag_s", [0, 1, 2])
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("users", [0, 5, 20])
def test_requests_that_count_several_times_are_found_out(scale: int, lag_s: int, users: int) -> None:
    watch, second = sweep(scale, [users] * 40, lag_s)
    assert watch.scale.fault is GaugeFault.TOO_MANY
    assert f"by {scale} with" in watch.scale.words
    assert watch.estimate is None
    assert 0 < second <= 3 + 3 * HELD_S


@pytest.mark.parametrize("lag_s", [0, 1, 2])
@pytest.mark.parametrize("users", [0, 4])
def test_gauges_of_one_rank_in_four_are_found_out(lag_s: int, users: int) -> None:
    watch, second = sweep(0.25, [users] * 40, lag_s)
    assert watch.scale.fault is GaugeFault.TOO_FEW
    assert 0 < second <= 3 + 5 * HELD_S


def moving(kind: str, seed: int) -> list[int]:
    rng, users = random.Random(seed), [6]
    for second in range(1, 90):
        last = users[-1]
        if kind == "walk":
            users.append(max(0, last + rng.choice((-2, -1, 0, 0, 1, 2))))
        elif kind == "bursts":
            users.append(14 if rng.random() < 0.2 else 6)
        elif kind == "a few":
            users.append(rng.choice((0, 0, 1, 1, 2)))
        else:  # "grow": more and more, as our levels do
            users.append(round(2.0 * 1.05**second))
    return users


@pytest.mark.parametrize("kind", ["walk", "bursts", "a few", "grow"])
@pytest.mark.parametrize("lag_s", [0, 1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_users_that_come_and_go_are_not_taken_for_it(kind: str, lag_s: int, seed: int) -> None:
    watch, _ = sweep(1, moving(kind, seed), lag_s)
    assert watch.scale.fault is None


def test_users_at_the_first_look_are_no_fault() -> None:
    watch, _ = sweep(1, [40] * 40)
    assert (watch.scale.fault, watch.estimate) == (None, 40)


def test_one_jump_of_users_with_a_jump_of_ours_is_no_proof() -> None:
    scale = GaugeScale()
    for ours, users in ((0, 0), (8, 8), (8, 8), (8, 8), (16, 8), (16, 8)):
        scale.saw(float(ours + users), ours, ours)
    assert scale.fault is None


def test_a_few_looks_too_low_are_no_proof_either() -> None:
    scale = GaugeScale()
    for _ in range(FEWER_LOOKS - 1):
        scale.saw(2.0, 8, 8)
    scale.saw(8.0, 8, 8)
    scale.saw(2.0, 8, 8)
    assert scale.fault is None


def test_what_wrong_gauges_told_is_taken_back_once() -> None:
    watch, _ = sweep(2, [5] * 40)
    assert watch.doubt >= 10.0
    assert watch.doubt_s == float("-inf")
    watch.saw(90.0, 90.0, 30.0)
    assert watch.doubt == 0.0
