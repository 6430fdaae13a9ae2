"""Live traffic is distinguished from our own probes by gauges that may lag, and probes are adjusted to it."""

from __future__ import annotations

import pytest

from calibrator.core.live.abort import AbortRules
from calibrator.core.live.gauge_scale import BLIND_SCRAPES
from calibrator.core.live.metrics_sanity import BLIND, MetricsSanity
from calibrator.core.live.organic_load import (
    LAG_S,
    MEMORY_S,
    OrganicEstimate,
    band,
    is_on_level,
    is_suspect,
    probes_for,
    steered,
)
from calibrator.core.records.harm import AbortLimits
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.server_load import ServerLoad

Timeline = list[int]  # one value a second


def watched(ours: Timeline, organic: Timeline, lag_s: int) -> tuple[OrganicEstimate, list[float]]:
    """The estimate after each scrape, one a second. Ours changes between two scrapes."""
    watch, estimates = OrganicEstimate(), []
    for second in range(len(ours)):
        then = max(0, second - lag_s)
        watch.ours(second - 0.5, ours[second])
        watch.ours(float(second), ours[second])
        watch.scraped(float(second), float(second), float(ours[then] + organic[then]))
        assert watch.estimate is not None
        estimates.append(watch.estimate)
    return watch, estimates


RAMP = [0] * 3 + [2] * 3 + [4] * 3 + [8] * 3 + [16] * 3 + [32] * 3 + [20] * 6


@pytest.mark.parametrize("lag_s", [0, 1, 2])
@pytest.mark.parametrize("organic", [0, 8, 20])
def test_our_own_ramp_is_not_taken_for_users_however_late_the_gauges_are(lag_s: int, organic: int) -> None:
    watch, estimates = watched(RAMP, [organic] * len(RAMP), lag_s)
    assert estimates == [organic] * len(RAMP)
    assert watch.floor == organic


@pytest.mark.parametrize("lag_s", [0, 1, 2])
def test_a_jump_of_users_is_seen_as_soon_as_the_gauges_show_it(lag_s: int) -> None:
    jump_s = len(RAMP) - 4
    organic = [4] * jump_s + [40] * 10
    _, estimates = watched(RAMP + [20] * 6, organic, lag_s)
    assert estimates[jump_s + lag_s - 1] == 4
    assert estimates[jump_s + lag_s] == 40


@pytest.mark.parametrize("lag_s", [0, 2])
def test_what_is_suspect_reaches_back_to_before_the_change(lag_s: int) -> None:
    """Everything that started since the users came must be taken back, whatever the lag."""
    jump_s = len(RAMP) + 4
    watch, _ = watched(RAMP + [20] * (5 + lag_s), [4] * jump_s + [40] * 10, lag_s)
    assert watch.change == 36
    assert watch.suspect_since_s <= jump_s


def test_the_lag_is_inferred_from_our_own_movements() -> None:
    """Then little is suspect, and the estimate follows users while ours moves as well."""
    long_ramp = [0, 0, 0, 0] + [8, 8, 8, 24, 24, 24] * 4
    for lag_s, at_least in ((0, 0), (2, 1)):
        watch, _ = watched(long_ramp, [5] * len(long_ramp), lag_s)
        reach_s = len(long_ramp) - 2 - watch.suspect_since_s
        assert at_least <= reach_s <= lag_s + 0.75


def test_a_moving_total_is_followed_within_our_own_movement() -> None:
    organic = [10] * 5 + [10 + (second // 3) % 6 for second in range(55)]
    ours = [0] * 5 + [34 - users for users in organic[5:]]
    _, estimates = watched(ours, organic, 0)
    worst = max(abs(seen - true) for seen, true in zip(estimates, organic, strict=True))
    assert worst <= 5
    assert sum(abs(seen - true) for seen, true in zip(estimates, organic, strict=True)) / 60 <= 1.0


def test_gauges_that_do_not_count_our_requests_show_nothing() -> None:
    watch = OrganicEstimate()
    for second in range(12):
        watch.ours(float(second), 16)
        watch.scraped(float(second), float(second), 0.0)
    assert watch.is_blind
    assert watch.estimate is None
    assert watch.floor == 0
    assert watch.scrapes == 12, "the probes are adjusted: they are the whole level now"


@pytest.mark.parametrize("lag_s", [0, 1, 2])
@pytest.mark.parametrize("organic", [0, 8])
def test_what_is_live_and_whether_the_page_is_ours_is_one_answer(lag_s: int, organic: int) -> None:
    """The steering, the abort limits and the check of the page read the same gauge against the same counts of ours."""
    steering, page = OrganicEstimate(), MetricsSanity()
    abort = AbortRules((parse_objective("ttft p99 <= 1s"),), AbortLimits(), 120.0)
    for second in range(len(RAMP)):
        ours, gauge = RAMP[second], float(RAMP[max(0, second - lag_s)] + organic)
        load = ServerLoad("vllm", gauge, 0.0, finished_total=float(second))
        steering.ours(float(second), ours)
        steering.scraped(float(second), float(second), gauge)
        abort.scraped(float(second), load, ours)
        page = page.after(load, ours, float(second))
    assert (steering.estimate, abort.harm.most_organic, page.problem) == (organic, organic, "")


@pytest.mark.parametrize(("ours", "gauge", "is_blind"), [(16, 10.0, True), (16, 10.5, False), (1, 0.0, False)])
def test_a_page_that_lacks_ours_is_found_out_at_the_same_scrape(ours: int, gauge: float, *, is_blind: bool) -> None:
    steering, page = OrganicEstimate(), MetricsSanity()
    found = []
    for second in range(30):
        steering.ours(float(second), ours)
        steering.scraped(float(second), float(second), gauge)
        page = page.after(ServerLoad("vllm", gauge, 0.0, finished_total=float(second)), ours, float(second))
        found.append((steering.is_blind, page.problem == BLIND))
    first = int(LAG_S) + BLIND_SCRAPES - 1
    assert found == [(is_blind and second >= first,) * 2 for second in range(30)]


def test_frozen_gauges_never_make_more_probes_than_the_level() -> None:
    watch, probes = OrganicEstimate(), 4
    for second in range(40):
        watch.ours(float(second), probes)
        watch.scraped(float(second), float(second), 12.0)
        probes = steered(16, watch.estimate, probes)
        assert 1 <= probes <= 16


def test_the_floor_is_what_users_usually_hold() -> None:
    """A burst of a few seconds makes no level impossible; load that stays does."""
    quiet = [4] * 30
    burst, _ = watched([10] * 36, quiet + [30] * 6, 0)
    stays, _ = watched([10] * 42, quiet + [30] * 12, 0)
    assert (burst.floor, stays.floor) == (4, 30)
    assert MEMORY_S / 2 < 12


@pytest.mark.parametrize(
    ("organic", "probes", "wanted"),
    [
        (0.0, 20, 20),
        (8.0, 20, 12),  # lowered at once
        (2.0, 4, 6),  # raised by a tenth of the level a scrape
        (19.4, 1, 1),
        (20.0, 5, 1),  # users fill the level: one probe stays, to see
        (400.0, 5, 1),
        (None, 20, 20),  # not known: as if there were none
    ],
)
def test_probes_fall_at_once_and_rise_slowly(organic: float | None, probes: int, wanted: int) -> None:
    assert steered(20, organic, probes) == wanted
    assert wanted <= probes_for(20, organic)


@pytest.mark.parametrize(("level", "off"), [(1, 0), (8, 0), (14, 0), (15, 1), (34, 2), (100, 7)])
def test_a_sample_belongs_to_the_level_that_was_there_when_it_started(level: int, off: int) -> None:
    organic = 3.0
    for users in range(level + 20):
        assert is_on_level(level, organic, users) is (abs(users + organic - level) <= off)
        assert is_on_level(level, None, users)
    assert off <= band(level) < off + 1


def test_one_request_more_or_less_makes_nothing_suspect() -> None:
    assert not is_suspect(4, 1.0)
    assert is_suspect(4, 2.0)
    assert not is_suspect(34, 2.0)
    assert is_suspect(34, 3.0)
