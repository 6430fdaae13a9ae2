"""Folding keeps start order, and never lets the fast requests speak for the slow ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrator.core.records.history import Audit
from calibrator.core.records.level_accumulator import LevelAccumulator, outcome_of
from calibrator.core.records.objective import decide_final, parse_objective
from calibrator.core.records.sample import Failure, FailureKind, Label, Phase, RequestOutcome, Sample
from calibrator.core.records.server_load import ServerLoadPeak
from calibrator.core.records.sweep import LevelReport, Verdict, VerdictKind
from calibrator.core.search.burst import burst_bits
from calibrator.core.search.verdict import has_failed_warm_up

OBJECTIVES = (parse_objective("ttft p99 <= 100ms"), parse_objective("e2e p99 <= 1s"))
RAMP, COUNTED = Label(1, Phase.RAMP), Label(1, Phase.COUNTED)
UNJUDGED = Verdict(VerdictKind.INCONCLUSIVE, ())


def sample(request_id: int, ttft_s: float | None = 0.05, duration_s: float = 0.5, **facts: object) -> Sample:
    values: dict[str, object] = {
        "request_id": request_id, "label": COUNTED, "class_name": "default", "stream": True,
        "wanted_prompt_tokens": 100, "started_s": float(request_id), "duration_s": duration_s, "ttft_s": ttft_s,
        "prompt_tokens": 100, "completion_tokens": 10,
    }  # fmt: skip
    return Sample(**{**values, **facts})  # type: ignore[arg-type] # a table of keyword arguments


def accumulator_with(count: int, label: Label = COUNTED, first: int = 0) -> LevelAccumulator:
    accumulator = LevelAccumulator(4, OBJECTIVES)
    accumulator.begin(1)
    for request_id in range(first, first + count):
        accumulator.started(request_id, label, float(request_id))
    return accumulator


def report(accumulator: LevelAccumulator) -> LevelReport:
    return accumulator.report(UNJUDGED, (0, 0), Audit(), ServerLoadPeak())


def bits(accumulator: LevelAccumulator, objective: int = 0, limit: int | None = None) -> str:
    return accumulator.evidence(0.0, limit)[objective].bits


def test_bits_are_read_up_to_the_first_undecided_request() -> None:
    accumulator = accumulator_with(5)
    for request_id in (0, 1, 3, 4):
        accumulator.decided(request_id, 0, violated=request_id == 3, at_s=1.0)
    assert bits(accumulator) == "00", "3 and 4 are known, but 2 is still running"
    accumulator.decided(2, 0, violated=True, at_s=7.0)
    assert bits(accumulator) == "00110"


@given(st.permutations(range(12)), st.lists(st.booleans(), min_size=12, max_size=12))
def test_the_order_of_decisions_does_not_matter(order: list[int], violated: list[bool]) -> None:
    accumulator = accumulator_with(12)
    for request_id in order:
        accumulator.decided(request_id, 0, violated=violated[request_id], at_s=float(request_id))
        assert "".join("01"[flag] for flag in violated).startswith(bits(accumulator))
    assert bits(accumulator) == "".join("01"[flag] for flag in violated)
    expected = tuple(float(index) for index, flag in enumerate(violated) if flag)
    assert accumulator.evidence(0.0)[0].violation_at_s == expected


def test_objectives_are_read_on_their_own() -> None:
    accumulator = accumulator_with(3)
    for request_id in range(3):
        accumulator.decided(request_id, 0, violated=False, at_s=0.0)
    accumulator.decided(0, 1, violated=True, at_s=2.0)
    assert (bits(accumulator, 0), bits(accumulator, 1)) == ("000", "1")


def test_a_request_that_says_nothing_is_left_out() -> None:
    accumulator = accumulator_with(3)
    for request_id, violated in enumerate([False, None, True]):
        accumulator.decided(request_id, 0, violated=violated, at_s=0.0)
    assert bits(accumulator) == "01"


def test_the_time_of_a_violation_may_come_later_but_its_bit_does_not_change() -> None:
    accumulator = accumulator_with(1)
    accumulator.decided(0, 0, violated=True, at_s=1.0)
    accumulator.decided(0, 0, violated=True, at_s=9.0)
    assert accumulator.evidence(4.0)[0].violation_at_s == (5.0,)


def test_a_cut_gives_the_next_stage_only_what_is_new() -> None:
    accumulator = accumulator_with(6)
    for request_id in range(4):
        accumulator.decided(request_id, 0, violated=request_id == 0, at_s=float(request_id))
    assert bits(accumulator) == "1000"
    accumulator.cut()
    for request_id in (4, 5):
        accumulator.decided(request_id, 0, violated=True, at_s=float(request_id))
    assert bits(accumulator) == "11"
    assert accumulator.evidence(0.0)[0].violation_at_s == (4.0, 5.0)
    assert accumulator.stage_requests == 0


def test_a_limit_takes_exactly_so_many() -> None:
    accumulator = accumulator_with(10)
    for request_id in range(10):
        accumulator.decided(request_id, 0, violated=request_id >= 5, at_s=0.0)
        accumulator.ended(sample(request_id, ttft_s=0.01 * (request_id + 1)))
    assert bits(accumulator, limit=6) == "000001"
    assert accumulator.ended_in_order(limit=6) == 6
    assert report(accumulator).ttft.n == 6


def test_latencies_wait_for_the_slow_ones() -> None:
    """Two fast requests behind a slow one must not make the level look fast."""
    accumulator = accumulator_with(3)
    accumulator.ended(sample(1))
    accumulator.ended(sample(2))
    assert accumulator.ended_in_order() == 0
    accumulator.ended(sample(0, ttft_s=5.0, duration_s=6.0))
    assert accumulator.ended_in_order() == 3
    assert report(accumulator).e2e.n == 3


def test_samples_of_another_stage_are_not_ours() -> None:
    accumulator = accumulator_with(1)
    accumulator.ended(sample(77, label=Label(0, Phase.COUNTED)))
    assert accumulator.residence_s() == 0.0
    accumulator.started(78, Label(0, Phase.COUNTED), 1.0)
    accumulator.decided(78, 0, violated=True, at_s=1.0)
    assert bits(accumulator) == ""


def test_the_ramp_is_watched_only_after_its_last_start() -> None:
    accumulator = LevelAccumulator(4, OBJECTIVES)
    accumulator.begin(1)
    for request_id in range(10):
        accumulator.started(request_id, RAMP, float(request_id))
        if request_id == 4:
            accumulator.ramp_complete(4.5)
    for request_id in range(10):
        accumulator.decided(request_id, 0, violated=True, at_s=0.0)
    assert [count.n for count in accumulator.ramp()] == [5, 0]
    assert has_failed_warm_up(OBJECTIVES, accumulator.ramp())
    assert bits(accumulator) == "", "a ramp never adds to the counted evidence"


@pytest.mark.parametrize(("violations", "n", "fails"), [(3, 3, False), (4, 4, True), (4, 16, True), (4, 17, False)])
def test_a_ramp_fails_at_four_violations_and_a_quarter(violations: int, n: int, *, fails: bool) -> None:
    accumulator = LevelAccumulator(4, OBJECTIVES)
    accumulator.begin(1)
    accumulator.ramp_complete(0.0)
    for request_id in range(n):
        accumulator.started(request_id, RAMP, 1.0)
        accumulator.decided(request_id, 0, violated=request_id < violations, at_s=1.0)
    assert has_failed_warm_up(OBJECTIVES, accumulator.ramp()) is fails


def test_failures_have_infinite_latency_and_are_counted_by_kind() -> None:
    accumulator = accumulator_with(20)
    broken = Failure(FailureKind.STATUS, "busy", 503)
    for request_id in range(20):
        accumulator.ended(sample(request_id) if request_id < 8 else sample(request_id, ttft_s=None, failure=broken))
    accumulator.ended_in_order()
    level = report(accumulator)
    assert level.errors == (("status", 12),)
    assert level.ttft.p50 is None, "the median request failed: there is no number for that"
    assert level.ttft.n == 20


def test_throughput_counts_what_ended_while_the_level_was_held() -> None:
    accumulator = accumulator_with(4)
    slow = sample(2, ttft_s=0.5)
    accumulator.held(1.0, 4, [sample(0), sample(1)])
    accumulator.held(1.0, 2, [slow])
    level = report(accumulator)
    assert (level.requests_per_second, level.goodput_per_second) == (1.5, 1.0)
    assert (level.output_tokens_per_second, level.prompt_tokens_per_second) == (15.0, 150.0)
    assert level.achieved_concurrency == 3.0


def test_a_quantile_that_n_cannot_support_is_none() -> None:
    accumulator = accumulator_with(50)
    for request_id in range(50):
        accumulator.ended(sample(request_id))
    accumulator.ended_in_order()
    level = report(accumulator)
    assert level.ttft.p50 is not None
    assert level.ttft.p99 is None
    assert level.tpot.n == 0


@pytest.mark.parametrize(
    ("facts", "outcome"),
    [
        ({}, RequestOutcome.OK),
        ({"ttft_s": 0.2}, RequestOutcome.VIOLATION),
        ({"duration_s": 1.5}, RequestOutcome.VIOLATION),
        ({"failure": Failure(FailureKind.RESET, "")}, RequestOutcome.FAILED),
        ({"failure": Failure(FailureKind.STATUS, "", 401)}, RequestOutcome.INVALID),
        ({"cancelled": True}, RequestOutcome.CANCELLED),  # before its limits: no violation
        ({"cancelled": True, "ttft_s": None, "duration_s": 0.05}, RequestOutcome.CANCELLED),
        ({"cancelled": True, "ttft_s": None, "duration_s": 0.15}, RequestOutcome.VIOLATION),  # the limit had passed
        ({"cancelled": True, "ttft_s": 0.2}, RequestOutcome.VIOLATION),
        ({"cancelled": True, "duration_s": 1.5}, RequestOutcome.VIOLATION),
    ],
)
def test_each_ended_request_has_one_outcome(facts: dict[str, object], outcome: RequestOutcome) -> None:
    """The outcome, the bits of a level and those of a burst agree on what violates."""
    ended = sample(0, **facts)  # type: ignore[arg-type] # table of keyword arguments
    bits = burst_bits(OBJECTIVES, [ended])
    assert outcome_of(ended, OBJECTIVES) is outcome
    is_violated = any(decide_final(objective, ended) for objective in OBJECTIVES)
    assert is_violated is (outcome in (RequestOutcome.VIOLATION, RequestOutcome.FAILED))
    assert any(bits.violations) is is_violated


def test_the_tail_aims_the_next_step() -> None:
    accumulator = accumulator_with(40)
    assert accumulator.tail_ratio() == (None, None)
    for request_id in range(40):
        accumulator.ended(sample(request_id, ttft_s=0.05 if request_id % 10 else 0.09))
    accumulator.ended_in_order()
    ttft, e2e = accumulator.tail_ratio()
    assert ttft is not None
    assert ttft > 0.9
    assert e2e == pytest.approx(0.5)


def test_what_started_at_another_total_is_in_no_order() -> None:
    accumulator = LevelAccumulator(4, OBJECTIVES)
    accumulator.begin(1)
    for request_id in range(6):
        accumulator.started(request_id, COUNTED, float(request_id), on_level=request_id not in (1, 2))
        accumulator.decided(request_id, 0, violated=request_id in (2, 4), at_s=1.0)
    assert bits(accumulator) == "0010"
    assert accumulator.stage_requests == 6, "it was sent, and paid for"


def test_suspect_samples_are_taken_back_whatever_their_result() -> None:
    accumulator = accumulator_with(10)
    for request_id in range(10):
        accumulator.decided(request_id, 0, violated=request_id % 2 == 1, at_s=float(request_id))
    assert bits(accumulator) == "0101010101"
    accumulator.take_back(6.0)
    assert bits(accumulator) == "010101"
    assert accumulator.evidence(0.0)[0].violation_at_s == (1.0, 3.0, 5.0)
    accumulator.started(10, COUNTED, 10.0)
    accumulator.decided(10, 0, violated=True, at_s=10.0)
    assert bits(accumulator) == "0101011"


def test_what_earlier_stages_were_given_stays_theirs() -> None:
    accumulator = accumulator_with(8)
    for request_id in range(8):
        accumulator.decided(request_id, 0, violated=False, at_s=0.0)
    assert bits(accumulator) == "00000000"
    accumulator.cut()
    accumulator.take_back(3.0)
    assert bits(accumulator) == ""
    accumulator.started(8, COUNTED, 8.0)
    accumulator.decided(8, 0, violated=True, at_s=8.0)
    assert bits(accumulator) == "1"


def test_suspect_latencies_make_no_slow_spell() -> None:
    """Unseen load that came and went, in the middle of a stage that was closed before anybody knew."""
    accumulator, alone = accumulator_with(120), accumulator_with(90)
    for request_id in range(120):
        slow = request_id >= 90 or request_id % 7 == 0
        accumulator.ended(sample(request_id, ttft_s=0.2 if slow else 0.05))
        if request_id < 90:
            alone.ended(sample(request_id, ttft_s=0.2 if slow else 0.05))
    assert (accumulator.ended_in_order(), alone.ended_in_order()) == (120, 90)
    seen, expected = accumulator.correlation()[0], alone.correlation()[0]
    assert seen is not None
    assert expected is not None
    assert seen.at_p80 > 3.0 * expected.at_p80
    accumulator.cut()
    accumulator.take_back(90.0)
    assert accumulator.correlation()[0] == expected
    assert report(accumulator).ttft.n == 90


def test_a_suspect_ramp_fails_nothing() -> None:
    accumulator = LevelAccumulator(4, OBJECTIVES)
    accumulator.begin(1)
    accumulator.ramp_complete(0.0)
    for request_id in range(8):
        accumulator.started(request_id, RAMP, 1.0 + request_id)
        accumulator.decided(request_id, 0, violated=True, at_s=9.0)
    assert has_failed_warm_up(OBJECTIVES, accumulator.ramp())
    accumulator.take_back(2.0)
    assert [count.n for count in accumulator.ramp()] == [1, 0]
    assert not has_failed_warm_up(OBJECTIVES, accumulator.ramp())


def test_rates_are_those_of_the_whole_level() -> None:
    """A third of the requests in flight are ours, so a third of what ends is."""
    accumulator = accumulator_with(2)
    accumulator.held(1.0, 2, [sample(0), sample(1)], organic=4.0)
    level = report(accumulator)
    assert level.achieved_concurrency == 6.0
    assert level.requests_per_second == pytest.approx(6.0)
