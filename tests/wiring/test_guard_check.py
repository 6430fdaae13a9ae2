"""`check` says what the guard will count."""

from __future__ import annotations

import asyncio
import math
import socket
from dataclasses import replace

import pytest
from support.fakes import plan

from calibrator.core.live.change_test import GuardPolicy
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.server_load import Histogram, ServerLoad
from calibrator.wiring.guard_check import guard_line, guard_lines

LOAD = ServerLoad("vllm", ttft_s=Histogram((0.25, 0.5, 1.0, math.inf), (0.0, 0.0, 0.0, 0.0)))


@pytest.mark.parametrize(
    ("text", "load", "words"),
    [
        ("ttft p99 <= 400ms", LOAD, ("watched above 500ms", "(1.25 x the limit)")),
        ("ttft p99 <= 270ms", LOAD, ("watched above 500ms", "(1.85 x the limit)", "shows late", "just below a bound")),
        ("ttft p99 <= 5s", LOAD, ("not watched", "above the last bound")),
        ("e2e p99 <= 5s", LOAD, ("not watched by latency", "vllm shows no histogram of e2e")),
        ("ttft p99 <= 1s for prompts <= 99 tokens", LOAD, ("not watched", "short prompts")),
        ("ttft p99 <= 400ms", None, ("chosen at run time",)),
    ],
)
def test_the_bound_in_use_is_named(text: str, load: ServerLoad | None, words: tuple[str, ...]) -> None:
    line = guard_line(parse_objective(text), load)
    for word in words:
        assert word in line


def test_an_engine_that_does_not_answer_ends_nothing() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refuses
        target = replace(plan().target, url=f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
        known = replace(plan(), target=target)
        off = replace(known, name="other", guard=GuardPolicy(enabled=False))
        problem, watched, other_problem, unwatched = asyncio.run(guard_lines((known, off)))
    for line in (problem, other_problem):
        assert "/metrics is out of reach" in line, "why the engine shows nothing, guard or no guard"
        assert "Check the address" in line
    assert watched.startswith("chat: 'ttft p99 <= 500ms' is watched above the next bucket bound")
    assert unwatched == "other: the guard is off"
