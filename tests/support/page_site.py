"""The real application over a scripted operator, on a real socket: pages in whatever state a test wants them.

Its wall clock is that of the tests, months away from the browser's: every age on a page is wrong if the page goes by
the browser's clock.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import uvicorn

from calibrator.web.app import create_app
from support.web_fakes import EPOCH_S, FakeOperator

LIMIT_S = 120.0

T = TypeVar("T")


class OtherClock:
    """Port `Clock`: a machine that believes in another year."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return EPOCH_S + time.monotonic() - self._started_s

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass
class PageSite:
    """`operator` is changed through `do`, in the server's own loop."""

    operator: FakeOperator
    token: str = "operator-token"
    read_tokens: tuple[str, ...] = ()
    port: int = 0
    clock: OtherClock = field(default_factory=OtherClock)
    _loop: asyncio.AbstractEventLoop | None = None
    _server: uvicorn.Server | None = None
    _thread: threading.Thread | None = None
    _is_stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """On the same port as before."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self._is_stopping.clear()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(listener, ready), daemon=True)
        self._thread.start()
        assert ready.wait(LIMIT_S)

    def stop(self) -> None:
        """As the service stops: streams end by themselves, then the server."""
        assert self._server is not None
        assert self._thread is not None
        self._is_stopping.set()
        self._server.should_exit = True
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive(), "a stream holds the server up"

    def do(self, act: Callable[[], T]) -> T:
        assert self._loop is not None

        async def run() -> T:
            return act()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(LIMIT_S)

    def _serve(self, listener: socket.socket, ready: threading.Event) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            app = create_app(
                self.operator,
                clock=self.clock,
                operator_tokens=lambda: (self.token,),
                read_tokens=lambda: self.read_tokens,
                software_version="9.9.9",
                is_stopping=self._is_stopping.is_set,
            )
            config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5)
            self._server = uvicorn.Server(config)
            self._loop.call_soon(ready.set)
            await self._server.serve(sockets=[listener])

        asyncio.run(serve())


@contextmanager
def page_site(operator: FakeOperator, *, read_tokens: tuple[str, ...] = ()) -> Iterator[PageSite]:
    site = PageSite(operator, read_tokens=read_tokens)
    site.start()
    try:
        yield site
    finally:
        site.stop()
