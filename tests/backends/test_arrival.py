"""Answers that something on the way holds back are told from fast ones, from merged ones and from stubs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import pytest
from support.quiet_machine import real_time
from support.scripted_server import read_request
from support.virtual_time import run_virtual
from support.wire import DONE, HELLO, chunk, event, head, usage

from calibrator.backends.arrival import LONG_TOKENS, ROUNDS, SHORT_TOKENS, STREAM_METRICS, held_back, is_held_back
from calibrator.backends.openai_inspector import OpenAIInspector
from calibrator.core.records.sample import Failure, FailureKind, Label, Phase, Sample
from calibrator.core.workload.classes import Workload, WorkloadClass
from calibrator.ports.backend import Blindness, Unmeasurable
from calibrator.ports.sweeps import Target


def answer(
    tokens: int,
    events: int,
    reads: int,
    duration_s: float = 1.0,
    failure: Failure | None = None,
    *,
    counts: bool = True,
) -> Sample:
    return Sample(
        request_id=0, label=Label(0, Phase.RAMP), class_name="a", stream=True, wanted_prompt_tokens=16, started_s=0.0,
        duration_s=duration_s, token_events=events, token_reads=reads, completion_tokens=tokens if counts else None,
        failure=failure,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sample", "is_held"),
    [
        (answer(8, 8, 8), False),
        (answer(8, 8, 4), False),  # a busy machine
        (answer(8, 8, 1), True),  # all in one piece
        (answer(8, 8, 2), True),  # two bursts
        (answer(8, 8, 1, counts=False), True),  # the events are enough
        (answer(8, 1, 1), True),  # a stream that is none: one event with all of it
        (answer(8, 2, 2), False),  # an engine that merges: the first token came by itself
        (answer(32, 4, 4), False),
        (answer(32, 32, 8), True),
        (answer(3, 3, 1), False),  # too short to tell
        (answer(1, 1, 1), False),
        (answer(8, 0, 0), False),  # not streamed
        (answer(8, 8, 1, failure=Failure(FailureKind.TRUNCATED, "x")), False),
    ],
)
def test_one_look(sample: Sample, is_held: bool) -> None:  # noqa: FBT001 - pytest passes parameters by name
    assert is_held_back(sample) is is_held


@pytest.mark.parametrize(
    ("gap_s", "reads_of", "is_held"),
    [
        (0.04, lambda _: 1, True),
        (0.002, lambda _: 1, True),
        (0.04, lambda tokens: tokens // 8, True),  # pieces of a few KB
        (0.0, lambda _: 1, False),  # a stub: nothing is held back, it is just there
        (0.04, lambda tokens: 1 if tokens == SHORT_TOKENS else tokens, False),  # once by chance
    ],
)
def test_a_suspicion_is_confirmed_by_a_few_more_looks(gap_s: float, reads_of: object, is_held: bool) -> None:  # noqa: FBT001 - likewise
    asked: list[int] = []

    def made(tokens: int) -> Sample:
        assert callable(reads_of)
        return answer(tokens, tokens, reads_of(tokens), duration_s=0.1 + gap_s * tokens)

    async def send(tokens: int) -> Sample:
        asked.append(tokens)
        return made(tokens)

    found = run_virtual(held_back(made(SHORT_TOKENS), send))
    assert tuple(one.metric for one in found) == (STREAM_METRICS if is_held else ())
    assert {one.reason for one in found} <= {Blindness.BUFFERED}
    assert len(asked) <= 2 * ROUNDS
    assert set(asked) <= {SHORT_TOKENS, LONG_TOKENS}


def test_an_answer_that_is_not_held_back_costs_no_further_request() -> None:
    async def never(tokens: int) -> Sample:
        raise AssertionError(tokens)

    assert run_virtual(held_back(answer(8, 8, 8), never)) == ()


def test_an_answer_that_came_while_we_slept_says_nothing() -> None:
    """The loop hangs for most of each answer, so that all of its events are read at once: that is our own doing."""

    async def send(tokens: int) -> Sample:
        await asyncio.sleep(0.02)
        time.sleep(0.02 + 0.002 * tokens)  # noqa: ASYNC251 - what is tested
        return answer(tokens, tokens, 1, duration_s=0.04 + 0.002 * tokens)

    assert asyncio.run(held_back(answer(SHORT_TOKENS, SHORT_TOKENS, 1), send)) == ()


@pytest.mark.parametrize("buffers", [True, False])
@real_time
def test_over_http(buffers: bool) -> None:  # noqa: FBT001 - likewise
    """A server of 10 ms a token, behind something that hands on whole answers, or not."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                await play(reader, writer)
        finally:
            writer.close()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (request := await read_request(reader)) is not None:
            _, _, body = request.partition(b"\r\n\r\n")
            tokens = json.loads(body)["max_tokens"] if body else 0
            count = usage(20, tokens)
            tail = chunk({}, finish="length") + event({"choices": [], "usage": count}) + DONE
            writer.write(head("200 OK", "text/event-stream", f"Content-Length: {tokens * len(HELLO) + len(tail)}"))
            for _ in range(tokens):
                await asyncio.sleep(0.01)
                if not buffers:
                    writer.write(HELLO)
            writer.write((HELLO * tokens if buffers else b"") + tail)

    async def run() -> tuple[Unmeasurable, ...]:
        listener = await asyncio.start_server(handle, "127.0.0.1", 0)
        async with listener:
            url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
            inspector = OpenAIInspector(Target(url, "m"), now=time.monotonic)
            facts = await inspector.inspect(Workload((WorkloadClass(prompt_tokens=32),)))
        assert any("one piece" in warning for warning in facts.warnings) is buffers
        return facts.unmeasurable

    assert tuple(one.metric for one in asyncio.run(run())) == (STREAM_METRICS if buffers else ())
