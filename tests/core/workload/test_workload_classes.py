"""Prompts are unique, of the wanted length, stratified and repeatable."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrator.core.records.sample import Label, Phase
from calibrator.core.workload.classes import PromptFactory, TokenScale, Workload, WorkloadClass
from calibrator.errors import ConfigurationError

LABEL = Label(1, Phase.COUNTED)
MIX = Workload((WorkloadClass("short", 7, 50, 10), WorkloadClass("long", 2, 4000, 10), WorkloadClass("e", 1, 9, 9)))


def factory(workload: Workload = MIX, seed: int = 3, scale: TokenScale | None = None) -> PromptFactory:
    return PromptFactory(workload, scale or TokenScale(), seed)


def test_every_block_carries_the_same_mix() -> None:
    """Otherwise the violations of a level are the sampling noise of the mix."""
    prompts = factory()
    for _ in range(20):
        block = Counter(prompts.next_request(LABEL, residual=False).class_name for _ in range(10))
        assert block == {"short": 7, "long": 2, "e": 1}


def test_prompts_are_unique_from_their_first_word() -> None:
    prompts = factory()
    heads = [prompts.next_request(LABEL, residual=False).text.split()[0] for _ in range(500)]
    assert len(set(heads)) == 500


def test_the_same_seed_gives_the_same_requests_and_another_seed_others() -> None:
    first, again, other = (factory(seed=seed) for seed in (1, 1, 2))
    requests = [source.next_request(LABEL, residual=False) for source in (first, again, other)]
    assert requests[0] == requests[1]
    assert requests[0].text != requests[2].text


@given(overhead=st.integers(0, 50), per_word=st.floats(0.7, 4.0), wanted=st.integers(100, 5000))
def test_length_is_learned_from_two_probes(overhead: int, per_word: float, wanted: int) -> None:
    def server(words: int) -> int:
        return round(overhead + per_word * words)

    scale = TokenScale.fit((20, server(20)), (400, server(400)))
    assert abs(server(scale.words_for(wanted)) - wanted) <= 0.01 * wanted + per_word + 1


def test_a_server_whose_count_does_not_grow_gives_the_default_scale() -> None:
    assert TokenScale.fit((10, 50), (100, 50)) == TokenScale()


def test_spread_stays_within_its_bounds_and_residual_answers_are_shorter() -> None:
    prompts = factory(Workload((WorkloadClass(prompt_tokens=100, output_tokens=200, spread_ratio=0.5),)))
    sizes = [prompts.next_request(LABEL, residual=False) for _ in range(300)]
    assert 50 <= min(r.prompt_tokens for r in sizes) < 60
    assert 140 < max(r.prompt_tokens for r in sizes) <= 150
    residual = [prompts.next_request(LABEL, residual=True).output_tokens for _ in range(300)]
    assert min(residual) >= 1
    assert sum(residual) / 300 < 0.65 * sum(r.output_tokens for r in sizes) / 300


def test_workers_share_one_range_of_ids_without_meeting() -> None:
    workers = [PromptFactory(MIX, TokenScale(), seed, first_id=seed, id_step=3) for seed in range(3)]
    ids = [worker.next_request(LABEL, residual=False).request_id for worker in workers for _ in range(50)]
    assert len(set(ids)) == 150


@pytest.mark.parametrize(
    "classes",
    [(), (WorkloadClass(share=0),), (WorkloadClass(prompt_tokens=0),), (WorkloadClass(output_tokens=0),),
     (WorkloadClass(spread_ratio=1.0),)],
)  # fmt: skip
def test_impossible_workloads_are_refused(classes: tuple[WorkloadClass, ...]) -> None:
    with pytest.raises(ConfigurationError):
        Workload(classes)


def test_a_workload_says_what_it_is() -> None:
    assert str(MIX) == "70% 50+10 tokens; 20% 4000+10 tokens; 10% 9+9 tokens"
    assert MIX.longest.name == "long"
