"""Differences of scrapes add up to what was served, and what is not known is left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.live_traffic import Users, token_histogram

from calibrator.core.records.server_load import Histogram, ServerLoad
from calibrator.core.workload.live_mix import LiveMix, mix_between, summed


def test_a_mix_is_what_was_served_between_two_scrapes() -> None:
    users = Users()
    users.served(100)
    before = users.load()
    users.served(50)
    mix = mix_between(before, users.load(), 10.0)
    assert mix is not None
    assert mix.prompts == token_histogram(users.prompts[100:])
    assert mix.outputs == token_histogram(users.outputs[100:])
    assert mix.prompt_tokens == sum(users.prompts[100:])
    assert mix.hit_ratio == pytest.approx(0.3)
    assert (mix.requests, mix.in_flight, mix.seconds) == (50.0, 4.0, 10.0)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8))
def test_mixes_add_up_whatever_the_steps(steps: list[int]) -> None:
    users = Users()
    first = before = users.load()
    parts = []
    for served in steps:
        users.served(served)
        now = users.load()
        parts.append(mix_between(before, now, 1.0))
        before = now
    whole, total = mix_between(first, before, float(len(steps))), summed(part for part in parts if part is not None)
    assert whole is not None
    assert (total.prompts, total.outputs, total.seconds) == (whole.prompts, whole.outputs, whole.seconds)
    assert total.hit_tokens == pytest.approx(whole.hit_tokens)


@pytest.mark.parametrize("start", ["2", None, "1"])
def test_over_a_restart_nothing_is_known(start: str | None) -> None:
    """A new start, or no start and lower counters; even the same start with lower counters is not believed."""
    users = Users()
    users.served(100)
    before = users.load()
    users.restart(start)
    users.served(5)
    assert mix_between(before, users.load(), 10.0) is None


def test_an_engine_without_histograms_has_counters_only() -> None:
    before, now = (ServerLoad("llama.cpp", 2.0, output_tokens_total=total) for total in (10.0, 30.0))
    mix = mix_between(before, now, 5.0)
    assert mix == LiveMix(seconds=5.0, busy_s=10.0, output_tokens=20.0)
    assert mix is not None
    assert mix.hit_ratio is None


def test_replicas_with_other_bounds_are_not_guessed_into_the_sum() -> None:
    many, few = Histogram((1.0, 2.0), (3.0, 9.0)), Histogram((1.0, 5.0), (1.0, 2.0))
    assert summed((LiveMix(prompts=few), LiveMix(prompts=many), LiveMix())).prompts == many


def test_nothing_is_nothing() -> None:
    assert summed(()) == LiveMix()
    assert LiveMix().in_flight == 0.0
