"""One completion over HTTP: hand it to the engine, pass its tokens on as they come, and notice at once who leaves.

The engine's callback only notes that there are tokens; this request's own task writes them. A client that closes its
connection frees its slot or its place in the queue in the same turn of the event loop.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from calibrator.backends.simulated import api_texts
from calibrator.backends.simulated.api_texts import Wording
from calibrator.backends.simulated.driver import Driver, Request
from calibrator.backends.simulated.engine import Fate

STREAM_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


@dataclass(slots=True)
class Answer:
    """An ASGI response. The request was accepted by the engine already, with `on_token` set to `self.changed.set`."""

    driver: Driver
    request: Request
    wording: Wording
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _left: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        leaving = asyncio.create_task(self._watch(receive))
        try:
            if self.wording.ask.stream:
                await self._stream(send)
            else:
                await self._whole(scope, receive, send)
        finally:
            leaving.cancel()
            self.driver.cancel(self.request)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._left = True
        self.driver.cancel(self.request)
        self.changed.set()

    async def _stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
        await _write(send, self.wording.role_chunk())
        written, total = 0, self.request.output_tokens
        reason = self.request.finish_reason if self.request.fate is Fate.DONE else None
        while written < total:
            if not await self._next():
                return
            made = self.request.made_tokens
            chunks = (
                self.wording.token_chunk(index, reason if index == total - 1 else None)
                for index in range(written, made)
            )
            await _write(send, b"".join(chunks))
            written = made
        await self._end(send)

    async def _end(self, send: Send) -> None:
        match self.request.fate:
            case Fate.DONE:
                await _write(send, self.wording.ending(self.request), more=False)
            case Fate.TRUNCATED:
                await _write(send, b"", more=False)
            case Fate.RESET:
                return  # the server closes a connection whose answer was left unfinished
            case Fate.HANGS:
                await self._hang()

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        while not self.request.is_done:
            if not await self._next():
                return
        if self.request.fate is Fate.HANGS:
            await self._hang()
        elif self.request.fate is not Fate.RESET:
            reason = self.request.finish_reason if self.request.fate is Fate.DONE else None
            await JSONResponse(self.wording.document(self.request, reason))(scope, receive, send)

    async def _next(self) -> bool:
        """Wait for tokens; False: the client has left."""
        await self.changed.wait()
        self.changed.clear()
        return not self._left

    async def _hang(self) -> None:
        while await self._next():
            pass


def refused_stream() -> Response:
    """The second form of a refusal: success by its status, an error by its only event."""
    return Response(api_texts.event(api_texts.refused().body) + api_texts.DONE, media_type="text/event-stream")


async def _write(send: Send, body: bytes, *, more: bool = True) -> None:
    if body or not more:
        await send({"type": "http.response.body", "body": body, "more_body": more})
