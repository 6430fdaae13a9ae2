"""Serves a simulated engine on a TCP port: in an event loop that exists, or as a program."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
import uvloop

from calibrator.backends.simulated.arrival_log import ArrivalLog
from calibrator.backends.simulated.parameters import EngineParameters, workload_for
from calibrator.backends.simulated.routes import Api
from calibrator.core.workload.classes import Workload
from calibrator.errors import ConfigurationError

STOP_TIMEOUT_S = 1


class _ServerClock:
    """Real time (the port's implementation is another adapter's business)."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Server(uvicorn.Server):
    """uvicorn without signal handlers of its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(frozen=True, slots=True)
class ServedEngine:
    """An engine that answers at `url` (no path)."""

    url: str
    port: int
    api: Api


@asynccontextmanager
async def serving(
    parameters: EngineParameters,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    api_key: str | None = None,
    workload: Workload | None = None,
    arrivals: Path | None = None,
) -> AsyncIterator[ServedEngine]:
    """Serve for as long as the block lasts; the port is open when it begins. `arrivals`: see `arrival_log`."""
    listener = _listen(host, port)
    api = Api(parameters, workload or workload_for(parameters), _ServerClock(), api_key)
    log = None if arrivals is None else ArrivalLog(api.app(), arrivals)
    server = _Server(
        uvicorn.Config(
            log or api.app(),
            log_config=None,
            log_level="critical",  # an answer left unfinished on purpose is no error worth a line
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_keep_alive=60,
            timeout_graceful_shutdown=STOP_TIMEOUT_S,
        )
    )
    api.open_connections = lambda: len(server.server_state.connections)
    api.driver.start()
    running = asyncio.create_task(server.serve(sockets=[listener]))
    bound = listener.getsockname()[1]
    try:
        yield ServedEngine(f"http://{host}:{bound}", bound, api)
    finally:
        server.should_exit = True
        await api.close()
        await running
        listener.close()
        if log is not None:
            log.close()


def run_server(
    parameters: EngineParameters,
    *,
    host: str,
    port: int,
    api_key: str | None = None,
    arrivals: Path | None = None,
    ready: Callable[[int], None],
) -> None:
    """Serve until SIGTERM or SIGINT; `ready` hears the port. An ignored SIGINT stays ignored."""

    async def main() -> None:
        told = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, told.set)
        async with serving(parameters, host=host, port=port, api_key=api_key, arrivals=arrivals) as engine:
            ready(engine.port)
            await told.wait()

    uvloop.run(main())


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, or asyncio does not switch Nagle's algorithm off and short answers take 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigurationError(f"Cannot listen on {host}:{port}: {error.strerror}.", "Choose another.") from None
    return listener
