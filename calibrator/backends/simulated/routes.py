"""The HTTP face of the simulated engine: an OpenAI-compatible API, vLLM's metrics, and three routes no real engine has.

`/truth` answers what a sweep should find, `/stats` counts what arrived, and `POST /faults` makes trouble on demand.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import itertools
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from calibrator import __version__
from calibrator.backends.simulated import api_texts
from calibrator.backends.simulated.answering import Answer, refused_stream
from calibrator.backends.simulated.api_texts import ApiError, Ask, Wording
from calibrator.backends.simulated.driver import Driver, Request
from calibrator.backends.simulated.metrics import EngineMetrics
from calibrator.backends.simulated.parameters import EngineParameters, Faults, Refusal
from calibrator.backends.simulated.prefix_cache import block_hashes
from calibrator.backends.simulated.truth import MAX_LEVEL, TruthQuestion
from calibrator.core.records.objective import parse_objective
from calibrator.core.workload.classes import Workload
from calibrator.errors import CalibratorError, ConfigurationError
from calibrator.ports.clock import Clock

MODEL = "simulated"


@dataclass(slots=True)
class Api:
    """Everything the routes share."""

    parameters: EngineParameters
    workload: Workload  # `/truth` asks for it unless told otherwise
    clock: Clock
    api_key: str | None = field(default=None, repr=False)
    open_connections: Callable[[], int] = lambda: 0
    driver: Driver = field(init=False)
    metrics: EngineMetrics = field(init=False)
    _ids: itertools.count[int] = field(default_factory=itertools.count)
    _random: random.Random = field(init=False)
    _truths: dict[str, asyncio.Task[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.driver = Driver(self.parameters, self.clock)
        self.metrics = EngineMetrics(self.driver, MODEL, self.clock.wall())
        self.driver.on_first_token, self.driver.on_end = self.metrics.observe_first_token, self.metrics.observe_end
        self._random = random.Random(self.parameters.seed)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat_completions, methods=["POST"]),
                Route("/v1/completions", self.completions, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/metrics", self.metrics_page),
                Route("/health", self.health),
                Route("/version", self.version),
                Route("/stats", self.stats),
                Route("/truth", self.truth),
                Route("/faults", self.set_faults, methods=["POST"]),
            ],
            exception_handlers={ApiError: _api_error, CalibratorError: _our_error, 404: _not_found},
        )

    async def close(self) -> None:
        for asked in self._truths.values():
            asked.cancel()
        await asyncio.gather(*self._truths.values(), return_exceptions=True)
        await self.driver.stop()

    # ------------------------------------------------------------------------------------------- as real engines do
    async def chat_completions(self, http: HttpRequest) -> Any:
        return await self._complete(http, chat=True)

    async def completions(self, http: HttpRequest) -> Any:
        return await self._complete(http, chat=False)

    async def models(self, http: HttpRequest) -> Response:
        self._authorize(http)
        card = {"id": MODEL, "object": "model", "created": round(self.metrics.started_at), "owned_by": "calibrator"}
        data = [card | {"root": MODEL, "max_model_len": self.parameters.max_context_tokens}]
        return JSONResponse({"object": "list", "data": data})

    async def metrics_page(self, _: HttpRequest) -> Response:
        return Response(self.metrics.page(), media_type="text/plain; version=0.0.4")

    async def health(self, _: HttpRequest) -> Response:
        return Response()

    async def version(self, _: HttpRequest) -> Response:
        return JSONResponse({"version": __version__})

    async def _complete(self, http: HttpRequest, *, chat: bool) -> Answer | Response:
        self._authorize(http)
        arrived_s = self.clock.monotonic()
        ask = api_texts.parse_ask(await http.body(), chat=chat, model=MODEL)
        natural_tokens = 1 + round(self._random.expovariate(1.0 / self.parameters.natural_output_tokens))
        output_tokens = api_texts.answer_tokens(ask, self.parameters, natural_tokens)
        caches = self.parameters.prefix_cache_tokens > 0
        request = Request(
            prompt_tokens=ask.prompt_tokens,
            output_tokens=output_tokens,
            arrived_s=arrived_s,
            blocks=block_hashes(ask.prompt) if caches else (),
        )
        if ask.max_tokens is not None and output_tokens < ask.max_tokens:
            request.finish_reason = "stop"
        answer = Answer(self.driver, request, self._wording(ask))
        request.on_token = answer.changed.set
        return answer if self.driver.submit(request) else self._refuse(ask)

    def _refuse(self, ask: Ask) -> Response:
        form = self.driver.engine.faults.refusal or self.parameters.refusal
        if form is Refusal.ERROR_EVENT and ask.stream:
            return refused_stream()
        raise api_texts.refused()

    def _wording(self, ask: Ask) -> Wording:
        kind = "chatcmpl" if ask.chat else "cmpl"
        name, created = f"{kind}-{next(self._ids)}", round(self.clock.wall())
        return Wording(ask, name, MODEL, created, self.parameters.reasoning_tokens)

    def _authorize(self, http: HttpRequest) -> None:
        if self.api_key is None:
            return
        given = http.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.api_key.encode()):
            raise ApiError(401, "AuthenticationError", "Unauthorized")

    # ------------------------------------------------------------------------------------------ as no real engine does
    async def stats(self, _: HttpRequest) -> Response:
        driver = self.driver
        return JSONResponse(
            {
                "in_flight": driver.in_flight,
                "running": driver.engine.running,
                "waiting": driver.engine.waiting,
                "peak_in_flight": driver.peak_in_flight,
                "requests_total": driver.requests_total,
                "open_connections": self.open_connections(),
                "kv_tokens": driver.engine.kv_tokens,
                **dataclasses.asdict(driver.engine.counters),
            }
        )

    async def set_faults(self, http: HttpRequest) -> Response:
        """Replaces all faults by those of the body; `stall_now_s` is carried out once."""
        raw = await http.json()
        known = {one.name for one in dataclasses.fields(Faults)} | {"stall_now_s"}
        if not isinstance(raw, dict) or not raw.keys() <= known:
            raise ConfigurationError("Not a set of faults.", f"Known are {', '.join(sorted(known))}.")
        try:
            stall_now_s = float(raw.pop("stall_now_s", 0.0))
            refusal = raw.pop("refusal", None)
            faults = Faults(**raw, refusal=None if refusal is None else Refusal(refusal))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"Not a set of faults: {error}.", "Give numbers.") from None
        self.driver.engine.faults = faults
        self.driver.engine.stall(stall_now_s)
        return JSONResponse(dataclasses.asdict(faults))

    async def truth(self, http: HttpRequest) -> Response:
        """`?objective=...` (repeated), `max_level`, and fields of a workload class to change the default's first."""
        question = self._question(http)
        text = question.dumps()
        task = self._truths.get(text)
        if task is None:
            task = self._truths[text] = asyncio.create_task(_answer_elsewhere(text))
        return Response(await asyncio.shield(task), media_type="application/json")

    def _question(self, http: HttpRequest) -> TruthQuestion:
        query = http.query_params
        objectives = tuple(parse_objective(text) for text in query.getlist("objective"))
        if not objectives:
            raise ConfigurationError("No objective.", "Ask like /truth?objective=ttft%20p99%20%3C%3D%20300ms.")
        changes: dict[str, Any] = {}
        try:
            for key in query.keys() - {"objective", "max_level"}:
                changes[key] = _CLASS_FIELDS[key](query[key])
            max_level = int(query.get("max_level", MAX_LEVEL))
        except KeyError as error:
            raise ConfigurationError(f"{error} is unknown.", f"Known are {', '.join(_CLASS_FIELDS)}.") from None
        except ValueError as error:
            raise ConfigurationError(f"Not a number: {error}.", "Give numbers.") from None
        workload = self.workload
        if changes:
            workload = Workload((dataclasses.replace(workload.classes[0], **changes),))
        return TruthQuestion(self.parameters, workload, objectives, max_level)


_CLASS_FIELDS: dict[str, Callable[[str], float]] = {
    "prompt_tokens": int,
    "output_tokens": int,
    "spread_ratio": float,
    "prompt_sigma": float,
}


async def _answer_elsewhere(question: str) -> bytes:
    """In a process of its own: seconds of computing must not disturb serving."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "calibrator.backends.simulated", "--truth",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        answer, _ = await process.communicate(question.encode())
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        raise ConfigurationError("The truth could not be computed.", "See the server's error output.")
    return answer


async def _api_error(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101 - registered for this class
    return JSONResponse(error.body, error.status)


async def _our_error(_: HttpRequest, error: Exception) -> Response:
    return JSONResponse({"error": {"message": str(error), "type": "BadRequestError", "param": None, "code": 400}}, 400)


async def _not_found(_: HttpRequest, __: Exception) -> Response:
    return JSONResponse({"detail": "Not Found"}, 404)
