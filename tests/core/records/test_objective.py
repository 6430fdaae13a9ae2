"""An objective is text with one meaning; a request gives it one bit, as early as honesty allows."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrator.core.records.objective import (
    Metric,
    Objective,
    decide_final,
    decide_live,
    decided_at_s,
    format_duration,
    gap_quantiles,
    parse_duration_s,
    parse_objective,
)
from calibrator.core.records.sample import Failure, FailureKind, Flight, Label, Phase, ProbeRequest, Sample
from calibrator.errors import ConfigurationError

LABEL = Label(1, Phase.COUNTED)
REQUEST = ProbeRequest(1, LABEL, "default", "text", 100, 10, stream=True)
FAILED = Failure(FailureKind.RESET, "reset by peer")


def ended(**facts: object) -> Sample:
    values: dict[str, object] = {
        "request_id": 1, "label": LABEL, "class_name": "default", "stream": True, "wanted_prompt_tokens": 100,
        "started_s": 10.0, "duration_s": 2.0, "ttft_s": 0.3, "ttfc_s": 0.4, "last_token_s": 1.9,
        "gaps_s": ((0.5, 0.05), (0.99, 0.2)), "completion_tokens": 9,
    }  # fmt: skip
    return Sample(**{**values, **facts})  # type: ignore[arg-type] # a table of keyword arguments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ttft p99 <= 500ms", Objective(Metric.TTFT, 0.99, 0.5)),
        ("  TTFT  P99<=0.5s ", Objective(Metric.TTFT, 0.99, 0.5)),
        ("e2e p99.9 <= 2m", Objective(Metric.E2E, 0.999, 120.0)),
        ("itl p95 < 80ms", Objective(Metric.ITL, 0.95, 0.08)),
        ("ttft p99 <= 400ms for prompts <= 1024 tokens", Objective(Metric.TTFT, 0.99, 0.4, 1024)),
    ],
)
def test_objectives_are_read(text: str, expected: Objective) -> None:
    assert parse_objective(text) == expected


@pytest.mark.parametrize("text", ["", "ttft", "ttft p99", "ttft <= 5ms", "latency p99 <= 5ms", "ttft p99 <= 500",
                                  "ttft p99 <= 0ms", "ttft p10 <= 5ms", "ttft p100 <= 5ms", "ttft p99 >= 5ms",
                                  "ttft p99 <= 1.2.3ms", "ttft p99.999 <= 5ms"])  # fmt: skip
def test_a_wrong_objective_is_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_objective(text)
    assert caught.value.remedy


@given(
    metric=st.sampled_from(Metric),
    quantile=st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.999]),
    limit_ms=st.integers(1, 10_000_000),
    tokens=st.none() | st.integers(1, 10**6),
)
def test_text_and_objective_are_inverse(metric: Metric, quantile: float, limit_ms: int, tokens: int | None) -> None:
    objective = Objective(metric, quantile, limit_ms / 1000, tokens)
    again = parse_objective(str(objective))
    assert (again.metric, again.quantile, again.max_prompt_tokens) == (metric, quantile, tokens)
    assert math.isclose(again.limit_s, objective.limit_s, rel_tol=1e-9)


@given(st.floats(1e-3, 1e6))
def test_durations_survive_printing(seconds: float) -> None:
    assert math.isclose(parse_duration_s(format_duration(seconds)), seconds, rel_tol=1e-8)


@pytest.mark.parametrize(("text", "seconds"), [("500ms", 0.5), ("6h", 21600), ("1h30m", 5400), ("2d", 172800)])
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "fast", "5 parsecs", "ms", "1..2s", "5s later"])
def test_a_wrong_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("text", "first_token_s", "now_s", "expected"),
    [
        ("ttft p99 <= 1s", None, 10.9, None),  # still in time
        ("ttft p99 <= 1s", None, 11.1, True),  # limit passed without a token
        ("ttft p99 <= 1s", 10.5, 10.6, False),  # in time: decided at the token
        ("ttft p99 <= 1s", 11.5, 60.0, True),
        ("e2e p99 <= 1s", 10.5, 10.9, None),  # a token is not the end
        ("e2e p99 <= 1s", 10.5, 11.1, True),
        ("tpot p99 <= 1s", 10.5, 60.0, None),  # only the end tells
        ("itl p99 <= 1s", 10.5, 60.0, None),
    ],
)
def test_live_bits(text: str, first_token_s: float | None, now_s: float, *, expected: bool | None) -> None:
    flight = Flight(REQUEST, 10.0, first_token_s=first_token_s)
    assert decide_live(parse_objective(text), flight, now_s) is expected


def test_the_first_content_token_has_an_objective_of_its_own() -> None:
    """A reasoning model thinks before it speaks: ttft is met, ttfc is not, once it speaks."""
    ttft, ttfc = parse_objective("ttft p99 <= 1s"), parse_objective("ttfc p99 <= 1s")
    thinking = Flight(REQUEST, 10.0, first_token_s=10.1)
    assert decide_live(ttft, thinking, 12.0) is False
    assert decide_live(ttfc, thinking, 12.0) is None, "it may end without a word, and then it says nothing"
    assert decide_live(ttfc, Flight(REQUEST, 10.0, first_token_s=10.1, first_content_s=12.0), 12.0) is True
    assert decide_live(ttfc, Flight(REQUEST, 10.0, first_token_s=10.1, first_content_s=10.9), 12.0) is False


def test_content_is_no_earlier_than_the_first_token() -> None:
    ttfc = parse_objective("ttfc p99 <= 1s")
    assert decide_live(ttfc, Flight(REQUEST, 10.0), 10.9) is None
    assert decide_live(ttfc, Flight(REQUEST, 10.0), 11.1) is True
    assert decide_live(ttfc, Flight(REQUEST, 10.0, first_token_s=11.1), 11.2) is True


@pytest.mark.parametrize(
    ("text", "facts", "expected"),
    [
        ("ttft p99 <= 300ms", {}, False),
        ("ttft p99 <= 299ms", {}, True),
        ("ttfc p99 <= 300ms", {}, True),
        ("itl p99 <= 190ms", {}, True),  # its own P99 gap is 200 ms
        ("itl p50 <= 190ms", {}, False),
        ("tpot p99 <= 190ms", {}, True),  # 1.6 s over 8 gaps = 200 ms
        ("tpot p99 <= 210ms", {}, False),
        ("e2e p99 <= 2s", {}, False),
        ("e2e p99 <= 1900ms", {}, True),
        ("e2e p99 <= 1h", {"failure": FAILED}, True),  # failed = infinity, however quick
        ("ttft p99 <= 1h", {"failure": FAILED}, True),
        ("tpot p99 <= 1ms", {"completion_tokens": 1}, None),  # one token has no pace
        ("ttft p99 <= 1s", {"cancelled": True, "ttft_s": None, "duration_s": 0.5}, None),
        ("ttft p99 <= 1s", {"cancelled": True, "ttft_s": None, "duration_s": 1.5}, True),
        ("ttft p99 <= 1s", {"cancelled": True}, False),  # its token had come
        ("e2e p99 <= 3s", {"cancelled": True}, None),
        ("e2e p99 <= 1s", {"cancelled": True}, True),
        ("ttft p99 <= 1ms", {"failure": Failure(FailureKind.STATUS, "no such model", 404)}, None),  # our mistake
        ("ttft p99 <= 1ms", {"failure": Failure(FailureKind.STATUS, "busy", 503), "ttft_s": None}, True),
        ("ttft p99 <= 1h", {"failure": Failure(FailureKind.STATUS, "slow down", 429), "ttft_s": None}, True),
    ],
)
def test_final_bits(text: str, facts: dict[str, object], *, expected: bool | None) -> None:
    assert decide_final(parse_objective(text), ended(**facts)) is expected


def test_a_violation_happens_at_its_first_token_or_at_its_failure() -> None:
    objective = parse_objective("ttft p99 <= 1ms")
    assert decided_at_s(objective, ended()) == pytest.approx(10.3)
    assert decided_at_s(objective, ended(ttft_s=None, failure=FAILED)) == pytest.approx(12.0)


def test_clients_keep_the_gap_quantiles_that_objectives_ask_for() -> None:
    objectives = (parse_objective("itl p95 <= 1s"), parse_objective("ttft p99.9 <= 1s"))
    assert gap_quantiles(objectives) == (0.5, 0.9, 0.95, 0.99)
