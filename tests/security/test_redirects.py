"""No client of ours follows a redirect: not to another host, and so not with our key or token either."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.real_processes import on_uvloop
from support.service_process import wait_for

from calibrator.backends.openai import OpenAIBackend
from calibrator.backends.openai_inspector import OpenAIInspector
from calibrator.cli.report import write_report
from calibrator.client import AsyncCap, SyncCap
from calibrator.core.records.sample import FailureKind, Label, Phase, ProbeRequest
from calibrator.core.workload.classes import Workload
from calibrator.errors import ConfigurationError, UnreachableError
from calibrator.ports.sweeps import Target
from calibrator.telemetry.scrape import HttpTelemetry

KEY = "a-key-for-one-host-only"


@contextmanager
def server(location: str | None, status: int = 307) -> Iterator[tuple[str, list[str]]]:
    """Its URL, and what it was asked. `location` None: it answers 200."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            asked.append(f"{self.command} {self.path} {self.headers.get('Authorization')}")
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200 if location is None else status)
            if location is not None:
                self.send_header("Location", location + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = answer  # noqa: N815 - names of http.server

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.daemon_threads = True
    thread = threading.Thread(target=served.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{served.server_port}", asked
    finally:
        served.shutdown()
        thread.join()
        served.server_close()


@pytest.fixture(params=[301, 302, 303, 307, 308])
def lured(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where to begin; the place it leads to must not be asked anything, the beginning something."""
    with server(None) as (lure, lured_to), server(lure, request.param) as (begin, asked):
        yield begin
        assert lured_to == []
        assert asked


def test_the_timed_client_and_the_first_look_refuse(lured: str) -> None:
    target = Target(f"{lured}/v1", "m", api_key=KEY)

    async def scenario() -> None:
        backend = OpenAIBackend(
            target, now=time.monotonic, forces_length=True, stall_timeout_s=120.0, total_timeout_s=120.0
        )
        connection = backend.connect()
        request = ProbeRequest(0, Label(0, Phase.RAMP), "a", "some words", 2, 3, stream=True)
        failure = (await connection.send(request, lambda _flight: None)).failure
        connection.abort()
        assert failure is not None
        assert failure.kind is FailureKind.STATUS
        with pytest.raises(ConfigurationError, match="redirects are not followed"):
            await OpenAIInspector(target, now=time.monotonic).inspect(Workload())

    on_uvloop(scenario)


def test_the_scraper_refuses(lured: str) -> None:
    async def scenario() -> None:
        telemetry = HttpTelemetry(Target(f"{lured}/v1", "m", api_key=KEY), timeout_s=120.0)
        assert await telemetry.scrape() is None
        assert "answers 30" in telemetry.problem
        await telemetry.close()

    on_uvloop(scenario)


def test_the_polling_clients_keep_their_fallback(lured: str) -> None:
    async def scenario() -> None:
        async with AsyncCap(lured, "chat", static_cap=3, token=KEY) as limiter:
            while not limiter.problem:  # noqa: ASYNC110 - the client has no event for it
                await asyncio.sleep(0.01)
            assert limiter.limit == 3

    asyncio.run(scenario())
    with SyncCap(lured, "chat", static_cap=3, token=KEY) as limiter:
        wait_for(lambda: limiter.problem, "it polled")
        assert limiter.limit == 3


def test_the_report_verb_refuses(lured: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPORT_TOKEN", KEY)
    with pytest.raises(UnreachableError, match="status 30"):
        write_report(f"{lured}/v1/backends/chat/sweeps/x", "html", None, None, "REPORT_TOKEN")
