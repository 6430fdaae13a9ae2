"""The single requests of a sweep: packed and unpacked, bounded, small."""

from __future__ import annotations

import json
import random
import zlib
from dataclasses import replace

import pytest
from support.records import ANSWER

from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sample import Failure, FailureKind, Sample
from calibrator.core.records.sample_log import SampleRow, pack, unpack
from calibrator.errors import ConfigurationError

OBJECTIVES = (parse_objective("ttft p99 <= 500ms"),)


def test_a_row_says_when_what_and_how_it_ended() -> None:
    (row,) = unpack(pack([ANSWER], {3: 16}, OBJECTIVES, 1000.0)).rows
    assert row == SampleRow(
        request_id=7,
        level=16,
        phase="counted",
        class_name="chat",
        outcome="ok",
        stream=True,
        started_at=1010.0,
        duration_s=1.5,
        ttft_s=0.25,
        ttfc_s=0.3,
        tpot_s=round(1.0 / 63, 6),
        token_events=60,
        prompt_tokens=257,
        completion_tokens=64,
        cached_tokens=128,
        wanted_prompt_tokens=256,
        wanted_output_tokens=64,
        connect_s=0.001,
        send_delay_s=0.0001,
        failure=None,
        status=None,
    )


@pytest.mark.parametrize(
    ("sample", "outcome", "failure", "status"),
    [
        (replace(ANSWER, ttft_s=0.6), "violation", None, None),
        (replace(ANSWER, cancelled=True), "cancelled", None, None),
        (replace(ANSWER, failure=Failure(FailureKind.STATUS, "no room: secret", 503)), "failed", "status", 503),
        (replace(ANSWER, failure=Failure(FailureKind.STATUS, "who?", 401)), "invalid", "status", 401),
        (replace(ANSWER, failure=Failure(FailureKind.STALLED, "quiet", None)), "failed", "stalled", None),
    ],
)
def test_how_it_ended_is_a_word_and_never_a_server_s_text(
    sample: Sample, outcome: str, failure: str | None, status: int | None
) -> None:
    packed = pack([sample], {}, OBJECTIVES, 0.0)
    (row,) = unpack(packed).rows
    assert (row.outcome, row.failure, row.status, row.level) == (outcome, failure, status, None)
    assert b"secret" not in zlib.decompress(packed)


def test_a_sweep_of_the_default_budget_takes_less_than_200_kb() -> None:
    draws = random.Random(1)
    samples = [
        replace(
            ANSWER,
            request_id=number,
            started_s=draws.uniform(0.0, 300.0),
            duration_s=draws.lognormvariate(0.0, 1.0),
            ttft_s=draws.lognormvariate(-1.0, 1.0),
            ttfc_s=draws.lognormvariate(-1.0, 1.0),
            last_token_s=draws.lognormvariate(0.5, 1.0),
            prompt_tokens=draws.randrange(200, 300),
            completion_tokens=draws.randrange(60, 70),
            send_delay_s=draws.expovariate(10_000.0),
        )
        for number in range(1800 + 4 * 512)
    ]
    packed = pack(samples, {3: 16}, OBJECTIVES, 1.8e9, left_out=5)
    assert len(packed) < 200_000
    assert len(unpack(packed).rows) == len(samples)
    assert unpack(packed).left_out == 5


def test_another_release_s_columns_are_refused_not_guessed_at() -> None:
    document = json.loads(zlib.decompress(pack([ANSWER], {}, OBJECTIVES, 0.0)))
    for odd in ({**document, "version": 2}, {**document, "columns": document["columns"][1:]}):
        with pytest.raises(ConfigurationError, match="another release"):
            unpack(zlib.compress(json.dumps(odd).encode()))
