"""Lognormal prompt lengths: the wanted median and tail, cut where the longest prompt is announced."""

from __future__ import annotations

import math

import pytest

from calibrator.core.workload.classes import PromptFactory, TokenScale, Workload, WorkloadClass
from calibrator.errors import ConfigurationError

HEAVY = WorkloadClass(prompt_tokens=200, output_tokens=40, spread_ratio=0.5, prompt_sigma=1.0)


def sizes(seed: int = 3) -> list[tuple[int, int]]:
    factory = PromptFactory(Workload((HEAVY,)), TokenScale(), seed)
    return [factory.next_size()[1:] for _ in range(20_000)]


def test_prompts_have_a_lognormal_tail_and_answers_keep_their_uniform_spread() -> None:
    prompts = sorted(prompt for prompt, _ in sizes())
    outputs = [output for _, output in sizes()]
    assert prompts[10_000] == pytest.approx(200, rel=0.05)
    assert prompts[19_800] == pytest.approx(200 * math.exp(2.326), rel=0.1)
    assert (min(outputs), max(outputs)) == (20, 60)


def test_no_prompt_is_longer_than_the_longest() -> None:
    assert HEAVY.longest_prompt_tokens == round(200 * math.exp(3))
    assert max(prompt for prompt, _ in sizes()) == HEAVY.longest_prompt_tokens
    assert Workload((WorkloadClass(prompt_tokens=3000), HEAVY)).longest is HEAVY


def test_sizes_are_repeatable_and_the_text_says_so() -> None:
    assert sizes(1) == sizes(1) != sizes(2)
    assert str(HEAVY) == "200+40 tokens +-50%, prompts lognormal (sigma 1)"


@pytest.mark.parametrize("sigma", [-0.1, 2.5])
def test_impossible_tails_are_refused(sigma: float) -> None:
    with pytest.raises(ConfigurationError):
        Workload((WorkloadClass(prompt_sigma=sigma),))
