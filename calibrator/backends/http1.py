"""One HTTP/1.1 connection, stamped at the wire: the timed path of every measurement.

Why not a pooled client: its pool is a queue inside the stopwatch (DESIGN section 9 has the figures). Here one virtual
user owns one connection; `data_received` takes the time before it does anything else, and bytes reach their consumer
in the same call, without a task switch.

    transport ── data_received: stamp ─▶ llhttp ─▶ on_body ─▶ (inflate) ─▶ sink.on_body(bytes, stamp)
    write: stamp, then `transport.write`, which sends at once when the socket takes it

How a response ends:

| framing                        | complete when                         | the peer closes before that            |
|--------------------------------|---------------------------------------|----------------------------------------|
| content-length, chunked        | llhttp says so                        | TRUNCATED (FIN) or RESET (RST)         |
| neither (close-delimited, 1.0) | the peer closes: llhttp never says so | that is the end; RST is still RESET    |

1xx heads are skipped; 101 and anything that is not HTTP is PROTOCOL; a TLS alert in answer to plain HTTP is told as
such. `Accept-Encoding: identity` is asked for by the caller, but proxies send gzip anyway, so it is decoded; another
encoding is named. Heads, and what one read may inflate to, are bounded.

One timer a request, not one an event: it looks at the last stamp when it fires, and goes on sleeping for the rest.

An exception from a sink is a bug of ours. It must not pass for the backend's failure: `exchange` raises it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import httptools

from calibrator.core.records.sample import Failure, FailureKind, Fault

MAX_HEAD_BYTES = 64 * 1024
MAX_INFLATED_BYTES = 16 * 1024 * 1024  # by one read
_TLS_ALERT = b"\x15\x03"  # record type and major version (RFC 8446, section 5.1)

Headers = Mapping[bytes, bytes]  # names in lower case; of repeated ones the last


class Sink(Protocol):
    """Who asked. Called synchronously by the transport; must neither block nor raise."""

    def on_start(self, started_s: float, connect_s: float) -> None:
        """The request was handed to an open connection. Again after a retry: the clock restarts."""
        ...

    def on_head(self, status: int, headers: Headers) -> None: ...

    def on_body(self, data: bytes, at_s: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Ending:
    """How an exchange ended on the wire."""

    at_s: float
    failure: Failure | None = None
    cancelled: bool = False
    answered: bool = True  # at least one byte came


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits of one request, in seconds."""

    connect_s: float
    stall_s: float  # without a byte
    total_s: float


class Http1Connection(asyncio.Protocol):
    """One TCP or TLS connection, one request at a time."""

    def __init__(self, now: Callable[[], float], patience: Timeouts) -> None:
        self._now = now
        self._patience = patience
        self._parser: Any = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._sink: Sink | None = None  # None: no exchange under way
        self._done: asyncio.Future[Ending] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._keep_alive = True
        self._lost = Failure(FailureKind.RESET, "the connection closed before any answer")  # if nobody was waiting
        self._started_s = 0.0
        self._arrived_s = 0.0  # stamp of the latest read
        self._answered = False
        self._head_bytes = 0
        self._in_body = False
        self._until_close = False
        self._headers: dict[bytes, bytes] = {}
        self._inflate: Any = None

    @property
    def is_open(self) -> bool:
        """May carry another request."""
        return self._transport is not None and self._keep_alive and not self._transport.is_closing()

    async def exchange(self, request: bytes, sink: Sink, connect_s: float) -> Ending:
        """Send and follow to the end. Raises what the sink raised, and nothing else."""
        transport = self._transport
        if transport is None:  # lost between connecting and here
            at_s = self._now()
            sink.on_start(at_s, connect_s)
            return Ending(at_s, self._lost, answered=False)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Ending] = loop.create_future()
        self._done = done
        self._sink = sink
        self._answered = self._in_body = self._until_close = False
        self._head_bytes = 0
        self._headers = {}
        self._inflate = None
        self._started_s = self._arrived_s = self._now()
        if not transport.is_closing():  # else `connection_lost` is on its way, with the reason
            transport.write(request)
        sink.on_start(self._started_s, connect_s)
        self._timer = loop.call_later(min(self._patience.stall_s, self._patience.total_s), self._check_patience)
        try:
            return await done
        finally:
            self._timer.cancel()
            if done.cancelled() or not self._keep_alive:
                self.close()

    def close(self) -> None:
        """Close now, without waiting for anything. An exchange under way ends as cancelled."""
        self._keep_alive = False
        self._end(None, cancelled=True, at_s=self._now())
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------------------------------ transport
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        at_s = self._now()
        if self._sink is None:  # nobody asked: a late answer, or a proxy's farewell
            self._lost = Failure(FailureKind.PROTOCOL, "the server spoke before it was asked")
            self.close()
            return
        self._arrived_s = at_s
        self._answered = True
        self._feed(data)
        if not self._in_body and self._sink is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._fail(FailureKind.PROTOCOL, f"response head beyond {MAX_HEAD_BYTES} bytes")

    def eof_received(self) -> None:
        if self._sink is not None:
            self._peer_closed()

    def connection_lost(self, exc: Exception | None) -> None:
        self._keep_alive = False
        self._transport = None
        self._parser = None  # breaks the cycle between parser and callbacks
        if exc is not None:
            # TLS 1.3 refuses a client certificate after the handshake; a TCP close without farewell is only a reset.
            if isinstance(exc, ssl.SSLError) and not isinstance(exc, ssl.SSLEOFError):
                self._lost = Failure(FailureKind.TLS, tls_detail(exc))
            else:
                self._lost = Failure(FailureKind.RESET, describe(exc))
            self._end(self._lost, cancelled=False, at_s=self._now())
        elif self._sink is not None:
            self._peer_closed()

    # --------------------------------------------------------------------------------------------- parser
    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # trailers are of no use here
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 <= status < 200 or self._sink is None:  # a second answer behind the first belongs to nobody
            return
        headers = self._headers
        self._in_body = True
        self._keep_alive = self._parser.should_keep_alive()
        self._until_close = b"content-length" not in headers and b"chunked" not in _lowered(
            headers, b"transfer-encoding"
        )
        encoding = _lowered(headers, b"content-encoding")
        if encoding in (b"gzip", b"x-gzip", b"deflate"):
            self._inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: gzip or zlib, by its head
        elif encoding not in (b"", b"identity"):
            words = f"the body is compressed: content-encoding {_shown(encoding)}, though identity was asked for"
            self._fail(FailureKind.PROTOCOL, words, status, Fault.ENCODING)
            return
        self._sink.on_head(status, headers)

    def on_body(self, data: bytes) -> None:
        if self._inflate is not None:
            data = self._inflated(data)
        if self._sink is not None and data:
            self._sink.on_body(data, self._arrived_s)

    def on_message_complete(self) -> None:
        if not self._in_body:  # 1xx
            self._headers = {}
            self._head_bytes = 0
            return
        self._end(None, cancelled=False, at_s=self._arrived_s)

    def on_message_begin(self) -> None:
        if self._in_body:  # bytes behind the end of the answer
            self._keep_alive = False

    # --------------------------------------------------------------------------------------------- ending
    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            self._break(error.__context__ or error)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if data.startswith(_TLS_ALERT):
                self._fail(FailureKind.PROTOCOL, "the port answers plain HTTP with a TLS alert", fault=Fault.TLS_PORT)
            else:
                self._fail(FailureKind.PROTOCOL, f"not an HTTP/1 response: {error}")

    def _inflated(self, data: bytes) -> bytes:
        try:
            plain: bytes = self._inflate.decompress(data, MAX_INFLATED_BYTES)
        except zlib.error as error:
            self._fail(FailureKind.PROTOCOL, f"broken compressed body: {error}")
            return b""
        if self._inflate.unconsumed_tail:
            self._fail(FailureKind.PROTOCOL, f"compressed body inflates beyond {MAX_INFLATED_BYTES} bytes a read")
            return b""
        return plain

    def _peer_closed(self) -> None:
        at_s = self._now()
        self._keep_alive = False
        if self._in_body and self._until_close:
            self._end(None, cancelled=False, at_s=at_s)
        elif self._in_body:
            self._fail(FailureKind.TRUNCATED, "the connection closed in the middle of the body")
        elif self._answered:
            self._fail(FailureKind.RESET, "the connection closed in the middle of the response head")
        else:
            self._end(self._lost, cancelled=False, at_s=at_s)

    def _check_patience(self) -> None:
        now_s = self._now()
        stalled_in_s = self._arrived_s + self._patience.stall_s - now_s
        over_in_s = self._started_s + self._patience.total_s - now_s
        if over_in_s <= 0:
            self._fail(FailureKind.TIMEOUT, f"not finished after {self._patience.total_s:g} s")
        elif stalled_in_s <= 0:
            self._fail(FailureKind.STALLED, f"nothing arrived for {self._patience.stall_s:g} s")
        else:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(min(stalled_in_s, over_in_s), self._check_patience)

    def _fail(self, kind: FailureKind, detail: str, status: int | None = None, fault: Fault | None = None) -> None:
        """End the exchange as failed; the connection is of no further use."""
        self._keep_alive = False
        self._end(Failure(kind, detail, status, fault), cancelled=False, at_s=self._now())
        if self._transport is not None:
            self._transport.abort()

    def _break(self, error: BaseException) -> None:
        self._keep_alive = False
        self._sink = None
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)

    def _end(self, failure: Failure | None, *, cancelled: bool, at_s: float) -> None:
        self._sink = None
        if self._done is not None and not self._done.done():
            self._done.set_result(Ending(at_s, failure, cancelled, self._answered))


def describe(error: BaseException) -> str:
    """The system's own words, without Python's."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def tls_detail(error: BaseException) -> str:
    """OpenSSL's reason: `certificate verify failed: self-signed certificate`."""
    verify = getattr(error, "verify_message", None)
    reason = str(getattr(error, "reason", None) or error).replace("_", " ").lower()
    return f"{reason}: {verify}" if verify else reason


def _lowered(headers: Headers, name: bytes) -> bytes:
    return headers.get(name, b"").strip().lower()


def _shown(value: bytes) -> str:
    return value[:40].decode("latin-1")
