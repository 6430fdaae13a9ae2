"""The mirrored workload has the source's quantiles, within one bucket, whatever the source."""

from __future__ import annotations

import math
import random
from bisect import bisect_left

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.live_traffic import TOKEN_BOUNDS, Users, token_histogram

from calibrator.core.records.server_load import Histogram
from calibrator.core.workload.classes import PromptFactory, TokenScale, Workload, WorkloadClass
from calibrator.core.workload.live_mix import LiveMix, mix_between
from calibrator.core.workload.mirror import CARDS, MirrorPolicy, MirrorWeight, laid, mirrored

CONFIGURED = Workload((WorkloadClass("mine", prompt_tokens=77, output_tokens=7),), 0.1)
BOTH = MirrorPolicy()


@st.composite
def histograms(draw: st.DrawFn) -> Histogram:
    parts = draw(st.lists(st.integers(0, 500), min_size=len(TOKEN_BOUNDS), max_size=len(TOKEN_BOUNDS)))
    parts[draw(st.integers(0, len(parts) - 1))] += 300
    counts = [float(sum(parts[: index + 1])) for index in range(len(parts))]
    return Histogram(TOKEN_BOUNDS, tuple(counts))


def bucket_of_quantile(histogram: Histogram, q: float) -> int:
    return bisect_left(histogram.counts, q * histogram.total)


@settings(max_examples=200, deadline=None)
@given(histograms(), st.none() | st.floats(1.0, 9000.0))
def test_every_quantile_lies_in_the_sources_bucket(source: Histogram, mean: float | None) -> None:
    lengths = laid(source, mean)
    assert lengths == sorted(lengths)
    for index, length in enumerate(lengths):
        bucket = bucket_of_quantile(source, (index + 0.5) / CARDS)
        assert bisect_left(TOKEN_BOUNDS, length) == bucket, (index, length)


@settings(max_examples=50, deadline=None)
@given(histograms(), histograms(), st.floats(1.0, 5000.0), st.floats(1.0, 5000.0))
def test_dealt_requests_have_the_quantiles_of_prompts_and_answers(
    prompts: Histogram, outputs: Histogram, mean_prompt: float, mean_output: float
) -> None:
    """What the generator sends, not only what was laid: P50, P90 and P99 within one bucket, to the width of a card:
    where the source's quantile stands at the edge of a gap, a deck of so many may stand on either side of it."""
    live = LiveMix(
        prompts=prompts,
        outputs=outputs,
        prompt_tokens=mean_prompt * prompts.total,
        output_tokens=mean_output * outputs.total,
    )
    workload = mirrored([live], BOTH, CONFIGURED).workload
    factory = PromptFactory(workload, TokenScale(), seed=5)
    sizes = [factory.next_size() for _ in range(CARDS)]
    for source, sent in ((prompts, [size[1] for size in sizes]), (outputs, [size[2] for size in sizes])):
        for q in (0.5, 0.9, 0.99):
            sent_in = bisect_left(TOKEN_BOUNDS, sorted(sent)[math.ceil(q * CARDS) - 1])
            low, high = (bucket_of_quantile(source, min(1.0, q + side / CARDS)) for side in (-1, 1))
            assert low - 1 <= sent_in <= high + 1


def test_real_lengths_come_back_with_their_mean() -> None:
    users = Users()
    before = users.load()
    users.served(5000)
    live = mix_between(before, users.load(), 3600.0)
    assert live is not None
    found = mirrored([live], BOTH, CONFIGURED)
    sizes = found.workload.classes[0].sizes
    assert sum(prompt for prompt, _ in sizes) / CARDS == pytest.approx(sum(users.prompts) / 5000, rel=0.03)
    assert sum(output for _, output in sizes) / CARDS == pytest.approx(sum(users.outputs) / 5000, rel=0.03)
    assert found.workload.prefix_reuse_ratio == pytest.approx(0.3, abs=0.001)
    assert found.is_live
    assert found.words == "mirrored: the lengths of 5000 live requests and their prefix reuse of 30%"
    assert mirrored([live], BOTH, CONFIGURED) == found, "the same traffic makes the same probes"


def test_prompts_and_answers_are_not_paired_by_rank() -> None:
    users = Users()
    before = users.load()
    users.served(1000)
    live = mix_between(before, users.load(), 3600.0)
    assert live is not None
    sizes = mirrored([live], BOTH, CONFIGURED).workload.classes[0].sizes
    short = sorted(output for prompt, output in sizes if prompt < 200)
    long = sorted(output for prompt, output in sizes if prompt >= 200)
    assert short[len(short) // 2] == pytest.approx(long[len(long) // 2], rel=0.35)


def test_no_pair_is_longer_than_the_context_that_the_engine_showed() -> None:
    """Its last bound is about its context; half of the prompts nearly fill it, half of the answers are long."""
    draws = random.Random(1)
    prompts = [draws.choice((50, 4000)) for _ in range(1000)]
    outputs = [draws.choice((5, 900)) for _ in range(1000)]
    live = LiveMix(prompts=token_histogram(prompts), outputs=token_histogram(outputs))
    sizes = mirrored([live], BOTH, CONFIGURED).workload.classes[0].sizes
    assert max(prompt + output for prompt, output in sizes) <= 5000 + 10


PEAK = MirrorPolicy(weight=MirrorWeight.PEAK)


def hour(median: int, in_flight: float, requests: int = 400) -> LiveMix:
    users = Users(prompt=lambda _: median, in_flight=in_flight)
    before = users.load()
    users.served(requests)
    live = mix_between(before, users.load(), 3600.0)
    assert live is not None
    return live


def test_the_peak_is_the_busiest_quarter() -> None:
    day = [hour(30, 2.0)] * 9 + [hour(1500, 40.0)] * 3
    assert {prompt > 1000 for prompt, _ in mirrored(day, PEAK, CONFIGURED).workload.classes[0].sizes} == {True}
    assert {prompt > 1000 for prompt, _ in mirrored(day, BOTH, CONFIGURED).workload.classes[0].sizes} == {True, False}


def test_a_thin_peak_takes_more_hours_until_it_is_enough() -> None:
    day = [hour(1500, 40.0, requests=50), *[hour(30, 2.0, requests=100)] * 3]
    assert "the lengths of 250 live requests" in mirrored(day, PEAK, CONFIGURED).words


def test_a_day_without_enough_requests_has_no_peak() -> None:
    assert "only 150 live requests" in mirrored([hour(30, 2.0, requests=50)] * 3, PEAK, CONFIGURED).words


@pytest.mark.parametrize(
    ("live", "words"),
    [
        ([], "the engine shows no histograms of prompt and answer lengths"),
        ([hour(30, 2.0, requests=50)], "only 50 live requests were seen without probes, 200 are needed"),
    ],
)
def test_without_enough_traffic_the_configured_workload_stands_in_and_says_so(live: list[LiveMix], words: str) -> None:
    found = mirrored(live, BOTH, CONFIGURED)
    assert found.workload == CONFIGURED
    assert not found.is_live
    assert found.words.startswith("not mirrored, ")
    assert words in found.words


def test_prefix_reuse_alone_keeps_the_configured_lengths() -> None:
    found = mirrored([hour(500, 2.0)], MirrorPolicy(lengths=False), CONFIGURED)
    assert found.workload == Workload(CONFIGURED.classes, 0.3)


def test_lengths_alone_keep_the_configured_reuse() -> None:
    found = mirrored([hour(500, 2.0)], MirrorPolicy(prefix_reuse=False), CONFIGURED)
    assert found.workload.prefix_reuse_ratio == 0.1
    assert found.workload.classes[0].stream


def test_everything_cached_is_as_much_as_probes_can_do() -> None:
    full = LiveMix(queried_tokens=1e6, hit_tokens=1e6)
    assert mirrored([full], MirrorPolicy(lengths=False), CONFIGURED).workload.prefix_reuse_ratio == 0.95


def test_probes_that_are_not_streamed_stay_so() -> None:
    configured = Workload((WorkloadClass(stream=False),))
    assert not mirrored([hour(500, 2.0)], BOTH, configured).workload.classes[0].stream
