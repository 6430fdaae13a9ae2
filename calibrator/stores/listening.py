"""Notices what other instances wrote: LISTEN on a connection of its own, which is opened again whenever it breaks.

A notification is only a hint to poll now instead of later: whoever waits has a limit, and polls then anyway. So a lost
one costs time, never correctness. A new connection counts as a notification, because some may have been missed before
it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import asyncpg
import structlog

from calibrator.errors import StoreError

CHANNEL = "calibrator"
PULSE_S = 5.0  # a connection whose other end vanished silently is found after so long
PULSE_LIMIT_S = 3.0
RETRY_S = 1.0

_FAILURES = (OSError, StoreError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

Connection: TypeAlias = "asyncpg.Connection[Any]"


class Listener:
    """Runs from `start` to `stop`. `own` is the payload of what this instance wrote itself."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], own: str) -> None:
        self._connect = connect
        self._own = own
        self._notification = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_logged = False  # that there is no connection
        self._log = structlog.get_logger()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def wait(self, limit_s: float) -> None:
        """Until there is a notification, at most `limit_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._notification.wait()
        self._notification.clear()

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except _FAILURES as error:
                if not self._is_logged:
                    self._log.warning("no notifications from the database: polling", error=type(error).__name__)
                self._is_logged = True
            await asyncio.sleep(RETRY_S)

    async def _listen(self) -> None:
        """Returns when the connection has ended."""
        connection = await self._connect()
        try:
            ended = asyncio.Event()
            connection.add_termination_listener(lambda _: ended.set())
            await connection.add_listener(CHANNEL, self._notified)
            self._notification.set()
            self._is_logged = False
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), PULSE_S)
                await connection.execute("SELECT", timeout=PULSE_LIMIT_S)
        finally:
            connection.terminate()

    def _notified(self, _connection: object, _process: int, _channel: str, sender: object) -> None:
        if sender != self._own:
            self._notification.set()
