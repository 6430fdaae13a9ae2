"""ASGI middleware: the wrapped program has no more in flight than its share of the cap.

    app.add_middleware(CapMiddleware, cap=AsyncCap("http://calibrator:8300", "llm", static_cap=4))

A request counts from its admission until its answer's last byte was handed to the server, or the program's call ended:
by an error, a cancellation, or because the program noticed that the client left. Who goes on computing for a client
that left is still busy, and still counted.

Only POSTs on `paths` count. What finds no place is answered 429 with `Retry-After` before its body is read; with
`max_wait_s` above 0 it waits, in order, while fewer than `max_waiting` do. Whoever leaves meanwhile leaves the line.

In front of the engine itself (vLLM's `--middleware`) it would refuse the calibrator's probes too, and a refusal counts
against the capacity. So the probes' own API key, `exempt_token`, passes uncounted; while they run, the published cap is
lower by their number.

The server's lifespan events start and end the polling; without them the first request starts it. Each process polls
under a name of its own and gets a share.
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
READ_AHEAD_BYTES = 1 << 20  # of a body, while its request waits; a longer one is read on when it is served


class CapMiddleware:
    """`app` with one backend's cap before it. Raises ConfigurationError for values that make no sense."""

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
            raise ConfigurationError("A wait or a queue below 0.", "Give max_wait_s=0 to refuse at once.")
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
        """For a place. Nothing is awaited between getting it and `_serve`."""
        self._waiting += 1
        try:
            async with asyncio.timeout(None) as patience:
                client.watch(patience)
                try:
                    await self._cap.enter(self._max_wait_s)
                finally:
                    client.look_away()
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
                leave()  # work that the program does in the background afterwards is none of the backend's

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
    """While its request waited."""


class _Client:
    """What a request's client sends: read ahead while it waits, to see whether it is still there."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read: deque[Message] = deque()
        self._watching: asyncio.Task[None] | None = None

    def watch(self, patience: asyncio.Timeout) -> None:
        """Until `look_away`; `patience` ends when the client leaves."""
        self._watching = asyncio.create_task(self._read_ahead(patience))

    def look_away(self) -> None:
        if self._watching is not None:
            self._watching.cancel()

    async def _read_ahead(self, patience: asyncio.Timeout) -> None:
        read_bytes = 0
        while read_bytes < READ_AHEAD_BYTES:
            message = await self._receive()
            self._read.append(message)
            if message["type"] == "http.disconnect":
                patience.reschedule(asyncio.get_running_loop().time())
                return
            read_bytes += len(message.get("body", b""))

    async def receive(self) -> Message:
        watching, self._watching = self._watching, None
        if watching is not None:
            await asyncio.wait([watching])  # two must not receive at once
        return self._read.popleft() if self._read else await self._receive()
