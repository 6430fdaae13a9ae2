"""Verdicts: the test, pooling, the rule that one stall never decides, and what is not judged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrator.core.records.history import Audit, Evidence, History, RampCount, Stage
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sweep import VerdictKind
from calibrator.core.search.design_effect import clusters, design_effect
from calibrator.core.search.steps import Measure, Test
from calibrator.core.search.verdict import (
    is_settled,
    level_verdict,
    ramp_has_failed,
    screen_result,
    sentinel_result,
    zone,
)

P99 = parse_objective("ttft p99 <= 1s")
P95 = parse_objective("e2e p95 <= 9s")
WITHIN, EXCEEDED, OPEN = VerdictKind.WITHIN, VerdictKind.EXCEEDED, VerdictKind.INCONCLUSIVE


def evidence(n: int, violations: int, *, from_s: float = 0.0, to_s: float = 100.0) -> Evidence:
    """`violations` evenly spread over the n requests and over the time span."""
    places = {round((index + 0.5) * n / violations) for index in range(violations)} if violations else set()
    bits = "".join("1" if place in places else "0" for place in range(n))
    step_s = (to_s - from_s) / max(1, violations)
    return Evidence(bits, tuple(from_s + (index + 0.5) * step_s for index in range(bits.count("1"))))


def stage(level: int, *parts: Evidence, reasons: tuple[str, ...] = (), ramp_failed: bool = False) -> Stage:
    ramp = tuple(RampCount(8, 6 if ramp_failed else 0) for _ in parts)
    return Stage(level, 0.0, 100.0, 1.0, parts, ramp, ramp_failed=ramp_failed, audit=Audit(reasons=reasons))


def history(*stages: Stage, objectives: tuple = (P99,)) -> History:
    return History(objectives, stages)


@pytest.mark.parametrize(
    ("n", "violations", "kind"),
    [
        (0, 0, OPEN),  # nothing seen
        (200, 0, OPEN),  # 200 clean requests do not show 0.5 %
        (400, 0, WITHIN),  # with the design effect still at its prior of 2
        (700, 1, WITHIN),
        (300, 3, OPEN),  # the empirical P99 would pass
        (300, 12, EXCEEDED),
        (100, 50, EXCEEDED),
    ],
)
def test_one_level(n: int, violations: int, kind: VerdictKind) -> None:
    assert level_verdict(history(stage(16, evidence(n, violations))), 16).kind is kind


def test_the_zone_scales_with_the_quantile() -> None:
    for quantile, low, high in [("p95", 0.025, 0.1), ("p99", 0.005, 0.02), ("p99.9", 0.0005, 0.002)]:
        test = zone(parse_objective(f"ttft {quantile} <= 1s"))
        assert (test.p0, test.p1) == pytest.approx((low, high))
    assert zone(parse_objective("ttft p50 <= 1s")).p1 == pytest.approx(0.75)  # twice a half would be certainty


def test_higher_levels_help_a_pass_and_lower_levels_a_fail() -> None:
    clean = history(stage(8, evidence(50, 0)), stage(16, evidence(400, 0)))
    assert level_verdict(clean, 8).kind is WITHIN
    assert level_verdict(clean, 32).kind is OPEN  # nothing above it was seen
    bad = history(stage(8, evidence(300, 12)))
    assert level_verdict(bad, 16).kind is EXCEEDED
    assert level_verdict(bad, 4).kind is OPEN


def test_a_fail_wins_over_a_pass() -> None:
    hole = history(stage(8, evidence(300, 12)), stage(16, evidence(600, 0)))
    assert level_verdict(hole, 8).kind is EXCEEDED
    assert level_verdict(hole, 16).kind is WITHIN  # its own evidence outweighs what is below


def test_all_objectives_must_hold_and_one_is_enough_to_fail() -> None:
    both = (P99, P95)
    assert level_verdict(history(stage(4, evidence(400, 0), evidence(400, 2)), objectives=both), 4).kind is WITHIN
    failed = level_verdict(history(stage(4, evidence(400, 0), evidence(400, 80)), objectives=both), 4)
    assert failed.kind is EXCEEDED
    assert [part.kind for part in failed.objectives] == [WITHIN, EXCEEDED]
    assert "e2e p95" in failed.reasons[0]
    open_ = level_verdict(history(stage(4, evidence(400, 0), evidence(4, 0)), objectives=both), 4)
    assert open_.kind is OPEN


def test_a_verdict_carries_its_figures() -> None:
    part = level_verdict(history(stage(16, evidence(400, 2))), 16).objectives[0]
    assert (part.n, part.exceedances) == (400, 2)
    assert part.effective_n < 400
    assert part.ratio_low < 2 / 400 < part.ratio_high


# ------------------------------------------------------------------------------------------------- one stall
@pytest.mark.parametrize("hit", [8, 16, 64])
def test_one_stall_never_decides(hit: int) -> None:
    """All requests in flight are caught at once, however many the test would count."""
    stall = Evidence("0" * 100 + "1" * hit + "0" * 100, tuple(50.0 + 0.001 * index for index in range(hit)))
    assert level_verdict(history(stage(hit, stall)), hit).kind is OPEN


def test_one_stall_and_a_stray_violation_do_not_decide() -> None:
    stall = Evidence("0" * 100 + "1" * 16 + "0" * 99 + "1", (*(50.0 + 0.01 * i for i in range(16)), 90.0))
    assert level_verdict(history(stage(16, stall)), 16).kind is OPEN


def test_a_stall_that_spans_two_stages_is_still_one() -> None:
    first = Evidence("0" * 100 + "1" * 8, tuple(50.0 + 0.01 * i for i in range(8)))
    second = Evidence("1" * 8 + "0" * 100, tuple(50.08 + 0.01 * i for i in range(8)))
    assert level_verdict(history(stage(16, first), stage(16, second)), 16).kind is OPEN


def test_violations_within_one_residence_do_not_decide() -> None:
    quick = stage(64, evidence(60, 12, to_s=0.9))
    assert level_verdict(history(quick), 64).kind is OPEN


def test_a_quarter_over_a_whole_residence_decides() -> None:
    slow = stage(64, evidence(100, 40, to_s=1.6))
    assert level_verdict(history(slow), 64).kind is EXCEEDED


def test_gross_overload_in_a_warm_up_scales_with_the_quantile() -> None:
    """Below P90 a quarter of violations is allowed: twice the allowance, or halfway to certainty, is gross."""
    for text, gross in [("ttft p99 <= 1s", 5), ("ttft p80 <= 1s", 8), ("ttft p50 <= 1s", 15)]:
        objective = parse_objective(text)
        assert ramp_has_failed(objective, RampCount(20, gross))
        assert not ramp_has_failed(objective, RampCount(20, gross - 1))


def test_a_failed_warm_up_speaks_only_for_the_objective_that_failed() -> None:
    part = Evidence()
    aborted = Stage(16, 0.0, 9.0, 1.0, (part, part), (RampCount(8, 0), RampCount(8, 6)), ramp_failed=True)
    verdict = level_verdict(history(aborted, objectives=(P99, P95)), 16)
    assert [each.kind for each in verdict.objectives] == [OPEN, EXCEEDED]


@pytest.mark.parametrize(("n", "violations", "result"), [(64, 4, None), (64, 5, False), (512, 8, None)])
def test_a_watched_warm_up_may_fail_a_screen_but_never_pass_it(n: int, violations: int, result: bool | None) -> None:  # noqa: FBT001 - a table's column
    running = Stage(64, 0.0, 9.0, 1.0, (Evidence(),), (RampCount(n, violations),))
    assert screen_result((P99,), running) is result


@pytest.mark.parametrize(
    ("n", "violations", "result"), [(100, 0, None), (200, 0, True), (200, 2, None), (100, 8, False)]
)
def test_sentinel(n: int, violations: int, result: bool | None) -> None:  # noqa: FBT001 - a table's column
    seen = history(stage(16, evidence(n, violations)))
    assert sentinel_result(seen, 16) is result
    assert is_settled(seen, Measure(16, Test.SENTINEL, 420, "")) is (result is not None)
    assert sentinel_result(history(stage(16, evidence(0, 0), ramp_failed=True)), 16) is False


def test_a_failed_warm_up_fails_the_level_until_it_is_measured_again() -> None:
    failed = stage(16, evidence(0, 0), ramp_failed=True)
    assert level_verdict(history(failed), 16).kind is EXCEEDED
    assert level_verdict(history(failed), 20).kind is EXCEEDED
    assert level_verdict(history(failed), 8).kind is OPEN
    assert level_verdict(history(failed, stage(16, evidence(600, 0))), 16).kind is WITHIN


# ---------------------------------------------------------------------------------------------- not to be judged
def test_invalid_stages_are_not_judged() -> None:
    invalid_reasons = stage(16, evidence(300, 100), reasons=("generator saturated: late",))
    verdict = level_verdict(history(invalid_reasons), 16)
    assert verdict.kind is OPEN
    assert verdict.reasons == ("generator saturated: late",)
    assert level_verdict(history(invalid_reasons, stage(16, evidence(400, 0))), 16).kind is WITHIN


# ------------------------------------------------------------------------------------------------------ properties
counts = st.tuples(st.integers(0, 600), st.floats(0.0, 0.5)).map(lambda pair: (pair[0], round(pair[0] * pair[1])))
ORDER = {WITHIN: 0, OPEN: 1, EXCEEDED: 2}


@given(counts, st.integers(1, 300))
def test_more_passes_never_turn_within_into_exceeded(count: tuple[int, int], more: int) -> None:
    n, violations = count
    part = evidence(n, violations)
    before = level_verdict(history(stage(16, part)), 16).kind
    after = level_verdict(history(stage(16, Evidence(part.bits + "0" * more, part.violation_at_s))), 16).kind
    if before is WITHIN:
        assert after is WITHIN


@given(counts, st.integers(1, 20))
def test_more_violations_never_turn_exceeded_into_within(count: tuple[int, int], more: int) -> None:
    n, violations = count
    part = evidence(n, violations)
    before = level_verdict(history(stage(16, part)), 16).kind
    worse = Evidence(
        part.bits + ("1" + "0" * 9) * more,
        part.violation_at_s + tuple(200.0 + 10.0 * index for index in range(more)),
    )
    after = level_verdict(history(stage(16, worse)), 16).kind
    if before is EXCEEDED:
        assert after is not WITHIN


@given(st.lists(st.floats(0.0, 50.0), max_size=60), st.floats(0.0, 2.0))
def test_clumps_partition_the_violations(times_s: list[float], gap: float) -> None:
    assert sum(clusters(times_s, gap, 1.0)) == len(times_s)


# --------------------------------------------------------------------------------------------------- design effect
def test_design_effect_is_shrunk_toward_two_and_bounded() -> None:
    assert design_effect(history(), 0) == 2.0
    alone = history(stage(16, evidence(2000, 20, to_s=400.0)))
    assert 1.0 <= design_effect(alone, 0) < 1.3
    stalls = Evidence(
        ("0" * 400 + "1" * 40) * 5, tuple(20.0 * stall + 0.001 * index for stall in range(5) for index in range(40))
    )
    assert design_effect(history(stage(64, stalls)), 0) == 32.0


def test_gross_overload_and_invalid_stages_show_no_design_effect() -> None:
    overloaded = stage(16, evidence(100, 40, to_s=10.0))
    invalid_reasons = stage(16, evidence(2000, 20), reasons=("late",))
    assert design_effect(history(overloaded, invalid_reasons), 0) == 2.0


# --------------------------------------------------------------------------------------------------- is_settled
@pytest.mark.parametrize(
    ("level", "n", "violations", "result"),
    [
        (8, 23, 0, None),
        (8, 24, 0, True),  # 0 of 24 passes
        (64, 24, 0, None),
        (64, 32, 0, True),  # 0 of 32 from level 64
        (8, 10, 1, None),
        (8, 10, 2, False),  # the second early violation fails
        (8, 60, 1, True),
    ],
)
def test_screen(level: int, n: int, violations: int, result: bool | None) -> None:  # noqa: FBT001 - a table's column
    running = stage(level, evidence(n, violations))
    assert screen_result((P99,), running) is result
    assert is_settled(history(running), Measure(level, Test.SCREEN, 96, "")) is (result is not None)


def test_sample_limit_counts_the_objective_with_the_fewest_bits() -> None:
    running = stage(8, evidence(50, 1), evidence(20, 0))
    seen = history(running, objectives=(P99, P95))
    assert not is_settled(seen, Measure(8, Test.FIXED, 21, ""))
    assert is_settled(seen, Measure(8, Test.FIXED, 20, ""))


def test_a_failed_warm_up_ends_every_stage_but_a_fixed_one() -> None:
    running = history(stage(8, evidence(0, 0), ramp_failed=True))
    assert is_settled(running, Measure(8, Test.SCREEN, 96, ""))
    assert is_settled(running, Measure(8, Test.VERDICT, 96, ""))
    assert not is_settled(running, Measure(8, Test.FIXED, 96, ""))


def test_a_verdict_stage_ends_with_its_verdict() -> None:
    before = stage(8, evidence(200, 0))
    assert not is_settled(history(before, stage(8, evidence(100, 0))), Measure(8, Test.VERDICT, 900, ""))
    assert is_settled(history(before, stage(8, evidence(200, 0))), Measure(8, Test.VERDICT, 900, ""))
