"""The looks before a sweep: few, brief, and right about simulated engines (virtual time) and real servers."""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from support.quiet_machine import real_time as real_time_of
from support.virtual_time import run_virtual

from calibrator.backends.arrival import ROUNDS
from calibrator.backends.openai_inspector import OpenAIInspector
from calibrator.backends.simulated.inprocess import SCALE, SimulatedBackend
from calibrator.backends.simulated.parameters import PARAMETER_SETS, EngineParameters
from calibrator.backends.stub_checks import MAX_REQUESTS, StubCheckPlan, run_stub_checks
from calibrator.clock import LoopClock
from calibrator.core.records.sample import Failure, FailureKind, Label, Phase, ProbeRequest, Sample
from calibrator.core.workload.classes import Workload, WorkloadClass
from calibrator.core.workload.stub_detection import Reading, StubCheck, read_price, suspicions
from calibrator.ports.sweeps import Target

real_time = functools.partial(
    real_time_of, tries=20
)  # half a microsecond a token drowns in a few milliseconds of noise


# ---------------------------------------------------------------------------------------------- simulated, virtual time
@dataclass
class Sender:
    """Sends to a simulated engine, and counts."""

    backend: SimulatedBackend
    requests: int = 0

    async def __call__(self, text: str, output_tokens: int) -> Sample:
        self.requests += 1
        request = ProbeRequest(0, Label(0, Phase.RAMP), "look", text, len(text.split()), output_tokens, stream=True)
        return await self.backend.connect().send(request, lambda _: None)


def look_at(parameters: EngineParameters, slope_s: float = 0.0) -> tuple[StubCheck, int, float]:
    """The looks, their number, and how long they took."""

    async def scenario() -> tuple[StubCheck, int, float]:
        clock = LoopClock()
        sender = Sender(SimulatedBackend(parameters, clock))
        plan = StubCheckPlan(SCALE, parameters.max_context_tokens - 64, slope_s)
        looks = await run_stub_checks(sender, clock.monotonic, random.Random(1), plan)
        ended_s = clock.monotonic()
        await sender.backend.close()
        return looks, sender.requests, ended_s

    return run_virtual(scenario())


@pytest.mark.parametrize("name", sorted(PARAMETER_SETS))
def test_simulated_engines_are_no_suspects(name: str) -> None:
    looks, requests, took_s = look_at(PARAMETER_SETS[name])
    assert read_price(looks) is Reading.GROWS
    assert suspicions(looks, SCALE.overhead) == ()
    assert requests <= MAX_REQUESTS <= 12
    assert took_s < 5.0


def test_a_very_fast_prefill_is_no_suspect_and_a_free_one_is() -> None:
    """A million tokens a second and replica: faster than any engine; and one that reads nothing at all."""
    fast, *_ = look_at(replace(PARAMETER_SETS["seed"], prefill_per_token_s=1e-6, prefill_chunk_tokens=16_384))
    free, requests, _ = look_at(replace(PARAMETER_SETS["seed"], prefill_per_token_s=0.0, prefill_chunk_tokens=16_384))
    assert suspicions(fast, SCALE.overhead) == ()
    assert suspicions(free, SCALE.overhead)[0].startswith("suspect_stub")
    assert requests == MAX_REQUESTS


def test_a_slow_model_is_asked_for_less() -> None:
    plan = StubCheckPlan(SCALE, 100_000, slope_s=0.0005)
    assert SCALE.overhead + plan.long_words == pytest.approx(500, abs=2)
    assert SCALE.overhead + StubCheckPlan(SCALE, 100_000).long_words == pytest.approx(16_384, abs=2)
    assert SCALE.overhead + StubCheckPlan(SCALE, 2_000).long_words == pytest.approx(2_000, abs=2)


@pytest.mark.parametrize(("latency_s", "most"), [(1.0, 8), (5.0, 6), (60.0, 4)])
def test_patience_ends(latency_s: float, most: int) -> None:
    asked = 0

    async def send(_: str, __: int) -> Sample:
        nonlocal asked
        asked += 1
        await asyncio.sleep(latency_s)
        return Sample(0, Label(0, Phase.RAMP), "look", True, 1, 0.0, latency_s, prompt_tokens=1)

    clock = LoopClock()
    run_virtual(run_stub_checks(send, clock.monotonic, random.Random(1), StubCheckPlan(SCALE, 2_000)))
    assert asked <= most


def test_a_request_that_fails_ends_the_look_without_a_word() -> None:
    asked = 0

    async def send(_: str, __: int) -> Sample:
        nonlocal asked
        asked += 1
        failure = Failure(FailureKind.STATUS, "too long", 400) if asked == 4 else None
        return Sample(0, Label(0, Phase.RAMP), "look", True, 1, 0.0, 0.1, prompt_tokens=9, failure=failure)

    clock = LoopClock()
    looks = run_virtual(run_stub_checks(send, clock.monotonic, random.Random(1), StubCheckPlan(SCALE, 2_000)))
    assert (asked, suspicions(looks, 0.0)) == (4, ())


# ------------------------------------------------------------------------------------------------------ over HTTP
Delay = Callable[[int], Awaitable[None]]


@dataclass
class Server:
    """An OpenAI-compatible server made of a prefill time, a decode time and an answer cache."""

    prefill_s: Callable[[int], float]
    decode_s: float = 0.002
    stores_answers: bool = False
    cached_ratio: float = 0.0
    known: set[str] = field(default_factory=set)
    requests: int = 0

    async def models(self, _: Request) -> JSONResponse:
        return JSONResponse({"data": [{"id": "m", "owned_by": "me", "max_model_len": 32_768}]})

    async def chat(self, request: Request) -> StreamingResponse:
        self.requests += 1
        body: dict[str, Any] = await request.json()
        text = body["messages"][0]["content"]
        tokens, is_known = len(text.split()), self.stores_answers and text in self.known
        self.known.add(text)

        async def stream() -> AsyncIterator[bytes]:
            await asyncio.sleep(0.0 if is_known else self.prefill_s(tokens))
            for index in range(body["max_tokens"]):
                await asyncio.sleep(0.0 if is_known or index == 0 else self.decode_s)
                yield b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'
            cached = round(self.cached_ratio * tokens)
            yield b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\n\n'
            yield (
                b'data: {"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":0,'
                b'"prompt_tokens_details":{"cached_tokens":%d}}}\n\ndata: [DONE]\n\n'
                % (tokens, body["max_tokens"], cached)
            )

        return StreamingResponse(stream(), media_type="text/event-stream")


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[str]:
    app = Starlette(
        routes=[Route("/v1/models", server.models), Route("/v1/chat/completions", server.chat, methods=["POST"])]
    )
    runner = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
    task = asyncio.create_task(runner.serve())
    while not runner.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{runner.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        runner.should_exit = True
        await task


def warnings_of(server: Server, workload: Workload | None = None) -> tuple[str, ...]:
    async def scenario() -> tuple[str, ...]:
        async with serving(server) as url:
            facts = await OpenAIInspector(Target(url, "m"), now=time.monotonic).inspect(workload or Workload())
            return facts.warnings

    return asyncio.run(scenario())


@real_time
def test_a_fixed_latency_stub_over_http() -> None:
    """A busy machine can hide it: then nothing is said."""
    server = Server(lambda _: 0.02)
    assert [warning.partition(":")[0] for warning in warnings_of(server)] == ["suspect_stub"]
    assert server.requests <= 2 + 2 * ROUNDS + MAX_REQUESTS


@real_time
def test_a_server_that_reads_its_prompts_over_http() -> None:
    """With shared prefixes wanted, too: the looks before the sweep share nothing."""
    workload = Workload((WorkloadClass(),), prefix_reuse_ratio=0.5)
    assert warnings_of(Server(lambda tokens: 0.005 + 5e-6 * tokens), workload) == ()


@pytest.mark.parametrize(
    ("server", "counts_cached"),
    [
        (Server(lambda tokens: 0.005 + 5e-6 * tokens, cached_ratio=0.98), True),
        (Server(lambda tokens: 0.005 + 5e-6 * tokens, stores_answers=True, decode_s=0.01), False),
    ],
    ids=["reports cached tokens", "stores answers"],
)
@real_time
def test_a_cached_endpoint_over_http(server: Server, counts_cached: bool) -> None:  # noqa: FBT001 - pytest passes it by name
    found = warnings_of(server)
    assert [warning.partition(":")[0] for warning in found] == ["suspect_cache"]
    assert ("tokens as cached" in found[0]) is counts_cached  # by its own count, or by how fast it answers again
