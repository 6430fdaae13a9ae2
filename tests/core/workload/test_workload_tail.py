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


RECORDED = WorkloadClass.recorded("r", [(100, 8), (700, 8), (5000, 8), (6000, 4)], stream=True)


@pytest.mark.parametrize(
    ("cls", "limit", "share"),
    [
        (HEAVY, 1000, 0.0538),  # 1 - Phi(ln 5)
        (HEAVY, 200, 0.5),
        (HEAVY, 4018, 0.0),  # beyond the cut at three sigma there is nothing
        (WorkloadClass(prompt_tokens=1000, spread_ratio=0.5), 1250, 0.25),
        (WorkloadClass(prompt_tokens=1000), 1000, 0.0),
        (WorkloadClass(prompt_tokens=1000), 999, 1.0),
        (RECORDED, 1000, 0.5),
    ],
)
def test_longer_prompts_are_cut_and_the_workload_says_how_many(cls: WorkloadClass, limit: int, share: float) -> None:
    workload = Workload((cls,)).cut(limit)
    (cut,) = workload.classes
    assert cut.cut_share == pytest.approx(share, abs=1e-3)
    assert (f"cut at {limit}" in str(workload)) == (share > 0)
    assert cut.longest_prompt_tokens == min(limit, cls.longest_prompt_tokens)
    assert cut.longest_total_tokens <= cls.longest_total_tokens
    factory = PromptFactory(workload, TokenScale(), 3)
    prompts = [factory.next_size()[1] for _ in range(20_000)]
    assert max(prompts) == cut.longest_prompt_tokens
    assert cut.mean_prompt_tokens == pytest.approx(sum(prompts) / len(prompts), rel=0.02)
    if 0.0 < share < 1.0:
        assert sum(prompt == limit for prompt in prompts) / len(prompts) == pytest.approx(share, abs=0.01)


def test_without_a_limit_nothing_changes() -> None:
    assert Workload((HEAVY,)).cut(None) == Workload((HEAVY,))
    assert HEAVY.cut_share == 0.0


@pytest.mark.parametrize("sigma", [-0.1, 2.5])
def test_impossible_tails_are_refused(sigma: float) -> None:
    with pytest.raises(ConfigurationError):
        Workload((WorkloadClass(prompt_sigma=sigma),))
