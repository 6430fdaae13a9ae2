"""Slow, greedy and broken clients over real sockets: each limit ends what it must and leaves everybody else alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from support.real_processes import on_uvloop
from support.web_fakes import FakeOperator, app_of, snapshot

from calibrator.wiring.server.connection_guard import Limits, guarded_config, watch

PATIENT = Limits(head_s=30.0, body_s=30.0, idle_s=30, stuck_s=30.0)  # a test makes one of them short
SHORT_S = 0.3
WAIT_S = 120.0
OPERATOR = "operator-token"
GREETING = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
SIGNED = f"Authorization: Bearer {OPERATOR}\r\n".encode()


@dataclass
class Site:
    port: int
    server: uvicorn.Server

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - the server has no event for it; the test's time limit ends this
        await asyncio.sleep(0.01)


async def big(_request: Request) -> Response:
    return PlainTextResponse("x" * 32_000_000)


async def read_it(request: Request) -> Response:
    return PlainTextResponse(f"{len(await request.body())}")


@asynccontextmanager
async def serving(limits: Limits = PATIENT) -> AsyncIterator[Site]:
    routes = [Route("/big", big), Route("/read", read_it, methods=["POST"])]
    app = app_of(FakeOperator(snapshot()), operator_tokens=(OPERATOR,), extra_routes=routes)
    server = uvicorn.Server(guarded_config(app, limits=limits))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        tasks = [asyncio.create_task(server._serve([listener])), asyncio.create_task(watch(server.server_state, 0.05))]
        await until(lambda: server.started)
        try:
            yield Site(listener.getsockname()[1], server)
        finally:
            server.should_exit = True
            tasks[1].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def play(scenario: Callable[[Site], Awaitable[None]], **limits: Any) -> None:
    async def run() -> None:
        async with asyncio.timeout(WAIT_S), serving(replace(PATIENT, **limits)) as site:
            await scenario(site)

    on_uvloop(run)


async def answered(site: Site, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of all that comes until the server closes."""
    reader, writer = await site.connect()
    try:
        writer.write(request)
        whole = await reader.read()
    finally:
        writer.close()
    return parsed(whole)


def parsed(whole: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = whole.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    fields = (line.partition(": ") for line in lines)
    return int(status.split()[1]), {name.lower(): value for name, _, value in fields}, body


def assert_problem(answer: tuple[int, dict[str, str], bytes], status: int) -> None:
    assert answer[0] == status
    assert answer[1]["content-type"] == "application/problem+json"
    assert answer[1]["connection"] == "close"
    assert answer[1]["x-content-type-options"] == "nosniff"
    assert json.loads(answer[2])["status"] == status
    assert json.loads(answer[2])["detail"]


# --------------------------------------------------------------------------------------------------------------- slow
def test_a_head_that_drips_is_408_and_others_are_served_meanwhile() -> None:
    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                for byte in GREETING[:-1] * 100:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert (await answered(site, GREETING[:-2] + b"Connection: close\r\n\r\n"))[0] == 200
        assert_problem(parsed(await reader.read()), 408)
        dripping.cancel()
        writer.close()

    play(scenario, head_s=SHORT_S)


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
def test_who_says_nothing_is_let_go(sent: bytes) -> None:
    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        writer.write(sent)
        whole = await reader.read()
        assert whole == b"" or parsed(whole)[0] == 408
        writer.close()

    play(scenario, head_s=SHORT_S)


def test_the_next_head_on_a_kept_connection_is_bounded_too() -> None:
    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        writer.write(GREETING)
        assert await reader.readuntil(b"ok\n")
        await asyncio.sleep(2 * SHORT_S)  # idle is not slow
        writer.write(GREETING)
        assert await reader.readuntil(b"ok\n")
        writer.write(GREETING[:20])
        assert_problem(parsed(await reader.read()), 408)
        writer.close()

    play(scenario, head_s=SHORT_S)


def test_an_idle_connection_is_closed_after_its_time() -> None:
    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        writer.write(GREETING)
        assert await reader.readuntil(b"ok\n")
        assert await reader.read() == b""
        writer.close()

    play(scenario, idle_s=1)


def test_a_body_that_drips_is_408_and_no_crash() -> None:
    async def scenario(site: Site) -> None:
        head = b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc"
        assert_problem(await answered(site, head), 408)

    play(scenario, body_s=SHORT_S)


def test_a_body_behind_an_early_refusal_does_not_hold_the_connection() -> None:
    async def scenario(site: Site) -> None:
        head = b"POST /v1/backends/chat/sweeps HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc"
        assert (await answered(site, head))[0] == 401
        await until(lambda: not site.connections)

    play(scenario, body_s=SHORT_S)


def test_who_does_not_take_the_answer_is_cut_off_and_its_memory_freed() -> None:
    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        writer.write(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a stream's transport reads
        await until(lambda: site.connections)
        await until(lambda: not site.connections)
        assert (await answered(site, GREETING[:-2] + b"Connection: close\r\n\r\n"))[0] == 200
        writer.close()
        del reader

    play(scenario, stuck_s=SHORT_S)


def test_a_slow_reader_that_goes_on_reading_gets_all() -> None:
    async def scenario(site: Site) -> None:
        reader, writer = await site.connect()
        writer.write(b"GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        length = 0
        while part := await reader.read(4_000_000):
            length += len(part)
            await asyncio.sleep(0.01)
        assert length > 32_000_000
        writer.close()

    play(scenario, stuck_s=5.0)


# -------------------------------------------------------------------------------------------------------------- large
@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 400_000,  # and it never ends
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * 101 + b"\r\n",
        b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * 100_000,
    ],
    ids=["field", "endless field", "url", "many fields", "endless fields"],
)
def test_a_large_head_is_431(head: bytes) -> None:
    async def scenario(site: Site) -> None:
        assert_problem(await answered(site, head), 431)

    play(scenario)


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_large_body_is_413_and_read_no_further(framing: str) -> None:
    async def scenario(site: Site) -> None:
        head = b"POST /v1/backends/chat/sweeps HTTP/1.1\r\nHost: x\r\n" + SIGNED
        body = b"Content-Length: 70000\r\n\r\n" + b" " * 70_000
        chunks = b"Transfer-Encoding: chunked\r\n\r\n" + (b"1000\r\n" + b" " * 4096 + b"\r\n") * 17
        assert_problem(await answered(site, head + (body if framing == "length" else chunks)), 413)

    play(scenario)


# --------------------------------------------------------------------------------------------------------------- many
def test_beyond_the_places_it_is_503_and_liveness_goes_on() -> None:
    async def scenario(site: Site) -> None:
        held = [await site.connect() for _ in range(3)]
        await until(lambda: site.connections == 3)
        answer = await answered(site, b"GET /v1/backends HTTP/1.1\r\nHost: x\r\n\r\n")
        assert_problem(answer, 503)
        assert answer[1]["retry-after"] == "5"
        assert (await answered(site, GREETING[:-2] + b"Connection: close\r\n\r\n"))[0] == 200
        for _, writer in held:
            writer.close()
        await until(lambda: not site.connections)
        again = await answered(site, b"GET /v1/backends HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert again[0] == 200

    play(scenario, connections=3)


# ------------------------------------------------------------------------------------------------------------- broken
@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS to a plain port
        b"HELLO\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nbad name: x\r\n\r\n",
        b"GET /liv\xffez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /read HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["tls", "word", "version", "smuggled", "negative", "field name", "path", "relative", "connect", "chunk"],
)
def test_what_is_no_request_is_refused_and_nothing_breaks(
    request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(site: Site) -> None:
        status, headers, _ = await answered(site, request_bytes)
        assert 400 <= status < 500
        assert headers["content-type"] == "application/problem+json"

    play(scenario)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close, upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET http://evil.example/livez HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: evil.example:1\r\nX-Forwarded-Host: evil.example\r\nConnection: close\r\n\r\n",
        b"GET /livez HTTP/1.0\r\n\r\n",
    ],
    ids=["upgrade", "absolute", "foreign host", "no host"],
)
def test_odd_but_harmless_requests_are_answered_as_any(request_bytes: bytes) -> None:
    async def scenario(site: Site) -> None:
        status, headers, body = await answered(site, request_bytes)
        assert status == 200
        assert b"evil" not in body
        assert "evil" not in str(headers)

    play(scenario)


def test_requests_that_do_not_wait_for_answers_are_all_answered_in_order() -> None:
    async def scenario(site: Site) -> None:
        last = b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"
        reader, writer = await site.connect()
        writer.write(GREETING * 5 + last)
        whole = await reader.read()
        assert whole.count(b"HTTP/1.1 200 OK") == 6
        assert whole.endswith(b"3")
        writer.close()

    play(scenario, head_s=5.0, body_s=5.0)
