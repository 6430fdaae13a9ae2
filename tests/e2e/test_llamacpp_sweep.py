"""The main job against a real engine: llama.cpp, whose knee is known without a clock.

With S slots nothing waits up to S requests in flight, and one request waits at S + 1, on any machine. So with a TTFT
limit between the tails at S and S + 1, found by a short pilot that shares no code with the product, the capacity is S.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from pathlib import Path

import pytest
from support.independent_load import hold_level
from support.llamacpp import LlamaServer, llama_server
from support.llamacpp_pilot import QUANTILE, limit_between, objective, sweep
from support.quiet_machine import TEST_LIMIT_S, judge

pytestmark = pytest.mark.engine


LUCK = 1  # a stall during the pilot moves the limit, and one sweep in ten may err


# With 8 slots, too, in test_llamacpp_organic.py, beside live users.
@pytest.mark.timeout(TEST_LIMIT_S)
@pytest.mark.parametrize("slots", [4, pytest.param(8, marks=pytest.mark.long)])
def test_finds_the_slots_of_a_real_engine(slots: int, tiny_model: Path) -> None:
    with llama_server(model=tiny_model, slots=slots) as engine:

        def attempt() -> None:
            limit_s = limit_between(engine, slots, slots + 1, prompt_tokens=64, output_tokens=96)
            document = sweep(
                engine, "--objective", objective(limit_s), "--prompt-tokens", "64", "--output-tokens", "96",
                "--max", "64",
            )  # fmt: skip
            capacity = document["capacity"]
            assert isinstance(capacity, dict), document
            assert capacity["low"] <= capacity["estimate"] <= capacity["high"]
            assert engine.gauges() == (0, 0), "nothing of ours is left in the engine"
            assert abs(capacity["estimate"] - slots) <= 1

        judge(attempt, luck=LUCK)


def exceeding_ratio(engine: LlamaServer, users: int, limit_s: float, **shape: int) -> float:
    """Median of three independent measurements: a stall of the machine spoils one of them, not the median."""
    runs = []
    for seed in range(3):
        answers = asyncio.run(hold_level(engine.port, users=users, requests=150, seed=77 + seed, **shape))
        runs.append(sum(answer.ttft_s > limit_s for answer in answers) / len(answers))
    return statistics.median(runs)


@pytest.mark.timeout(TEST_LIMIT_S)
def test_finds_a_capacity_set_by_prefill_and_an_independent_measurement_agrees(tiny_model: Path) -> None:
    """Slots to spare and long prompts: prompts stall each other long before anything queues.

    Outside the contract's zone there is one right answer: at most twice the allowance exceed at what was found, more at
    1.5 times that.
    """
    shape = {"prompt_tokens": 512, "output_tokens": 16}
    with llama_server(model=tiny_model, slots=32) as engine:

        def attempt() -> None:
            limit_s = limit_between(engine, 4, 8, **shape)
            document = sweep(
                engine, "--objective", objective(limit_s), "--prompt-tokens", "512", "--output-tokens", "16",
                "--max", "32",
            )  # fmt: skip
            capacity = document["capacity"]
            assert isinstance(capacity, dict), document
            found = max(1, capacity["estimate"])
            assert engine.gauges() == (0, 0)
            assert found < 32
            at_found = exceeding_ratio(engine, found, limit_s, **shape)
            above = exceeding_ratio(engine, math.ceil(1.5 * found), limit_s, **shape)
            assert at_found <= 2.0 * (1.0 - QUANTILE) < above, found

        judge(attempt, luck=LUCK)
