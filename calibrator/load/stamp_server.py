"""The loopback server of the self-test, in a process of its own: `python -m calibrator.load.stamp_server FD`.

It streams as many token events as `max_tokens` requests, at a fixed rate and with almost no work: prepared bytes, one
timer per stream. It records when it received each request and sent its first and last token, and reports that on
request. Requests are identified by the number at the end of their `X-Request-ID`.

When the other end of the socket closes, the server exits.
"""

from __future__ import annotations

import asyncio
import random
import re
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any, cast

import uvloop

from calibrator.load.messages import Channel, Pace, Sent, Serving, Tell

FIRST_TOKEN_S = (0.02, 0.04)  # drawn uniformly, so that streams do not run in lockstep

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ID = re.compile(rb"\r\nx-request-id: *\S*?(\d+)\r\n", re.IGNORECASE)
_TOKENS = re.compile(rb'"max_tokens": ?(\d+)')


def _event(choices: str, usage: str = "") -> bytes:
    text = f'data: {{"id":"s","object":"chat.completion.chunk","model":"s","choices":[{choices}]{usage}}}\n\n'.encode()
    return b"%x\r\n%b\r\n" % (len(text), text)


_TOKEN = _event('{"index":0,"delta":{"content":" word"},"finish_reason":null}')
_FINISH = _event('{"index":0,"delta":{},"finish_reason":"length"}')
_DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


@dataclass(slots=True)
class _Book:
    period_s: float = 0.02
    stamps: dict[int, tuple[float, float, float]] = field(default_factory=dict)


class _Stream(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, book: _Book) -> None:
        self._book = book
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._timer: asyncio.TimerHandle | None = None
        self._request_id = self._left = 0
        self._received_s = self._first_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not found or (length is not None and len(body) < int(length[1])):
            return
        self._received = b""
        request_id, tokens = _ID.search(head + b"\r\n"), _TOKENS.search(body)
        self._request_id = int(request_id[1]) if request_id else 0
        self._left = int(tokens[1]) if tokens else 1
        self._received_s, self._first_s = time.monotonic(), 0.0
        self._transport.write(_HEAD)
        self._timer = self._loop.call_later(random.uniform(*FIRST_TOKEN_S), self._send)  # noqa: S311 - no secret

    def _send(self) -> None:
        at_s = time.monotonic()
        self._first_s = self._first_s or at_s
        self._left -= 1
        if self._left > 0:
            self._transport.write(_TOKEN)
            self._timer = self._loop.call_later(self._book.period_s, self._send)
        else:
            self._transport.write(_TOKEN + _FINISH + _DONE)
            self._book.stamps[self._request_id] = (self._received_s, self._first_s, at_s)


async def _serve(sock: socket.socket) -> None:
    leash = asyncio.Event()
    book = _Book()

    def heard(message: Any) -> None:
        if isinstance(message, Pace):
            book.period_s = 1.0 / message.events_per_s
        elif isinstance(message, Tell):
            channel.send(Sent(book.stamps))
            book.stamps = {}

    channel = await Channel.over(sock, heard, leash.set)
    server = await asyncio.get_running_loop().create_server(lambda: _Stream(book), "127.0.0.1", 0, backlog=4096)
    channel.send(Serving(server.sockets[0].getsockname()[1]))
    await leash.wait()
    server.close()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; whoever started us decides
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
