"""What is read off a curve: tables of curves with a known answer, and silence where nothing can be known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from calibrator.core.records.history import Capacity
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.server_load import ServerLoadPeak
from calibrator.core.records.sweep import LevelReport, ObjectiveVerdict, Verdict, VerdictKind
from calibrator.core.report.curve import CurveInsight, Limit, Slope, read_curve
from calibrator.core.stats.quantile import LatencySummary, QuantileEstimate

TTFT = parse_objective("ttft p99 <= 500ms")
ITL = parse_objective("itl p99 <= 50ms")
E2E = parse_objective("e2e p99 <= 5s")
NOTHING = LatencySummary(0, None, None, None)


def quantiles(value_s: float, width: float = 1.05, *, p99: bool = True) -> LatencySummary:
    estimate = QuantileEstimate(value_s, value_s / width, value_s * width)
    return LatencySummary(500, estimate, estimate, estimate if p99 else None)


def level(
    concurrency: int,
    per_second: float,
    tail_s: float = 0.1,
    *,
    good: float | None = None,
    exceeded: tuple[str, ...] = (),
    errors: tuple[tuple[str, int], ...] = (),
    server: ServerLoadPeak | None = None,
    ttft: LatencySummary | None = None,
    e2e: LatencySummary = NOTHING,
    n: int = 500,
) -> LevelReport:
    kind = VerdictKind.EXCEEDED if exceeded or errors else VerdictKind.WITHIN
    parts = tuple(ObjectiveVerdict(text, kind, n, n, 20, 0.0, 0.1, "") for text in exceeded)
    return LevelReport(
        concurrency=concurrency,
        achieved_concurrency=float(concurrency),
        n=n,
        exceedances=0,
        requests=n,
        verdict=Verdict(kind, (), parts),
        ttft=ttft or quantiles(tail_s),
        ttfc=NOTHING,
        itl=NOTHING,
        tpot=NOTHING,
        e2e=e2e,
        requests_per_second=per_second,
        prompt_tokens_per_second=0.0,
        output_tokens_per_second=0.0,
        goodput_per_second=per_second if good is None else good,
        errors=errors,
        server=server or ServerLoadPeak(scrapes=5, running_requests=float(concurrency), waiting_requests=0.0),
    )


def read(*levels: LevelReport, capacity: int | None = None) -> CurveInsight:
    insight = read_curve(levels, (TTFT, ITL, E2E), None if capacity is None else Capacity(capacity, capacity, capacity))
    assert insight is not None
    return insight


# ---------------------------------------------------------------------------------------------------------------- knee
def closed_system(slots: int, residence_s: float, levels: tuple[int, ...]) -> list[LevelReport]:
    """`slots` servers, one request each: throughput min(N, slots) / R; the crossing is at `slots`, exactly."""
    return [level(n, min(n, slots) / residence_s) for n in levels]


@pytest.mark.parametrize(("slots", "residence_s"), [(8, 0.5), (24, 3.0)])
def test_the_knee_of_a_closed_system_is_its_number_of_servers(slots: int, residence_s: float) -> None:
    insight = read(*closed_system(slots, residence_s, (1, 4, 16, 32, 64)))
    assert insight.knee_concurrency == pytest.approx(slots)
    assert f"sets in at about {slots} in flight" in insight.words[0]


def test_the_lowest_level_need_not_be_one() -> None:
    assert read(*closed_system(24, 1.0, (8, 32, 48))).knee_concurrency == pytest.approx(24)


def test_a_curve_that_still_rises_has_no_knee_yet() -> None:
    insight = read(*closed_system(100, 1.0, (1, 8, 32)))
    assert insight.knee_concurrency is None
    assert insight.words[0] == "Up to 32 in flight throughput still grows with concurrency."


@pytest.mark.parametrize("levels", [(level(4, 8.0),), (level(1, 0.0), level(4, 8.0))])
def test_one_level_has_no_knee_and_no_words_about_it(levels: tuple[LevelReport, ...]) -> None:
    insight = read(*levels)
    assert insight.knee_concurrency is None
    assert not any("throughput" in words or "interference" in words for words in insight.words)


def test_levels_without_counted_requests_say_nothing() -> None:
    assert read_curve([level(1, 1.0, n=0)], (TTFT,), None) is None
    assert read_curve([], (TTFT,), None) is None


# --------------------------------------------------------------------------------------------------------------- slope
@pytest.mark.parametrize(
    ("tails_s", "slope", "elasticity"),
    [
        ({1: 0.100, 8: 0.100}, Slope.GENTLE, 0.0),
        ({1: 0.100, 2: 0.110}, Slope.GENTLE, math.log2(1.1)),
        ({1: 0.100, 4: 0.200}, Slope.MODERATE, 0.5),
        ({1: 0.100, 4: 0.400}, Slope.STEEP, 1.0),
        ({4: 0.100, 5: 0.400, 8: 0.200}, Slope.STEEP, 1.0),  # 5 is too near 4 to say anything
        ({1: 0.100, 4: 0.200, 16: 1.600}, Slope.MODERATE, 0.5),  # the early part is asked for
    ],
)
def test_slope_classes(tails_s: dict[int, float], slope: Slope, elasticity: float) -> None:
    insight = read(*(level(n, float(n), tail_s) for n, tail_s in tails_s.items()))
    assert insight.slope is slope
    assert insight.early_slope == pytest.approx(elasticity)


def test_a_wide_interval_has_a_number_but_no_class() -> None:
    vague = [level(n, float(n), ttft=quantiles(tail_s, 2.0)) for n, tail_s in ((1, 0.1), (4, 0.2))]
    assert read(*vague).slope is None
    assert read(*vague).early_slope == pytest.approx(0.5)


def test_the_same_quantile_is_compared_at_both_levels() -> None:
    """P99 is known at 4 only: then P90 is compared, not the P99 of one with the P90 of the other."""
    p90 = QuantileEstimate(0.1, 0.099, 0.101)
    without = LatencySummary(50, p90, p90, None)
    with_p99 = LatencySummary(500, p90, p90, QuantileEstimate(0.4, 0.39, 0.41))
    assert read(level(1, 1.0, ttft=without), level(4, 4.0, ttft=with_p99)).slope is Slope.GENTLE


@pytest.mark.parametrize("ttft", [NOTHING, LatencySummary(9, None, QuantileEstimate(math.inf, 0.1, None), None)])
def test_unknown_tails_have_no_slope(ttft: LatencySummary) -> None:
    insight = read(level(1, 1.0, ttft=ttft), level(4, 4.0, ttft=ttft))
    assert (insight.slope, insight.early_slope) == (None, None)


# ------------------------------------------------------------------------------------------------------------- goodput
def test_goodput_has_its_maximum_and_the_waste_above_it_is_said() -> None:
    levels = [level(8, 80.0), level(16, 100.0), level(32, 101.0, good=70.0)]
    insight = read(*levels, capacity=32)
    assert (insight.goodput_max_concurrency, insight.goodput_max_per_second) == (16, 100.0)
    assert "Goodput is highest at 16 in flight (100.0/s)." in insight.words
    assert any("adds no useful work" in words for words in insight.words)


@pytest.mark.parametrize(("good_at_32", "capacity"), [(95.0, 32), (70.0, 16), (70.0, None)])
def test_noise_and_forbidden_levels_are_no_waste(good_at_32: float, capacity: int | None) -> None:
    insight = read(level(16, 100.0), level(32, 101.0, good=good_at_32), capacity=capacity)
    assert not any("adds no useful work" in words for words in insight.words)


# --------------------------------------------------------------------------------------------------------------- limit
def peak(
    running: float | None = 32.0, waiting: float | None = 0.0, kv: float | None = 0.3, preemptions: float | None = 0.0
) -> ServerLoadPeak:
    return ServerLoadPeak(5, running, waiting, kv, preemptions)


LOW = level(4, 40.0, server=peak(4.0), e2e=quantiles(1.0))
FIRST, GAP, WHOLE = (str(one) for one in (TTFT, ITL, E2E))


@pytest.mark.parametrize(
    ("failing", "limit"),
    [
        (level(32, 90.0, errors=(("status", 20),)), Limit.REFUSALS),
        (level(32, 90.0, errors=(("quota", 20),)), Limit.QUOTA),
        (level(32, 90.0, errors=(("error_event", 20), ("reset", 1))), Limit.REFUSALS),
        (level(32, 90.0, errors=(("stalled", 20), ("status", 1))), Limit.FAILURES),
        (level(32, 90.0, exceeded=(FIRST,), errors=(("reset", 1),), server=peak(kv=0.97)), Limit.KV_MEMORY),
        (level(32, 90.0, exceeded=(FIRST,), server=peak(preemptions=3.0, waiting=9.0)), Limit.KV_MEMORY),
        (level(32, 90.0, exceeded=(FIRST,), server=peak(24.0, 8.0)), Limit.SLOTS),
        (level(32, 90.0, exceeded=(FIRST,), server=peak(32.0, 1.0)), Limit.PREFILL),  # one on its way in
        (level(32, 90.0, exceeded=(FIRST,), server=peak(32.0, 0.0)), Limit.PREFILL),
        (level(32, 90.0, exceeded=(FIRST,), server=ServerLoadPeak()), Limit.UNKNOWN),
        (level(32, 90.0, exceeded=(GAP,), server=peak()), Limit.DECODE),
        (level(32, 90.0, exceeded=(GAP,), server=ServerLoadPeak()), Limit.DECODE),
        (level(32, 90.0, exceeded=(FIRST, GAP), server=peak()), Limit.PREFILL),
        (level(32, 90.0, exceeded=(WHOLE,), e2e=quantiles(6.0), server=peak()), Limit.DECODE),
        (level(32, 90.0, 5.0, exceeded=(WHOLE,), e2e=quantiles(6.0), server=peak()), Limit.PREFILL),
        (level(32, 90.0, exceeded=(WHOLE,), server=peak()), Limit.PREFILL),  # not streamed: no first token is seen
    ],
)
def test_what_limits(failing: LevelReport, limit: Limit) -> None:
    insight = read(LOW, failing)
    assert insight.limit is limit
    assert insight.words[-1].startswith("What limits: ")


def test_a_level_that_failed_in_its_warm_up_limits_too() -> None:
    assert read(LOW, level(70, 0.0, exceeded=(FIRST,), server=peak(12.0, 58.0), n=0)).limit is Limit.SLOTS


def test_a_queue_in_front_of_free_slots_is_prefill() -> None:
    """More run at 64 than at 32 although requests wait at both: it is not the number of slots."""
    levels = (
        LOW,
        level(32, 90.0, exceeded=(FIRST,), server=peak(20.0, 12.0)),
        level(64, 90.0, exceeded=(FIRST,), server=peak(40.0, 24.0)),
    )
    assert read(*levels).limit is Limit.PREFILL
    full = (levels[0], levels[1], level(64, 90.0, exceeded=(FIRST,), server=peak(20.0, 44.0)))
    assert read(*full).limit is Limit.SLOTS


@pytest.mark.parametrize(
    ("errors", "limit"),
    [
        ((("status", 20),), Limit.REFUSALS),
        ((("quota", 20),), Limit.QUOTA),
        ((("truncated", 20),), Limit.FAILURES),
        ((("status", 5),), Limit.NONE),  # one in a hundred
    ],
)
def test_failures_limit_even_where_no_level_failed_for_them(errors: tuple[tuple[str, int], ...], limit: Limit) -> None:
    within = Verdict(VerdictKind.WITHIN, ())
    assert read(LOW, replace(level(32, 90.0, errors=errors), verdict=within)).limit is limit


def test_nothing_failed_nothing_limits() -> None:
    insight = read(LOW, level(32, 200.0))
    assert insight.limit is Limit.NONE
    assert insight.words[-1] == "What limits: nothing yet: no level failed."
