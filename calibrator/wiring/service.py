"""The long-running service: store, supervisor and HTTP server, started and stopped in the right order.

Stopping (DESIGN section 7): sweeps are cancelled and state is saved *before* the HTTP server begins its own shutdown,
which waits for open requests; long polls are answered at that moment. So uvicorn's own signal handling is switched off.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvicorn

from calibrator import __version__
from calibrator.clock import SystemClock
from calibrator.errors import ConfigurationError
from calibrator.ports import Operator
from calibrator.service.supervisor import Supervisor
from calibrator.settings import Settings, backend_plans, tokens
from calibrator.stores.database import SqliteStore
from calibrator.telemetry.scrape import HttpTelemetry
from calibrator.web.app import create_app
from calibrator.wiring.sweeps import new_sweep_id, sweep_runner

GRACEFUL_TIMEOUT_S = 5
MAX_CONNECTIONS = 4096


@dataclass(frozen=True, slots=True)
class RunningService:
    """A service that answers."""

    url: str
    operator: Operator


class _Server(uvicorn.Server):
    """uvicorn without signal handlers of its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def running_service(settings: Settings, environ: Mapping[str, str]) -> AsyncIterator[RunningService]:
    """Serve for as long as the block lasts. Raises ConfigurationError, StoreError."""
    plans = backend_plans(settings, environ)  # a missing token file, too, ends the start and not the first request
    clock = SystemClock()
    listener = _listen(settings.listen.host, settings.listen.port)
    telemetry = {plan.name: HttpTelemetry(plan.target) for plan in plans}
    store = SqliteStore(Path(settings.store.path), keep_sweeps=settings.store.keep_sweeps)
    supervisor = Supervisor(
        plans,
        runner=sweep_runner(),
        store=store,
        clock=clock,
        telemetry=telemetry,
        max_parallel=settings.sweeps.max_parallel,
        draws=random.SystemRandom(),
        new_id=new_sweep_id,
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(listener.close)
        for reader in telemetry.values():
            stack.push_async_callback(reader.close)
        await store.open()
        stack.push_async_callback(store.close)
        await supervisor.start()
        ended = asyncio.Event()
        app = create_app(
            supervisor,
            clock=clock,
            operator_tokens=lambda: tokens(settings, environ).operator,
            read_tokens=lambda: tokens(settings, environ).read,
            software_version=__version__,
            is_stopping=ended.is_set,
        )
        server = _Server(_uvicorn_config(app))
        loop_task = asyncio.create_task(supervisor.run(ended))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        host, port = listener.getsockname()[:2]
        try:
            yield RunningService(f"http://{host}:{port}", supervisor)
        finally:
            ended.set()
            await supervisor.stop()
            await asyncio.gather(loop_task, return_exceptions=True)
            server.should_exit = True
            await serving
            structlog.get_logger().info("stopped")


def _uvicorn_config(app: object) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type] # Starlette is an ASGI application; uvicorn's alias does not accept `object`
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACEFUL_TIMEOUT_S,
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=16 * 1024,
    )


def _listen(host: str, port: int) -> socket.socket:
    """Bind first, so that a taken port is one clear sentence."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio sets TCP_NODELAY only on sockets that say they are TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"Cannot listen on {host}:{port}: {error.strerror}.",
            "Choose another address or port (listen.host, listen.port), or end the program that uses it.",
        ) from None
    return listener


async def until_told_to_stop() -> None:
    """Return at SIGTERM or SIGINT."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    try:
        await told.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
