"""What was not measured is never met: every metric by every way in which its inputs can be missing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calibrator.core.records.history import Evidence, History, Stage
from calibrator.core.records.level_accumulator import LevelAccumulator, outcome_of
from calibrator.core.records.objective import Metric, Objective, decide_final, parse_objective
from calibrator.core.records.sample import Label, Phase, RequestOutcome, Sample
from calibrator.core.records.sweep import VerdictKind
from calibrator.core.records.unmeasured import ENOUGH, Missing, UnmeasuredTally, missing_input
from calibrator.core.search.verdict import level_verdict

COUNTED = Label(1, Phase.COUNTED)
# 11 tokens of 40 ms each after a first one at 100 ms.
WHOLE = Sample(
    1, COUNTED, "c", stream=True, wanted_prompt_tokens=100, started_s=0.0, duration_s=0.51, ttft_s=0.1, ttfc_s=0.1,
    last_token_s=0.5, gaps_s=((0.5, 0.04), (0.9, 0.04), (0.99, 0.04)), token_events=11, token_reads=11,
    prompt_tokens=100, completion_tokens=11, wanted_output_tokens=11,
)  # fmt: skip
ONE = {"last_token_s": 0.1, "gaps_s": (), "token_events": 1, "token_reads": 1}
DOCUMENT = {"stream": False, "ttft_s": None, "ttfc_s": None, "last_token_s": None, "gaps_s": (), "token_events": 0}

# The answer -> what it says about ttft, ttfc, itl, tpot, e2e: a value in ms, or the code of what is missing.
ANSWERS: dict[str, tuple[dict[str, object], tuple[object, ...]]] = {
    "whole": ({}, (100, 100, 40, 40, 510)),
    "whole, reads not counted": ({"token_reads": 0}, (100, 100, 40, 40, 510)),
    "merged by the engine": ({"token_events": 8, "token_reads": 8}, (100, 100, 40, 40, 510)),
    "no usage": ({"completion_tokens": None}, (100, 100, 40, 40, 510)),
    "usage zero": ({"completion_tokens": 0}, (100, 100, 40, 40, 510)),
    "no usage, nobody knows what was asked for": (
        {"completion_tokens": None, "wanted_output_tokens": None}, (100, 100, 40, Missing.NO_USAGE, 510),
    ),
    "usage zero, more events than tokens asked for": (
        {"completion_tokens": 0, "wanted_output_tokens": 9}, (100, 100, 40, Missing.NO_USAGE, 510),
    ),
    "one token": ({"completion_tokens": 1} | ONE, (100, 100, Missing.ONE_TOKEN, Missing.ONE_TOKEN, 510)),
    "one token asked for, no usage": (
        {"completion_tokens": None, "wanted_output_tokens": 1} | ONE,
        (100, 100, Missing.ONE_TOKEN, Missing.ONE_TOKEN, 510),
    ),
    "a single chunk": (ONE, (100, 100, Missing.SINGLE_CHUNK, Missing.SINGLE_CHUNK, 510)),
    "a single chunk, no usage": (
        {"completion_tokens": None} | ONE, (100, 100, Missing.SINGLE_CHUNK, Missing.SINGLE_CHUNK, 510),
    ),
    "all in one read": (
        {"last_token_s": 0.1, "token_reads": 1}, (100, 100, Missing.BUFFERED, Missing.BUFFERED, 510),
    ),
    "all in one read, reads not counted": (
        {"last_token_s": 0.1, "token_reads": 0}, (100, 100, Missing.BUFFERED, Missing.BUFFERED, 510),
    ),
    "three events a read": ({"token_reads": 3}, (100, 100, Missing.BUFFERED, Missing.BUFFERED, 510)),
    "some events in one read": ({"token_reads": 5}, (100, 100, 40, 40, 510)),
    "reasoning only": ({"ttfc_s": None}, (100, Missing.NO_CONTENT, 40, 40, 510)),
    "no text": (
        DOCUMENT | {"stream": True},
        (Missing.NO_TOKEN, Missing.NO_CONTENT, Missing.NO_TOKEN, Missing.NO_TOKEN, 510),
    ),
    "not streamed": (
        DOCUMENT,
        (Missing.NOT_STREAMED, Missing.NOT_STREAMED, Missing.NOT_STREAMED, Missing.NOT_STREAMED, 510),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize(("index", "metric"), list(enumerate(Metric)))
def test_a_metric_is_measured_or_the_bit_is_undecided_with_a_code(name: str, index: int, metric: Metric) -> None:
    facts, expected = ANSWERS[name]
    sample, said = replace(WHOLE, **facts), expected[index]  # type: ignore[arg-type] # a table of fields
    bits = [decide_final(Objective(metric, 0.9, limit_s), sample) for limit_s in (0.001, 0.039, 0.0411, 60.0)]
    if metric in (Metric.TTFT, Metric.TTFC) and name == "no text":
        assert (bits, missing_input(metric, sample)) == ([True, True, True, None], said), "waited for 510 ms, in vain"
    elif said is Missing.NO_CONTENT:
        assert (bits, missing_input(metric, sample)) == ([True, True, True, None], said), "nothing at all for 100 ms"
    elif isinstance(said, Missing):
        assert (bits, missing_input(metric, sample)) == ([None] * 4, said)
    else:
        assert isinstance(said, int)
        assert bits == [True, said > 39, said > 41, False]


def test_no_way_is_forgotten() -> None:
    assert {code for _, said in ANSWERS.values() for code in said if isinstance(code, Missing)} == set(Missing)


@pytest.mark.parametrize(
    ("limit_ms", "expected"),
    # 11 tokens asked for, 6 events: 400 ms are 40 ms a token at the least, and 80 ms at the most.
    [(39, True), (41, None), (79, None), (81, False)],
)
def test_without_usage_the_stream_bounds_the_tokens(limit_ms: int, *, expected: bool | None) -> None:
    sample = replace(WHOLE, completion_tokens=None, token_events=6, token_reads=6)
    objective = Objective(Metric.TPOT, 0.9, limit_ms / 1000)
    assert decide_final(objective, sample) is expected
    assert missing_input(Metric.TPOT, sample) is Missing.NO_USAGE


@pytest.mark.parametrize("metric", Metric)
@pytest.mark.parametrize("waited_s", [0.05, 5.0])
def test_a_cancelled_request_is_decided_only_by_what_it_had_shown(metric: Metric, waited_s: float) -> None:
    facts = {"ttft_s": None, "ttfc_s": None, "last_token_s": None, "gaps_s": (), "duration_s": waited_s}
    cancelled = replace(WHOLE, cancelled=True, completion_tokens=None, **facts)  # type: ignore[arg-type] # likewise
    at_the_end_only = metric in (Metric.ITL, Metric.TPOT)
    expected = True if waited_s > 1.0 and not at_the_end_only else None
    assert decide_final(Objective(metric, 0.9, 1.0), cancelled) is expected
    begun = replace(WHOLE, cancelled=True, duration_s=0.3, last_token_s=0.3)
    is_shown = metric in (Metric.TTFT, Metric.TTFC)
    assert decide_final(Objective(metric, 0.9, 1.0), begun) is (False if is_shown else None)


@pytest.mark.parametrize("lasted_s", [0.2, 0.9, 30.0])
@pytest.mark.parametrize("cancelled", [False, True])
def test_an_answer_that_ends_in_its_reasoning_says_nothing_fast_or_slow(lasted_s: float, *, cancelled: bool) -> None:
    """Were the slow ones violations, and the fast ones nothing, every level would be refuted."""
    thought = replace(WHOLE, ttfc_s=None, duration_s=lasted_s, last_token_s=lasted_s, cancelled=cancelled)
    assert decide_final(Objective(Metric.TTFC, 0.9, 0.3), thought) is None


@pytest.mark.parametrize(
    ("name", "objective", "expected"),
    [
        ("whole", "tpot p90 <= 50ms", RequestOutcome.OK),
        ("whole", "tpot p90 <= 30ms", RequestOutcome.VIOLATION),
        ("a single chunk", "tpot p90 <= 50ms", RequestOutcome.UNMEASURED),
        ("reasoning only", "ttfc p90 <= 1s", RequestOutcome.UNMEASURED),
        ("reasoning only", "ttft p90 <= 1s", RequestOutcome.OK),
        ("one token", "itl p90 <= 50ms", RequestOutcome.OK),  # it has no gap that could be too long
        ("not streamed", "ttft p90 <= 1s", RequestOutcome.OK),  # no such objective for it
    ],
)
def test_goodput_counts_only_what_was_seen_to_be_good(name: str, objective: str, expected: RequestOutcome) -> None:
    sample = replace(WHOLE, **ANSWERS[name][0])  # type: ignore[arg-type] # a table of fields
    assert outcome_of(sample, (parse_objective(objective),)) is expected


# ------------------------------------------------------------------------------------------------------------- a level
TPOT = (parse_objective("tpot p90 <= 50ms"),)


def stage(level: int, evidence: Evidence) -> Stage:
    return Stage(level, 0.0, 10.0, 0.5, (evidence,), (), requests=100)


def verdict(*stages: Stage, level: int = 8) -> VerdictKind:
    return level_verdict(History(TPOT, stages), level).kind


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        (Evidence("0" * 90), VerdictKind.WITHIN),
        (Evidence("0" * 90, (), ((Missing.NO_USAGE, 9),)), VerdictKind.WITHIN),  # one in eleven
        (Evidence("0" * 90, (), ((Missing.NO_USAGE, 11),)), VerdictKind.INCONCLUSIVE),
        (Evidence("0" * 90, (), ((Missing.ONE_TOKEN, 500),)), VerdictKind.WITHIN),  # they have no pace to be judged
        (Evidence("", (), ((Missing.ONE_TOKEN, 500),)), VerdictKind.INCONCLUSIVE),
        (Evidence("", (), ((Missing.NO_CONTENT, 1),)), VerdictKind.INCONCLUSIVE),
    ],
)
def test_a_level_full_of_holes_is_not_within(evidence: Evidence, expected: VerdictKind) -> None:
    seen = level_verdict(History(TPOT, (stage(8, evidence),)), 8)
    assert seen.kind is expected
    assert seen.objectives[0].missing == evidence.missing
    for code, _ in evidence.missing:
        assert (f"{code}: " in seen.reasons[0]) is (expected is VerdictKind.INCONCLUSIVE)


def test_violations_beside_the_holes_still_refute() -> None:
    times_s = tuple(0.2 * index for index in range(40))
    assert verdict(stage(8, Evidence("1" * 40, times_s, ((Missing.NO_USAGE, 60),)))) is VerdictKind.EXCEEDED


def test_holes_do_not_help_lower_levels_pass_and_are_not_passed_by_higher_ones() -> None:
    holes, good = ((Missing.NO_USAGE, 60),), Evidence("0" * 90)
    assert verdict(stage(16, Evidence("0" * 90, (), holes)), stage(8, Evidence("0"))) is VerdictKind.INCONCLUSIVE
    assert verdict(stage(16, good), stage(8, Evidence("0"))) is VerdictKind.WITHIN
    assert verdict(stage(16, good), stage(8, Evidence("", (), holes))) is VerdictKind.INCONCLUSIVE


def test_a_fold_counts_what_is_missing_between_its_bits() -> None:
    fold = LevelAccumulator(4, TPOT)
    fold.begin(1)
    for request_id in range(6):
        fold.started(request_id, COUNTED, float(request_id))
        missing = Missing.NO_USAGE if request_id % 2 else None
        fold.decided(request_id, 0, violated=None if missing else False, at_s=0.0, missing=missing)
        if request_id == 3:
            assert fold.evidence(0.0) == (Evidence("00", (), ((Missing.NO_USAGE, 2),)),)
            fold.cut()
    assert fold.evidence(0.0) == (Evidence("0", (), ((Missing.NO_USAGE, 1),)),)


# ------------------------------------------------------------------------------------------------------------- a sweep
def test_the_sweep_says_what_its_answers_did_not_show() -> None:
    tally = UnmeasuredTally((parse_objective("ttft p90 <= 1s"), *TPOT))
    tally.add([WHOLE, replace(WHOLE, completion_tokens=None), replace(WHOLE, token_reads=1), WHOLE])
    lines = tally.warnings
    assert [line.split(":")[0] for line in lines] == ["buffered", "tokens_by_stream"]
    assert "1 of 4 requests" in lines[0]


def test_a_few_answers_of_one_token_are_no_warning() -> None:
    tally = UnmeasuredTally(TPOT)
    tally.add([replace(WHOLE, completion_tokens=1)] * ENOUGH)
    assert tally.warnings == ()
