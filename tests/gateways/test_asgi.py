"""`CapMiddleware` under real uvicorn: what is in flight in the program never exceeds the share, whatever ends it."""

from __future__ import annotations

import asyncio
import json
import runpy
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from support.gateway_site import DEPLOYED
from support.web_fakes import FakeOperator, app_of, calibrated, snapshot

from calibrator.client import AsyncCap
from calibrator.errors import ConfigurationError
from calibrator.gateways.asgi import READ_AHEAD_BYTES, CapMiddleware

CHAT = "/v1/chat/completions"
LIMIT_S = 120.0  # a bound against hanging for ever


@dataclass
class Program:
    """Answers when its gate opens; counts."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    running: int = 0
    peak: int = 0
    served: int = 0
    in_background: int = 0

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self.answer, methods=["GET", "POST"])])

    async def answer(self, request: Request) -> Response:
        self.running += 1
        self.peak = max(self.peak, self.running)
        asked = dict(request.query_params)
        try:
            body = await request.body()
            self.served += 1
            if "fails" in asked:
                raise RuntimeError("meant to fail")
            if "streams" in asked:
                self.running += 1  # `stream` takes it over
                return StreamingResponse(self.stream())
            if "later" in asked:
                return PlainTextResponse("done", background=BackgroundTask(self.later))
            await self.gate.wait()
            return PlainTextResponse(str(len(body)))
        finally:
            self.running -= 1

    async def stream(self) -> AsyncIterator[str]:
        try:
            yield "first "
            await self.gate.wait()
            yield "last"
        finally:
            self.running -= 1

    async def later(self) -> None:
        self.in_background += 1
        await self.gate.wait()
        self.in_background -= 1


@dataclass(frozen=True, slots=True)
class Site:
    program: Program
    cap: AsyncCap
    http: httpx.AsyncClient

    async def ask(self, path: str = CHAT, **options: Any) -> httpx.Response:
        return await self.http.post(path, **options)

    def asking(self, path: str = CHAT, **options: Any) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(self.ask(path, **options))

    async def running(self, count: int) -> None:
        await until(lambda: self.program.running == self.cap.in_flight == count)

    async def open_connection(self, body: bytes, path: str = CHAT) -> asyncio.StreamWriter:
        """A client that sends and does not read."""
        reader, writer = await asyncio.open_connection(self.http.base_url.host, self.http.base_url.port)
        del reader
        writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        return writer


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - it looks at real servers, which ring no bell
            await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """Real uvicorn in this loop; its URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=1))
    task = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


def cap_of(share: int) -> AsyncCap:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=json.dumps({"share": share, "state": "calibrated", "valid_until": None}))

    return AsyncCap("http://calibrator", "llm", static_cap=1, transport=httpx.MockTransport(answer))


@asynccontextmanager
async def site_of(share: int, **options: Any) -> AsyncIterator[Site]:
    program, cap = Program(), cap_of(share)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(CapMiddleware(program.app(), cap, **options)))
        limits = httpx.Limits(max_connections=None)
        client = httpx.AsyncClient(base_url=url, timeout=LIMIT_S, trust_env=False, limits=limits)
        site = Site(program, cap, await stack.enter_async_context(client))
        await until(lambda: cap.limit == share)  # the server's start began the polling
        yield site
        program.gate.set()
        await until(lambda: cap.in_flight == 0)
    assert cap._polling is None


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(2 * LIMIT_S):
            await scenario()

    asyncio.run(bounded())


def test_the_share_runs_and_the_rest_is_refused_with_a_retry_after() -> None:
    async def scenario() -> None:
        async with site_of(3, retry_after_s=2) as site:
            held = [site.asking() for _ in range(3)]
            await site.running(3)
            refused = await asyncio.gather(*(site.ask() for _ in range(4)))
            assert {(answer.status_code, answer.headers["retry-after"]) for answer in refused} == {(429, "2")}
            assert refused[0].json()["error"]["type"] == "rate_limit_error"
            site.program.gate.set()
            assert {answer.status_code for answer in await asyncio.gather(*held)} == {200}
            await until(lambda: site.cap.in_flight == 0)
            assert (site.program.peak, site.program.served) == (3, 3)

    run(scenario)


def test_a_stream_counts_to_its_last_byte() -> None:
    async def scenario() -> None:
        async with site_of(1) as site, site.http.stream("POST", f"{CHAT}?streams") as answer:
            parts = answer.aiter_text()
            assert await anext(parts) == "first "
            assert (await site.ask()).status_code == 429
            site.program.gate.set()
            assert await anext(parts) == "last"
            await until(lambda: site.cap.in_flight == 0)
            assert (await site.ask()).status_code == 200

    run(scenario)


def test_a_client_that_leaves_a_stream_frees_its_place() -> None:
    async def scenario() -> None:
        async with site_of(1) as site:
            for _ in range(5):
                async with site.http.stream("POST", f"{CHAT}?streams") as answer:
                    assert await anext(answer.aiter_text()) == "first "
                    assert site.cap.in_flight == 1
                await site.running(0)

    run(scenario)


def test_a_program_that_works_on_for_a_client_that_left_is_still_counted() -> None:
    async def scenario() -> None:
        async with site_of(1) as site:
            gone = await site.open_connection(b"{}")
            await site.running(1)
            gone.close()
            await gone.wait_closed()
            assert (await site.ask()).status_code == 429
            site.program.gate.set()
            await site.running(0)

    run(scenario)


def test_a_program_that_fails_frees_its_place() -> None:
    async def scenario() -> None:
        async with site_of(1) as site:
            for _ in range(5):
                assert (await site.ask(f"{CHAT}?fails")).status_code == 500
                await site.running(0)

    run(scenario)


@pytest.mark.parametrize("begins", [False, True])
def test_a_program_that_ends_without_a_whole_answer_frees_its_place(begins: bool) -> None:  # noqa: FBT001 - pytest's parameter
    async def bare(scope: Any, receive: Any, send: Any) -> None:
        if begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("meant to fail")

    async def scenario() -> None:
        cap = cap_of(1)
        async with serving(CapMiddleware(bare, cap)) as url, httpx.AsyncClient(base_url=url, trust_env=False) as http:
            for _ in range(5):
                try:
                    assert (await http.post(CHAT)).status_code == 500
                except httpx.RemoteProtocolError:
                    assert begins
                await until(lambda: cap.in_flight == 0)
        await cap.close()  # the program has no lifespan that would

    run(scenario)


def test_what_runs_after_the_answer_holds_no_place() -> None:
    async def scenario() -> None:
        async with site_of(1) as site:
            later = asyncio.gather(*[site.asking(f"{CHAT}?later")])
            await until(lambda: site.program.in_background == 1)
            assert site.cap.in_flight == 0
            site.program.gate.set()
            await later

    run(scenario)


def test_only_posts_on_the_paths_count_and_the_probes_key_passes() -> None:
    async def scenario() -> None:
        async with site_of(1, exempt_token="probe") as site:
            held = site.asking()
            await site.running(1)
            site.program.gate.set()
            await held
            site.program.gate.clear()
            held = site.asking()
            await site.running(1)
            others = [
                site.asking("/v1/models"),
                asyncio.create_task(site.http.get(CHAT)),
                site.asking(headers={"Authorization": "Bearer probe"}),
            ]
            await until(lambda: site.program.running == 4)
            assert site.cap.in_flight == 1
            assert (await site.ask(headers={"Authorization": "Bearer prob"})).status_code == 429
            site.program.gate.set()
            assert {answer.status_code for answer in await asyncio.gather(held, *others)} == {200}

    run(scenario)


# ------------------------------------------------------------------------------------------------------------- in line
@pytest.mark.parametrize("size", [0, 10, 300_000, READ_AHEAD_BYTES * 3])
def test_who_waits_is_served_with_its_whole_body(size: int) -> None:
    async def scenario() -> None:
        async with site_of(1, max_wait_s=LIMIT_S) as site:
            first = site.asking()
            await site.running(1)
            second = site.asking(content=b"x" * size)
            await until(lambda: len(site.cap._waiting) == 1)
            site.program.gate.set()
            assert (await first).status_code == 200
            assert (await second).text == str(size)
            assert site.program.peak == 1

    run(scenario)


def test_the_line_is_bounded_and_who_leaves_it_makes_room() -> None:
    async def scenario() -> None:
        async with site_of(1, max_wait_s=LIMIT_S, max_waiting=1) as site:
            first = site.asking()
            await site.running(1)
            gone = await site.open_connection(b"{}")
            await until(lambda: len(site.cap._waiting) == 1)
            assert (await site.ask()).status_code == 429
            gone.close()
            await until(lambda: len(site.cap._waiting) == 0)
            second = site.asking()
            await until(lambda: len(site.cap._waiting) == 1)
            site.program.gate.set()
            assert [answer.status_code for answer in await asyncio.gather(first, second)] == [200, 200]
            assert site.program.served == 2, "the one that left was never begun"

    run(scenario)


def test_a_wait_ends_with_a_refusal() -> None:
    async def scenario() -> None:
        async with site_of(1, max_wait_s=0.05) as site:
            first = site.asking()
            await site.running(1)
            assert (await site.ask()).status_code == 429
            site.program.gate.set()
            assert (await first).status_code == 200

    run(scenario)


def test_hundreds_that_come_wait_leave_and_fail_leave_no_place_behind() -> None:
    async def one(site: Site, number: int) -> None:
        query = ("", "?streams", "?fails", "?streams", "")[number % 5]
        leaves = number % 3 == 0
        try:
            async with asyncio.timeout(0.001 * (number % 30) if leaves else None):
                await site.ask(f"{CHAT}{query}", content=b"{}")
        except TimeoutError:
            assert leaves

    async def scenario() -> None:
        async with site_of(4, max_wait_s=1.0, max_waiting=8) as site:
            site.program.gate.set()
            for batch in range(10):
                await asyncio.gather(*(one(site, batch + number) for number in range(40)))
            await site.running(0)
            assert site.program.peak == 4
            assert len(site.cap._waiting) == 0

    run(scenario)


# ---------------------------------------------------------------------------------------------------------- deployment
def test_the_shipped_file_follows_a_real_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        operator, program = FakeOperator(snapshot(calibrated("llm"))), Program()
        async with serving(app_of(operator, read_tokens=("reader",))) as calibrator_url:
            monkeypatch.setenv("CALIBRATOR_URL", calibrator_url)
            monkeypatch.setenv("CALIBRATOR_TOKEN", "reader")
            guard = runpy.run_path(str(DEPLOYED / "asgi" / "calibrator_cap.py"))["Cap"](program.app())
            async with serving(guard) as url:
                share = operator.current.backends["llm"].served_cap
                await until(lambda: guard._cap.limit == share)
                async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S, trust_env=False) as http:
                    asked = [asyncio.create_task(http.post(CHAT)) for _ in range(share + 3)]
                    await until(lambda: program.running == share and sum(task.done() for task in asked) == 3)
                    program.gate.set()
                    statuses = [answer.status_code for answer in await asyncio.gather(*asked)]
                assert (statuses.count(200), statuses.count(429)) == (share, 3)

    run(scenario)


@pytest.mark.parametrize("options", [{"max_wait_s": -1.0}, {"max_waiting": -1}, {"retry_after_s": -1}])
def test_values_below_zero_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        CapMiddleware(Program.app, cap_of(1), **options)  # type: ignore[arg-type] # never called
