"""A backend whose answers are a function of the request: for tests of the load generator and the sweep."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from calibrator.core.records.sample import Failure, FailureKind, Flight, ProbeRequest, Sample


@dataclass(frozen=True, slots=True)
class Answer:
    """Times of one answer, from its start."""

    ttft_s: float = 0.05
    e2e_s: float = 0.2
    failure: Failure | None = None
    facts: Mapping[str, object] = field(default_factory=dict)  # of the sample: what else than usual is in it


def failing(kind: FailureKind = FailureKind.STATUS, status: int | None = 503) -> Answer:
    return Answer(e2e_s=0.01, failure=Failure(kind, "scripted", status))


@dataclass(slots=True)
class ScriptedBackend:
    """`answer(request, in_flight)` decides; in-flight counts and closed connections are kept for assertions."""

    answer: Callable[[ProbeRequest, int], Answer]
    in_flight: int = 0
    peak_in_flight: int = 0
    opened: int = 0
    aborted: int = 0
    closed: bool = False
    requests: list[ProbeRequest] = field(default_factory=list)

    def connect(self) -> ScriptedConnection:
        self.opened += 1
        return ScriptedConnection(self)

    async def close(self) -> None:
        self.closed = True


@dataclass(slots=True)
class ScriptedConnection:
    backend: ScriptedBackend
    _abort: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, request: ProbeRequest, on_start: Callable[[Flight], None]) -> Sample:
        loop = asyncio.get_running_loop()
        backend = self.backend
        backend.in_flight += 1
        backend.peak_in_flight = max(backend.peak_in_flight, backend.in_flight)
        backend.requests.append(request)
        answer = backend.answer(request, backend.in_flight)
        flight = Flight(request, loop.time())
        on_start(flight)
        try:
            if answer.failure is None:
                await self._wait(answer.ttft_s)
                if not self._abort.is_set():
                    flight.first_token_s = loop.time()
                    flight.first_content_s = None if "ttfc_s" in answer.facts else flight.first_token_s
                    await self._wait(answer.e2e_s - answer.ttft_s)
            else:
                await self._wait(answer.e2e_s)
        finally:
            backend.in_flight -= 1
        ttft_s = None if flight.first_token_s is None else flight.first_token_s - flight.started_s
        facts: Any = {} if self._abort.is_set() else answer.facts
        usual = Sample(
            request_id=request.request_id,
            label=request.label,
            class_name=request.class_name,
            stream=request.stream,
            wanted_prompt_tokens=request.prompt_tokens,
            wanted_output_tokens=request.output_tokens,
            started_s=flight.started_s,
            duration_s=loop.time() - flight.started_s,
            ttft_s=ttft_s,
            ttfc_s=ttft_s,
            last_token_s=None if ttft_s is None else loop.time() - flight.started_s,
            token_events=0 if ttft_s is None else request.output_tokens,
            prompt_tokens=request.prompt_tokens,
            completion_tokens=request.output_tokens,
            failure=answer.failure,
            cancelled=self._abort.is_set(),
        )
        return replace(usual, **facts)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._abort.wait()
        except TimeoutError:
            return

    def abort(self) -> None:
        if not self._abort.is_set():
            self.backend.aborted += 1
        self._abort.set()
