"""The cap for asyncio programs: a task polls, `acquire` counts. One event loop, so no lock.

Waiting callers are served in order: a slot that is released goes to the first of them. When the share shrinks, requests
in flight are not interrupted; new ones are admitted once the count has fallen below it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ssl import SSLContext
from types import TracebackType
from typing import Self

import httpx

from calibrator.client.follower import ANSWER_LIMIT_S, Follower, LimitReachedError, cap_path, credentials


class AsyncCap:
    """Follows the cap of one backend from `start` (or `async with`) to `close`; `acquire` enforces it.

    `client` is the name of this process, by default host and process id. `wait_s` above 0 enables long polls, which
    return a change at once. Raises ConfigurationError for invalid values.
    """

    def __init__(
        self,
        url: str,
        backend: str,
        *,
        static_cap: int,
        client: str = "",
        token: str = "",
        poll_s: float = 5.0,
        wait_s: float = 0.0,
        verify: bool | SSLContext = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._follower = Follower(static_cap, client, poll_s, wait_s)
        self._path = cap_path(backend)
        self._timeout = httpx.Timeout(ANSWER_LIMIT_S, read=wait_s + ANSWER_LIMIT_S)
        self._url, self._token, self._verify, self._transport = url, token, verify, transport
        self._in_flight = 0
        self._rejected = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._polling: asyncio.Task[None] | None = None
        self._log = logging.getLogger("calibrator.client")

    @property
    def limit(self) -> int:
        """How many requests this process may have in flight now."""
        return self._follower.limit(asyncio.get_running_loop().time())

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def state(self) -> str:
        """State of the cap by the last response; "" before the first."""
        return self._follower.state

    @property
    def problem(self) -> str:
        """Why the last poll failed; "" if it did not."""
        return self._follower.problem

    @asynccontextmanager
    async def acquire(self, timeout_s: float = 0.0) -> AsyncIterator[None]:
        """Hold a slot during the block. Raises LimitReachedError if none is free within `timeout_s`."""
        await self.enter(timeout_s)
        try:
            yield
        finally:
            self.leave()

    async def enter(self, timeout_s: float = 0.0) -> None:
        """Take a slot where no block can hold it; `leave` releases it, once. Raises as `acquire` does."""
        if not self._waiting and self._in_flight < self.limit:
            self._in_flight += 1
            return
        if timeout_s > 0.0:
            slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(slot)
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout_s):
                        await slot
                        return
            except asyncio.CancelledError:
                self._give_up(slot)
                raise
            self._give_up(slot)
        self._rejected += 1
        raise LimitReachedError(f"All {self.limit} requests of this process's share are in flight.", "Try again later.")

    def leave(self) -> None:
        self._in_flight -= 1
        self._admit()

    # ------------------------------------------------------------------------------------------------ life cycle
    def start(self) -> None:
        """Begin to poll, in the running loop; may be called again, in another loop too when the first has ended."""
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll_on())

    async def close(self) -> None:
        """Stop polling. Waiting callers continue to wait, and slots are still counted."""
        polling, self._polling = self._polling, None
        if polling is not None:
            polling.cancel()
            await asyncio.gather(polling, return_exceptions=True)

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ---------------------------------------------------------------------------------------------------- slots
    def _give_up(self, slot: asyncio.Future[None]) -> None:
        """A slot that was assigned at the same moment goes to the next caller."""
        if slot.done() and not slot.cancelled():
            self._in_flight -= 1
        with contextlib.suppress(ValueError):
            self._waiting.remove(slot)
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._in_flight < self.limit:
            slot = self._waiting.popleft()
            if not slot.done():
                self._in_flight += 1
                slot.set_result(None)

    # --------------------------------------------------------------------------------------------------- polling
    async def _poll_on(self) -> None:
        async with httpx.AsyncClient(
            base_url=self._url,
            headers=credentials(self._token),
            timeout=self._timeout,
            verify=self._verify,
            transport=self._transport,
        ) as http:
            while True:
                before, pause_s = self.problem, await self._poll(http)
                if self.problem != before:
                    self._log.warning("cap: %s", self.problem or "the calibrator responds again")
                self._admit()
                await asyncio.sleep(pause_s)

    async def _poll(self, http: httpx.AsyncClient) -> float:
        follower, rejected = self._follower, self._rejected
        query = follower.query(self._in_flight, rejected)
        try:
            answer = await http.get(self._path, params=query, headers=follower.headers())
        except (httpx.HTTPError, OSError) as error:  # OSError: a late refusal of TLS
            return follower.failed(f"the calibrator does not respond ({type(error).__name__})")
        self._rejected -= rejected
        now_s = asyncio.get_running_loop().time()
        return follower.answered(answer.status_code, answer.headers, answer.content, now_s, time.time())
