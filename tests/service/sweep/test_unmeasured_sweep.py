"""A sweep whose objective cannot be seen in the answers ends soon, and never with a capacity made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from support.scripted_backend import Answer
from support.scripted_sweep import ORDER, sweep

from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sample import ProbeRequest
from calibrator.core.records.sweep import Grade, SweepOutcome, SweepRecord, VerdictKind
from calibrator.core.records.unmeasured import Missing
from calibrator.ports.sweeps import SweepOrder

TTFT = parse_objective("ttft p90 <= 200ms")
TPOT = parse_objective("tpot p90 <= 50ms")
NO_USAGE: Mapping[str, object] = {"completion_tokens": None, "token_events": 3}
THOUGHT: Mapping[str, object] = {"ttfc_s": None}


def order(*objectives: object, **more: object) -> SweepOrder:
    return replace(ORDER, objectives=objectives, **more)  # type: ignore[arg-type] # a table of fields


def always(facts: Mapping[str, object]) -> Callable[[ProbeRequest, int], Answer]:
    return lambda _, in_flight: Answer(0.05 if in_flight <= 8 else 0.6, 1.0 if in_flight <= 8 else 1.6, facts=facts)


def codes(record: SweepRecord) -> set[Missing]:
    return {code for level in record.levels for one in level.verdict.objectives for code, _ in one.missing}


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        (NO_USAGE, Missing.NO_USAGE),
        (NO_USAGE | {"completion_tokens": 0}, Missing.NO_USAGE),
        ({"token_events": 1, "last_token_s": 0.05, "ttft_s": 0.05}, Missing.SINGLE_CHUNK),
        ({"token_reads": 1}, Missing.BUFFERED),
        ({"completion_tokens": 1}, Missing.ONE_TOKEN),
    ],
)
def test_an_objective_that_no_answer_shows_ends_the_sweep_at_its_first_level(
    facts: Mapping[str, object], code: Missing
) -> None:
    record, backend, _ = sweep(always(facts), order(TPOT))
    assert (record.outcome, record.capacity, record.grade) == (SweepOutcome.INCONCLUSIVE, None, None)
    assert [level.verdict.kind for level in record.levels] == [VerdictKind.INCONCLUSIVE]
    assert codes(record) == {code}
    assert f"{code}: " in record.reason
    assert len(backend.requests) < 100


@pytest.mark.parametrize("limit", ["200ms", "2s"])
def test_reasoning_without_an_answer_is_undecided_however_long_it_lasts(limit: str) -> None:
    record, _, _ = sweep(always(THOUGHT), order(parse_objective(f"ttfc p90 <= {limit}")))
    assert (record.outcome, record.capacity) == (SweepOutcome.INCONCLUSIVE, None)
    assert codes(record) == {Missing.NO_CONTENT}
    assert "no_content: " in record.reason


def test_beside_an_objective_that_is_seen_the_other_one_is_not_taken_for_met() -> None:
    record, _, _ = sweep(always(NO_USAGE), order(TTFT, TPOT))
    assert (record.outcome, record.capacity) == (SweepOutcome.INCONCLUSIVE, None)
    alone, _, _ = sweep(always(NO_USAGE), order(TTFT))
    assert alone.capacity is not None
    assert alone.capacity.estimate == 8, "the test must be able to fail"


def test_where_the_answers_stop_showing_it_the_sweep_ends_with_what_is_known_below() -> None:
    def answer(_: ProbeRequest, in_flight: int) -> Answer:
        return Answer(0.05, 1.0, facts=NO_USAGE if in_flight > 6 else {})

    record, _, _ = sweep(answer, order(TPOT))
    assert record.outcome is SweepOutcome.CALIBRATED
    assert record.capacity is not None
    assert record.capacity.estimate <= 6
    assert "no_usage: " in record.reason


def test_tokens_that_the_stream_counts_are_enough() -> None:
    """100 tokens in 0.95 s are 9.6 ms each: within 50 ms, though the server counts nothing; and the record says so."""
    record, _, _ = sweep(lambda *_: Answer(0.05, 1.0, facts={"completion_tokens": None}), order(TPOT))
    assert record.grade is Grade.AT_MAX
    assert [line for line in record.warnings if line.startswith("tokens_by_stream: ")]
    slow, _, _ = sweep(
        lambda *_: Answer(0.05, 1.0, facts={"completion_tokens": None}), order(parse_objective("tpot p90 <= 5ms"))
    )
    assert slow.outcome is SweepOutcome.INFEASIBLE


def test_levels_that_were_asked_for_are_all_measured_and_none_is_within() -> None:
    record, _, _ = sweep(always(NO_USAGE), order(TPOT, levels=(2, 4), requests_per_level=50))
    assert [level.concurrency for level in record.levels] == [2, 4]
    assert {level.verdict.kind for level in record.levels} == {VerdictKind.INCONCLUSIVE}
    assert record.duration_s < 0.5 * ORDER.bounds.duration_s
