"""ASGI middleware that limits the requests in flight in the wrapped application to its share of the cap.

    app.add_middleware(CapMiddleware, cap=AsyncCap("http://calibrator:8300", "llm", static_cap=4))

A request counts from its admission until the last byte of its response was passed to the server, or the application's
call ended: by an error, a cancellation, or because the application noticed that the client had disconnected. An
application that continues to compute for a disconnected client is still busy, and its request still counts.

Only POSTs to `paths` count. A request beyond the limit is rejected with 429 and `Retry-After` before its body is read;
with `max_wait_s` above 0 it waits in a FIFO queue of at most `max_waiting`, and leaves it when its client disconnects.

In front of the engine itself (vLLM's `--middleware`) the middleware would reject the calibrator's probes too, and a
rejection counts against the capacity. So requests with the probes' own API key, `exempt_token`, pass uncounted; while
probes run, the published cap is lower by their number.

Polling starts and ends with the server's lifespan events, or starts with the first request if there are none. Each
process polls under its own name and gets its own share.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections import deque
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from calibrator.client import AsyncCap, LimitReachedError
from calibrator.errors import ConfigurationError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/responses")
READ_AHEAD_BYTES = 1 << 20  # of the body of a waiting request; the rest is read when it is served


class CapMiddleware:
    """`app`, limited by the cap of one backend. Raises ConfigurationError for invalid values."""

    def __init__(
        self,
        app: App,
        cap: AsyncCap,
        *,
        paths: Collection[str] = PATHS,
        max_wait_s: float = 0.0,
        max_waiting: int = 64,
        retry_after_s: int = 1,
        exempt_token: str = "",
    ) -> None:
        if max_wait_s < 0.0 or max_waiting < 0 or retry_after_s < 0:
            raise ConfigurationError(
                "max_wait_s, max_waiting or retry_after_s is negative.", "Use max_wait_s=0 to reject at once."
            )
        self._app, self._cap, self._paths = app, cap, frozenset(paths)
        self._max_wait_s, self._max_waiting, self._retry_after_s = max_wait_s, max_waiting, retry_after_s
        self._exempt = f"Bearer {exempt_token}".encode() if exempt_token else None
        self._waiting = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        self._cap.start()
        if scope["type"] == "lifespan":
            try:
                await self._app(scope, receive, send)
            finally:
                await self._cap.close()
        elif scope["type"] == "http" and self._counts(scope):
            await self._limit(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _counts(self, scope: MutableMapping[str, Any]) -> bool:
        if scope["method"] != "POST" or scope["path"] not in self._paths:
            return False
        if self._exempt is None:
            return True
        return not any(
            name == b"authorization" and hmac.compare_digest(value, self._exempt) for name, value in scope["headers"]
        )

    async def _limit(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        client = _Client(receive)
        is_full = self._waiting > 0 or self._cap.in_flight >= self._cap.limit
        try:
            if is_full and self._max_wait_s and self._waiting < self._max_waiting:
                await self._wait(client)
            else:
                await self._cap.enter()
        except LimitReachedError as error:
            await self._refuse(send, str(error))
        except _ClientLeftError:
            pass
        else:
            await self._serve(scope, client.receive, send)

    async def _wait(self, client: _Client) -> None:
        """Waits for a slot. Nothing is awaited between getting it and `_serve`."""
        self._waiting += 1
        try:
            async with asyncio.timeout(None) as deadline:
                client.watch(deadline)
                try:
                    await self._cap.enter(self._max_wait_s)
                finally:
                    client.unwatch()
        except TimeoutError:
            raise _ClientLeftError from None
        finally:
            self._waiting -= 1

    async def _serve(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        is_counted = True

        def leave() -> None:
            nonlocal is_counted
            if is_counted:
                is_counted = False
                self._cap.leave()

        async def send_on(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                leave()  # background work after the response does not involve the backend

        try:
            await self._app(scope, receive, send_on)
        finally:
            leave()

    async def _refuse(self, send: Send, problem: str) -> None:
        error = {"message": problem, "type": "rate_limit_error", "code": "concurrency_cap"}
        body = json.dumps({"error": error}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"retry-after", str(self._retry_after_s).encode()),
        ]
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class _ClientLeftError(Exception):
    """The client disconnected while its request was waiting."""


class _Client:
    """The messages of a client, read ahead while its request waits, to notice a disconnect."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read: deque[Message] = deque()
        self._watching: asyncio.Task[None] | None = None

    def watch(self, deadline: asyncio.Timeout) -> None:
        """Until `unwatch`; `deadline` expires when the client disconnects."""
        self._watching = asyncio.create_task(self._read_ahead(deadline))

    def unwatch(self) -> None:
        if self._watching is not None:
            self._watching.cancel()

    async def _read_ahead(self, deadline: asyncio.Timeout) -> None:
        read_bytes = 0
        while read_bytes < READ_AHEAD_BYTES:
            message = await self._receive()
            self._read.append(message)
            if message["type"] == "http.disconnect":
                deadline.reschedule(asyncio.get_running_loop().time())
                return
            read_bytes += len(message.get("body", b""))

    async def receive(self) -> Message:
        watching, self._watching = self._watching, None
        if watching is not None:
            await asyncio.wait([watching])  # there must not be two receivers
        return self._read.popleft() if self._read else await self._receive()
