"""One connection: framing, bounds, patience and failure forms, on virtual time over an in-memory transport."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from support.virtual_time import run_virtual
from support.wire import MemoryTransport

from calibrator.backends.http1 import Ending, Headers, Http1Connection, Timeouts
from calibrator.core.records.sample import FailureKind


@dataclass
class Recorder:
    started_s: list[float] = field(default_factory=list)
    status: int = 0
    headers: Headers = field(default_factory=dict)
    body: bytes = b""
    stamps: list[float] = field(default_factory=list)
    break_in: str = ""

    def on_start(self, started_s: float, connect_s: float) -> None:
        self.started_s.append(started_s)

    def on_head(self, status: int, headers: Headers) -> None:
        if self.break_in == "head":
            raise ZeroDivisionError
        self.status, self.headers = status, headers

    def on_body(self, data: bytes, at_s: float) -> None:
        if self.break_in == "body":
            raise ZeroDivisionError
        self.body += data
        self.stamps.append(at_s)


class Peer:
    """The other end: what it does, at which second."""

    def __init__(self, stall_s: float = 30.0, total_s: float = 300.0) -> None:
        self.loop = asyncio.get_running_loop()
        self.connection = Http1Connection(self.loop.time, Timeouts(5.0, stall_s, total_s))
        self.transport = MemoryTransport(self.connection)

    def says(self, data: bytes, at_s: float = 1.0) -> None:
        self.loop.call_at(at_s, self.connection.data_received, data)

    def closes(self, at_s: float = 2.0, error: Exception | None = None) -> None:
        def close() -> None:
            if error is None:
                self.connection.eof_received()
            self.connection.connection_lost(error)

        self.loop.call_at(at_s, close)

    async def ask(self, sink: Recorder) -> Ending:
        return await self.connection.exchange(b"POST / HTTP/1.1\r\n\r\n", sink, 0.0)


def play(script: Callable[[Peer], object], sink: Recorder | None = None, **patience: float) -> tuple[Ending, Recorder]:
    recorder = sink or Recorder()

    async def run() -> Ending:
        peer = Peer(**patience)
        script(peer)
        return await peer.ask(recorder)

    return run_virtual(run()), recorder


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "response",
    [
        OK + b"Content-Length: 5\r\n\r\nhello",
        OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\nContent-Length: 9\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello",
        OK + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(gzip.compress(b"hello")), gzip.compress(b"hello")),
        OK
        + b"Content-Encoding: deflate\r\nContent-Length: %d\r\n\r\n%b"
        % (len(zlib.compress(b"hello")), zlib.compress(b"hello")),
        OK + b"Content-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello",
    ],
    ids=["length", "chunked", "trailer", "100", "103", "gzip", "deflate", "identity"],
)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_framed_bodies_end_by_themselves_and_keep_the_connection(response: bytes, size: int) -> None:
    async def run() -> None:
        peer = Peer()
        for turn in (0.0, 10.0):  # the second time on the same connection
            for offset in range(0, len(response), size):
                peer.says(response[offset : offset + size], turn + 1.0 + offset * 1e-3)
            sink = Recorder()
            ending = await peer.ask(sink)
            assert (sink.status, sink.body, ending.failure) == (200, b"hello", None)
            assert ending.at_s == pytest.approx(turn + 1.0 + (len(response) - 1) // size * size * 1e-3)
            assert peer.connection.is_open
            await asyncio.sleep(turn + 10.0 - peer.loop.time())

    run_virtual(run())


@pytest.mark.parametrize("head", [OK + b"\r\n", b"HTTP/1.0 200 OK\r\n\r\n", OK + b"Connection: close\r\n\r\n"])
def test_a_close_delimited_body_ends_when_the_peer_closes(head: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.says(head + b"hel", 1.0)
        peer.says(b"lo", 1.5)
        peer.closes(2.0)

    ending, sink = play(script)
    assert (sink.body, ending.failure, ending.at_s) == (b"hello", None, 2.0)
    assert sink.stamps == [1.0, 1.5]


def test_an_http_1_0_answer_with_a_length_ends_without_the_close() -> None:
    async def run() -> None:
        peer = Peer()
        peer.says(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        ending = await peer.ask(Recorder())
        assert (ending.failure, ending.at_s) == (None, 1.0)
        assert not peer.connection.is_open
        assert peer.transport.aborted

    run_virtual(run())


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("said", "error", "kind"),
    [
        (b"", None, FailureKind.RESET),
        (b"", ConnectionResetError(104, "Connection reset by peer"), FailureKind.RESET),
        (b"HTTP/1.1 200", None, FailureKind.RESET),
        (OK + b"Content-Le", ConnectionResetError(104, "Connection reset by peer"), FailureKind.RESET),
        (OK + b"Content-Length: 5\r\n\r\nhel", None, FailureKind.TRUNCATED),
        (CHUNKED + b"5\r\nhello\r\n", None, FailureKind.TRUNCATED),
        (CHUNKED + b"5\r\nhel", ConnectionResetError(104, "Connection reset by peer"), FailureKind.RESET),
        (OK + b"\r\nhello", ConnectionResetError(104, "Connection reset by peer"), FailureKind.RESET),
        (b"", ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), FailureKind.RESET),
        (b"", ssl.SSLError(1, "tlsv13 alert certificate required"), FailureKind.TLS),
    ],
)
def test_a_connection_that_breaks_too_early_is_a_failure(
    said: bytes, error: Exception | None, kind: FailureKind
) -> None:
    def script(peer: Peer) -> None:
        if said:
            peer.says(said)
        peer.closes(error=error)

    ending, _ = play(script)
    assert ending.failure is not None
    assert ending.failure.kind is kind
    assert (ending.at_s, ending.answered) == (2.0, bool(said))


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"<html>no</html>",
        b"HTTP/2 200 OK\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x50",  # a TLS alert: the port speaks https
        OK + b"Content-Length: x\r\n\r\n",
        CHUNKED + b"zz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
        OK + b"X: " + b"y" * 70_000,
        OK + b"X: y\r\n" * 20_000,
        OK + b"Content-Encoding: br\r\nContent-Length: 1\r\n\r\nx",
        OK + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        OK + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"%x\r\n%b" % (1 << 20, gzip.compress(bytes(40_000_000))),
    ],
    ids=["ssh", "html", "http2", "tls", "length", "chunk", "101", "header", "headers", "br", "not-gzip", "bomb"],
)
def test_what_is_no_http_response_or_breaks_a_bound_is_a_protocol_failure(said: bytes) -> None:
    ending, _ = play(lambda peer: peer.says(said))
    assert ending.failure is not None
    assert (ending.failure.kind, ending.at_s) == (FailureKind.PROTOCOL, 1.0)


def test_a_large_body_in_the_read_of_its_head_is_fine() -> None:
    ending, sink = play(lambda peer: peer.says(OK + b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000))
    assert (ending.failure, len(sink.body)) == (None, 100_000)


def test_silence_beyond_the_stall_limit_is_stalled() -> None:
    def script(peer: Peer) -> None:
        peer.says(CHUNKED, 8.0)
        peer.says(b"1\r\nx\r\n", 17.0)

    ending, _ = play(script, stall_s=10.0)
    assert ending.failure is not None
    assert ending.failure.kind is FailureKind.STALLED
    assert ending.at_s == pytest.approx(27.0)  # ten seconds after the last byte, not after the first


def test_a_server_that_takes_the_request_and_never_answers_is_stalled() -> None:
    ending, sink = play(lambda _: None, stall_s=10.0)
    assert ending.failure is not None
    assert (ending.failure.kind, sink.started_s) == (FailureKind.STALLED, [0.0])
    assert ending.at_s == pytest.approx(10.0)


def test_a_dripping_answer_ends_at_the_total_limit() -> None:
    def script(peer: Peer) -> None:
        peer.says(CHUNKED, 1.0)
        for second in range(2, 200):
            peer.says(b"1\r\nx\r\n", float(second))

    ending, _ = play(script, stall_s=10.0, total_s=60.0)
    assert ending.failure is not None
    assert ending.failure.kind is FailureKind.TIMEOUT
    assert ending.at_s == pytest.approx(60.0)


@pytest.mark.parametrize("place", ["head", "body"])
def test_a_bug_in_the_sink_is_raised_and_never_the_backends_failure(place: str) -> None:
    with pytest.raises(ZeroDivisionError):
        play(lambda peer: peer.says(OK + b"Content-Length: 5\r\n\r\nhello"), Recorder(break_in=place))


def test_close_ends_the_exchange_as_cancelled_at_once() -> None:
    ending, _ = play(lambda peer: peer.loop.call_at(3.0, peer.connection.close))
    assert (ending.cancelled, ending.failure, ending.at_s) == (True, None, 3.0)


def test_cancelling_the_task_closes_the_connection() -> None:
    async def run() -> None:
        peer = Peer()
        task = asyncio.create_task(peer.ask(Recorder()))
        await asyncio.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert peer.transport.aborted

    run_virtual(run())


@pytest.mark.parametrize(
    "late", [OK + b"Content-Length: 0\r\n\r\n", b"HTTP/1.1 408 Request Timeout\r\n\r\n", b"HTTP/1.1 2", b"x"]
)
def test_bytes_that_nobody_asked_for_end_the_connection(late: bytes) -> None:
    """Between requests, and behind the end of an answer: a later answer could be mistaken for them."""

    async def run(between: bytes, behind: bytes) -> None:
        peer = Peer()
        peer.says(OK + b"Content-Length: 1\r\n\r\nx" + behind)
        assert (await peer.ask(Recorder())).failure is None
        if between:
            peer.says(between, 2.0)
        await asyncio.sleep(2.0)
        assert not peer.connection.is_open

    run_virtual(run(late, b""))
    run_virtual(run(b"", late))


def test_a_connection_lost_before_its_first_request_is_a_failure_with_the_reason() -> None:
    async def run() -> None:
        peer = Peer()
        peer.connection.connection_lost(ConnectionResetError(104, "Connection reset by peer"))
        sink = Recorder()
        ending = await peer.ask(sink)
        assert ending.failure is not None
        assert (ending.failure.kind, ending.failure.detail) == (FailureKind.RESET, "Connection reset by peer")
        assert len(sink.started_s) == 1

    run_virtual(run())
