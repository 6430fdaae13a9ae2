"""The main job against a real engine: llama.cpp, whose knee is known without a clock.

With S slots nothing waits up to S requests in flight, and one request waits at S + 1, on any machine. So with a TTFT
limit between the P99 at S and at S + 1, found by a short pilot that shares no code with the product, the capacity is S.
"""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from support.independent_load import hold_level, quantile
from support.llamacpp import MODEL_NAME, LlamaServer, llama_server

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


def sweep(engine: LlamaServer, *options: str) -> dict[str, object]:
    """`calibrator sweep --output json`, as a user types it; stdout must be one JSON document."""
    command = [sys.executable, "-m", "calibrator", "sweep", "--url", engine.api_url, "--model", MODEL_NAME]
    done = subprocess.run(
        [*command, "--output", "json", *options], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode in (0, 4), done.stderr
    document: dict[str, object] = json.loads(done.stdout)
    return document


def p99_s(
    engine: LlamaServer, users: int, requests: int, *, prompt_tokens: int, output_tokens: int, seed: int
) -> float:
    answers = asyncio.run(
        hold_level(
            engine.port,
            users=users,
            requests=requests,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            seed=seed,
        )
    )
    return quantile([answer.ttft_s for answer in answers], 0.99)


def limit_between(engine: LlamaServer, lower: int, upper: int, **shape: int) -> float:
    """Geometric mean of the two levels' P99, each the median of three interleaved pilots."""
    pilots = [
        (p99_s(engine, lower, 150, seed=seed, **shape), p99_s(engine, upper, 150, seed=seed + 100, **shape))
        for seed in range(3)
    ]
    below, above = (statistics.median(column) for column in zip(*pilots, strict=True))
    assert above > 1.2 * below, f"the pilot does not tell {lower} from {upper}: {below:.4f} s, {above:.4f} s"
    return math.sqrt(below * above)


ATTEMPTS = 3  # a stall of the machine during the pilot moves the limit, during the sweep the answer; honestly so


@pytest.mark.parametrize("slots", [4, 8])
def test_finds_the_slots_of_a_real_engine(slots: int, tiny_model: Path) -> None:
    with llama_server(model=tiny_model, slots=slots) as engine:
        found: list[int] = []
        while len(found) < ATTEMPTS and not any(abs(capacity - slots) <= 1 for capacity in found):
            limit_s = limit_between(engine, slots, slots + 1, prompt_tokens=64, output_tokens=96)
            document = sweep(
                engine, "--objective", f"ttft p99 <= {limit_s * 1e3:.2f}ms", "--prompt-tokens", "64",
                "--output-tokens", "96", "--max", "64",
            )  # fmt: skip
            capacity = document["capacity"]
            assert isinstance(capacity, dict), document
            assert capacity["low"] <= capacity["estimate"] <= capacity["high"]
            assert engine.gauges() == (0, 0), "nothing of ours is left in the engine"
            found.append(capacity["estimate"])
        assert abs(found[-1] - slots) <= 1, found


def exceeding_ratio(engine: LlamaServer, users: int, limit_s: float, **shape: int) -> float:
    """Median of three independent measurements: a stall of the machine spoils one of them, not the median."""
    runs = []
    for seed in range(3):
        answers = asyncio.run(hold_level(engine.port, users=users, requests=150, seed=77 + seed, **shape))
        runs.append(sum(answer.ttft_s > limit_s for answer in answers) / len(answers))
    return statistics.median(runs)


def test_finds_a_capacity_set_by_prefill_and_an_independent_measurement_agrees(tiny_model: Path) -> None:
    """Slots to spare and long prompts: prompts stall each other long before anything queues.

    Outside the contract's zone there is one right answer: at most 2 % exceed at what was found, more at 1.5 times that.
    """
    shape = {"prompt_tokens": 512, "output_tokens": 16}
    with llama_server(model=tiny_model, slots=32) as engine:
        seen: list[tuple[int, float, float]] = []
        while len(seen) < ATTEMPTS and not any(_agrees(*attempt) for attempt in seen):
            limit_s = limit_between(engine, 4, 6, **shape)
            document = sweep(
                engine, "--objective", f"ttft p99 <= {limit_s * 1e3:.2f}ms", "--prompt-tokens", "512",
                "--output-tokens", "16", "--max", "32",
            )  # fmt: skip
            capacity = document["capacity"]
            assert isinstance(capacity, dict), document
            found = max(1, capacity["estimate"])
            assert engine.gauges() == (0, 0)
            at_found = exceeding_ratio(engine, found, limit_s, **shape)
            seen.append((found, at_found, exceeding_ratio(engine, math.ceil(1.5 * found), limit_s, **shape)))
        assert _agrees(*seen[-1]), seen


def _agrees(found: int, at_found: float, above: float) -> bool:
    return found < 32 and at_found <= 0.02 < above
