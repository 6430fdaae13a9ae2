"""Total concurrency against a real engine that serves users meanwhile: llama.cpp, 8 slots, 3 live streams.

With 8 slots nothing waits up to 8 requests in flight, whoever sent them. A sweep that ignored its users would find 5.
`pytest -s` prints what was found, and the curve.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.independent_load import chat, make_prompt
from support.llamacpp import LlamaServer, llama_server
from support.llamacpp_pilot import limit_between, objective, sweep
from support.quiet_machine import TEST_LIMIT_S, judge

SLOTS, STREAMS = 8, 3
SHAPE = {"prompt_tokens": 64, "output_tokens": 96}
LUCK = 1  # a stall during the pilot moves the limit, and one sweep in ten may err

pytestmark = pytest.mark.engine


@contextmanager
def live_streams(engine: LlamaServer, streams: int) -> Iterator[None]:
    """So many users, each sending its next request when its last one ended, from a thread of their own."""
    ended = threading.Event()

    async def user(seed: int) -> None:
        rng = random.Random(seed)
        while not ended.is_set():
            await chat(engine.port, make_prompt(rng, SHAPE["prompt_tokens"]), SHAPE["output_tokens"])

    async def everybody() -> None:
        await asyncio.gather(*(user(seed) for seed in range(streams)))

    thread = threading.Thread(target=lambda: asyncio.run(everybody()))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.timeout(TEST_LIMIT_S)
def test_finds_the_slots_of_a_real_engine_that_serves_users_meanwhile(tiny_model: Path) -> None:
    with llama_server(model=tiny_model, slots=SLOTS) as engine:

        def attempt() -> None:
            limit_s = limit_between(engine, SLOTS, SLOTS + 1, **SHAPE)
            with live_streams(engine, STREAMS):
                document = sweep(
                    engine, "--objective", objective(limit_s), "--prompt-tokens", "64", "--output-tokens", "96",
                    "--max", "32",
                )  # fmt: skip
            assert engine.gauges() == (0, 0), "nothing of ours is left in the engine"
            capacity, levels = document["capacity"], document["levels"]
            assert isinstance(levels, list)
            assert min(level["concurrency"] for level in levels) == STREAMS + 1
            print(f"\nlimit {limit_s * 1e3:.1f} ms, found {capacity}: {document['reason']}")
            for level in levels:
                print("  total", level["concurrency"], "n", level["n"], "exceeded", level["exceedances"])
            assert isinstance(capacity, dict), document
            assert abs(capacity["estimate"] - SLOTS) <= 1

        judge(attempt, luck=LUCK)
