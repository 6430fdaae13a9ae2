"""Achieved lengths and cache hits: reported by class, warned about only when they are off for certain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calibrator.core.records.sample import Failure, FailureKind, Label, Phase, Sample
from calibrator.core.records.sweep import ClassAchieved
from calibrator.core.workload.achieved import LEAST, AchievedLengths
from calibrator.core.workload.classes import Workload, WorkloadClass

SAMPLE = Sample(
    request_id=1, label=Label(1, Phase.COUNTED), class_name="a", stream=True, wanted_prompt_tokens=100, started_s=0.0,
    duration_s=1.0, prompt_tokens=102, completion_tokens=20, wanted_output_tokens=20, cached_tokens=0,
)  # fmt: skip
TWO = Workload((WorkloadClass("a"), WorkloadClass("b"), WorkloadClass("never")))


def fold(*samples: Sample, n: int = LEAST, workload: Workload = TWO) -> AchievedLengths:
    result = AchievedLengths(workload)
    for sample in samples:
        for _ in range(n):
            result.add(sample)
    return result


def test_each_class_has_its_own_means() -> None:
    other = replace(SAMPLE, class_name="b", wanted_prompt_tokens=4000, prompt_tokens=3900, completion_tokens=10)
    assert fold(SAMPLE, other).classes() == (
        ClassAchieved("a", LEAST, 100.0, 102.0, 20.0, 20.0),
        ClassAchieved("b", LEAST, 4000.0, 3900.0, 20.0, 10.0),
    )


def test_warm_up_failures_and_cancelled_requests_say_nothing() -> None:
    failed = replace(SAMPLE, failure=Failure(FailureKind.RESET, ""))
    ramp = replace(SAMPLE, label=Label(1, Phase.RAMP), completion_tokens=1)
    result = fold(failed, ramp, replace(SAMPLE, cancelled=True))
    assert (result.classes(), result.cached_ratio, result.warnings(0.0)) == ((), None, ())


def test_a_server_without_usage_is_not_guessed_about() -> None:
    silent = replace(SAMPLE, prompt_tokens=None, completion_tokens=None, cached_tokens=None)
    assert fold(silent).classes() == (ClassAchieved("a", 0, None, None, None, None),)
    assert fold(silent).cached_ratio is None
    assert fold(silent).warnings(0.0) == ()


@pytest.mark.parametrize(
    ("change", "n", "words"),
    [
        ({}, LEAST, None),
        ({"prompt_tokens": 109}, LEAST, None),
        ({"prompt_tokens": 112}, LEAST, "prompts had 112 tokens on average instead of 100"),
        ({"prompt_tokens": 88}, LEAST, "prompts had 88 tokens"),
        ({"completion_tokens": 5}, LEAST, "answers had 5 tokens on average instead of 20"),
        ({"completion_tokens": 5}, LEAST - 1, None),
    ],
)
def test_lengths_off_by_more_than_a_tenth_are_said(change: dict[str, int], n: int, words: str | None) -> None:
    warnings = fold(replace(SAMPLE, **change), n=n).warnings(0.0)  # type: ignore[arg-type] # a table of keyword arguments
    assert (not warnings) if words is None else (len(warnings) == 1 and words in warnings[0])


@pytest.mark.parametrize(
    ("wanted", "cached", "template", "words"),
    [
        (0.0, 0, 0.0, None),
        (0.0, 600, 0.0, "suspect_cache: 60% of the prompt tokens came from a cache instead of 0%"),
        (0.5, 600, 0.0, None),  # intended reuse, in whole blocks
        (0.5, 500, 0.0, None),
        (0.5, 900, 0.0, "suspect_cache: 90%"),
        (0.5, 900, 350.0, None),  # a gateway's own long system prompt
        (0.5, 100, 0.0, "Only 10% of the prompt tokens came from the prefix cache"),
        (0.0, 128, 0.0, None),  # the template's block
    ],
)
def test_cache_hits_are_compared_with_what_was_meant(
    wanted: float, cached: int, template: float, words: str | None
) -> None:
    workload = Workload((WorkloadClass("a"),), prefix_reuse_ratio=wanted)
    seen = replace(SAMPLE, wanted_prompt_tokens=1000, prompt_tokens=1000, cached_tokens=cached)
    result = fold(seen, workload=workload)
    assert result.cached_ratio == cached / 1000
    warnings = result.warnings(template)
    assert (not warnings) if words is None else (len(warnings) == 1 and words in warnings[0])
