"""Warnings about what answers: each must fire on its case, and stay silent on everything that is in order."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from calibrator.core.workload.stub_detection import (
    FLOOR_S_PER_TOKEN,
    CheckAnswer,
    Reading,
    StubCheck,
    read_price,
    shift_bounds,
    suspicions,
)

SHORT, LONG = 20, 8_000


def checked(
    price_s: float,
    *,
    base_s: float = 0.05,
    jitter_s: float = 0.0003,
    rounds: int = 5,
    seed: int = 1,
    cached: int | None = 0,
    repeat_decoding_s: float = 0.04,
) -> StubCheck:
    """A server of `base_s` plus `price_s` a prompt token, with exponential jitter; answers decode in 40 ms."""
    rng = random.Random(seed)

    def answer(tokens: int, decoding_s: float = 0.04) -> CheckAnswer:
        jitter = rng.expovariate(1 / jitter_s) if jitter_s else 0.0
        return CheckAnswer(tokens, base_s + price_s * tokens + jitter, decoding_s, cached if tokens == LONG else 0)

    return StubCheck(
        [answer(SHORT) for _ in range(rounds)],
        [answer(LONG) for _ in range(rounds)],
        [answer(SHORT, repeat_decoding_s) for _ in range(2)],
    )


@pytest.mark.parametrize("base_s", [0.0005, 0.05, 1.0])
def test_a_fixed_latency_stub_is_named_whatever_its_latency(base_s: float) -> None:
    fired = [suspicions(checked(0.0, base_s=base_s, seed=seed), 0.0) for seed in range(50)]
    assert all(len(one) == 1 and one[0].startswith("suspect_stub: a prompt of 8000 tokens") for one in fired)


@pytest.mark.parametrize(
    "price_s", [0.5e-6, 1e-6, 10e-6, 1e-3], ids=["floor", "very fast prefill", "simulated", "large model"]
)
@pytest.mark.parametrize("jitter_s", [0.0, 0.0003, 0.005])
def test_whatever_reads_its_prompts_is_no_stub(price_s: float, jitter_s: float) -> None:
    fired = [suspicions(checked(price_s, jitter_s=jitter_s, seed=seed), 0.0) for seed in range(200)]
    allowed = 0.05 * 200 if price_s == FLOOR_S_PER_TOKEN else 1  # the bound's error, and far less above the floor
    assert sum(map(bool, fired)) <= allowed


def test_a_noisy_network_decides_nothing() -> None:
    """20 ms of jitter hide 4 ms of prefill and their absence alike."""
    readings = [read_price(checked(0.0, jitter_s=0.02, seed=seed)) for seed in range(100)]
    assert readings.count(Reading.GROWS) <= 8, "5 % by the bound's error"
    assert readings.count(Reading.UNKNOWN) > 60


def test_the_price_is_clear_after_three_rounds_of_a_real_model() -> None:
    assert read_price(checked(10e-6, rounds=3)) is Reading.GROWS
    assert read_price(checked(10e-6, rounds=2)) is Reading.UNKNOWN


def test_prompts_of_the_same_length_say_nothing() -> None:
    same = [CheckAnswer(SHORT, 0.05)] * 5
    assert read_price(StubCheck(same, same)) is Reading.UNKNOWN


@pytest.mark.parametrize(("lower", "upper"), [(3, 3), (4, 4), (5, 5), (3, 5)])
def test_the_bounds_are_those_of_the_rank_test(lower: int, upper: int) -> None:
    """Against scipy: a shift just outside a bound is rejected by the exact one-sided test, one just inside is not."""
    rng = np.random.default_rng(lower * upper)
    for _ in range(20):
        a, b = rng.normal(size=lower), rng.normal(size=upper)
        low, high = shift_bounds(a.tolist(), b.tolist(), 0.05)

        def p_value(shift: float, alternative: str, a: np.ndarray = a, b: np.ndarray = b) -> float:
            return float(mannwhitneyu(b - shift, a, alternative=alternative, method="exact").pvalue)

        assert p_value(high + 1e-9, "less") <= 0.05 < p_value(high - 1e-9, "less")
        assert p_value(low - 1e-9, "greater") <= 0.05 < p_value(low + 1e-9, "greater")


# --------------------------------------------------------------------------------------------------------------- cache
def test_cached_tokens_of_prompts_never_seen_are_suspect() -> None:
    (warning,) = suspicions(checked(10e-6, cached=7_900), 0.0)
    assert warning.startswith("suspect_cache: the server reports 7900 of 8000")


@pytest.mark.parametrize(
    ("cached", "template"), [(None, 0.0), (0, 0.0), (128, 30.0), (2_100, 2_000.0)],
    ids=["not reported", "none", "a block", "a gateway's own long system prompt"],
)  # fmt: skip
def test_a_template_may_be_cached(cached: int | None, template: float) -> None:
    assert suspicions(checked(10e-6, cached=cached), template) == ()


def test_an_answer_that_is_replayed_is_suspect() -> None:
    (warning,) = suspicions(checked(10e-6, repeat_decoding_s=0.0), 0.0)
    assert warning.startswith("suspect_cache: a repeated prompt is answered without decoding")


def test_a_prefix_cache_makes_repeats_faster_and_is_not_suspect() -> None:
    """It saves the prompt's time, never the decoding (llama.cpp, vLLM: on by default)."""
    base = checked(10e-6)
    faster = [CheckAnswer(SHORT, 0.041, 0.036, SHORT - 1)] * 2
    assert suspicions(StubCheck(base.short, base.long, faster), 0.0) == ()


def test_answers_in_one_piece_say_nothing_about_replaying() -> None:
    whole = [CheckAnswer(SHORT, 0.05, span) for span in (0.0, 0.0002, None)]
    assert suspicions(StubCheck(whole, [CheckAnswer(LONG, 0.2)] * 3, [CheckAnswer(SHORT, 0.05, 0.0)] * 2), 0.0) == ()


def test_nothing_seen_nothing_said() -> None:
    assert suspicions(StubCheck(), 0.0) == ()
    for part in itertools.product((1, 2), repeat=2):
        assert suspicions(StubCheck([CheckAnswer(SHORT, 0.1)] * part[0], [CheckAnswer(LONG, 0.1)] * part[1]), 0.0) == ()


def test_the_floor_is_two_million_tokens_a_second() -> None:
    assert pytest.approx(2e6) == 1 / FLOOR_S_PER_TOKEN
