"""What one connection may take: time, bytes, and a place among the others. uvicorn bounds none of it on httptools.

| phase | it begins with | it may last | afterwards |
|---|---|---|---|
| head | connecting, or the first byte on a kept connection | `head_s` | 408, or closed if not a byte came |
| body | the end of the head | `body_s` | 408 |
| answer | the end of the body | as long as the handler likes | |
| idle | the end of the answer | `idle_s` (uvicorn's keep-alive) | closed |

Apart from that, bytes of ours that the peer does not take for `stuck_s` end the connection: a slow reader keeps memory.
A refusal is followed by the end of our side only: closing at once would reset the connection under what the peer still
sends, and the refusal would be lost with it. For `linger_s` the rest is read and thrown away.

A head beyond `head_bytes` or `headers` is 431, what is no HTTP is 400, and a request beyond `connections` is 503,
except `/livez`: a crowd must not have the process restarted. All of these are problem documents, and the last answer of
their connection.

The protocol stamps the phases, which costs a request next to nothing; `watch` checks all connections every second, so
limits are met within a second. Bodies are bounded by the handlers that read them (web.http.requests,
gateways.envoy_rtds).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from calibrator.web.http.headers import SafeHeaders, with_defaults
from calibrator.web.http.problems import Problem
from calibrator.wiring.server.tls import ServerTls

CHECK_EVERY_S = 1.0
GRACEFUL_TIMEOUT_S = 1  # what waits was answered before: see wiring.service


@dataclass(frozen=True, slots=True)
class Limits:
    head_s: float = 10.0
    body_s: float = 30.0
    idle_s: int = 75  # gateways poll every few seconds: a shorter one would race with their next request
    stuck_s: float = 60.0
    linger_s: float = 2.0
    head_bytes: int = 32 * 1024
    headers: int = 100
    connections: int = 4096


LIMITS = Limits()
ALWAYS_ANSWERED = b"/livez"


class _Phase(Enum):
    HEAD = "head"
    BODY = "body"
    ANSWER = "answer"
    IDLE = "idle"
    REFUSED = "refused"


def guarded_config(
    app: ASGIApp, *, proxies: Sequence[str] = (), tls: ServerTls | None = None, limits: Limits = LIMITS
) -> uvicorn.Config:
    """`proxies`: whose X-Forwarded-For and -Proto are believed; uvicorn would believe those of this machine."""

    class Protocol(GuardedProtocol):
        guard = limits

    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        timeout_keep_alive=limits.idle_s,
        timeout_graceful_shutdown=GRACEFUL_TIMEOUT_S,
        ssl_context_factory=None if tls is None else lambda _config, _default: tls.context,
    )


async def watch(state: ServerState, every_s: float = CHECK_EVERY_S) -> None:
    """Enforce the limits until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(every_s)
        for connection in list(state.connections):
            if isinstance(connection, GuardedProtocol):
                connection.check(loop.time())


class GuardedProtocol(HttpToolsProtocol):
    guard = LIMITS

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._serve = self.app
        self._phase = _Phase.HEAD
        self._since_s = 0.0
        self._stuck_since_s: float | None = None
        self._has_begun = False  # a byte of the head has come
        self._head_bytes = 0
        self._named_bytes = 0
        self._unanswered = 0  # requests

    # ------------------------------------------------------------------------------------------- transport
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._enter(_Phase.HEAD)

    def data_received(self, data: bytes) -> None:
        if self._phase is _Phase.REFUSED or self.transport.is_closing():
            return
        if self._phase is _Phase.IDLE:
            self._enter(_Phase.HEAD)
        is_head = self._phase is _Phase.HEAD
        self._has_begun = True
        super().data_received(data)
        if is_head and self._phase is _Phase.HEAD:
            self._head_bytes += len(data)
            if self._head_bytes > self.guard.head_bytes:
                self._refuse(_head_too_large(self.guard))

    # ---------------------------------------------------------------------------------------------- parser
    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._phase is not _Phase.HEAD:  # a request that did not wait for the answer to the last
            self._enter(_Phase.HEAD)
        self._head_bytes = self._named_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._named_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._named_bytes += len(name) + len(value)

    def on_headers_complete(self) -> None:
        guard = self.guard
        self._enter(_Phase.BODY)
        if self._named_bytes > guard.head_bytes or len(self.headers) > guard.headers:
            self.app = _answer(_head_too_large(guard))
        elif len(self.connections) > guard.connections and self.url.partition(b"?")[0] != ALWAYS_ANSWERED:
            self.app = _answer(_overloaded())
        else:
            self.app = self._serve
        super().on_headers_complete()  # fails for an impossible target
        self._unanswered += 1

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._enter(_Phase.IDLE if self.cycle.response_complete else _Phase.ANSWER)

    def on_response_complete(self) -> None:
        self._unanswered -= 1
        super().on_response_complete()
        if self._phase is _Phase.ANSWER and self.cycle.response_complete:
            self._enter(_Phase.IDLE)

    def send_400_response(self, msg: str) -> None:
        self._refuse(Problem(HTTPStatus.BAD_REQUEST, f"{msg} Send HTTP/1.1."))

    # ---------------------------------------------------------------------------------------------- limits
    def check(self, now_s: float) -> None:
        """End what has lasted too long."""
        if self._is_stuck(now_s):
            self.transport.abort()
        elif self.transport.is_closing():
            return
        elif self._phase is _Phase.REFUSED and now_s > self._since_s + self.guard.linger_s:
            self.transport.close()
        elif self._phase is _Phase.HEAD and now_s > self._since_s + self.guard.head_s:
            if self._has_begun:
                self._refuse(_too_slow("head", self.guard.head_s))
            else:
                self.transport.close()
        elif self._phase is _Phase.BODY and now_s > self._since_s + self.guard.body_s:
            if self._unanswered:
                self._refuse(_too_slow("body", self.guard.body_s))
            else:
                self.transport.close()

    def _is_stuck(self, now_s: float) -> bool:
        if not self.transport.get_write_buffer_size():
            self._stuck_since_s = None
        elif self._stuck_since_s is None:
            self._stuck_since_s = now_s
        return self._stuck_since_s is not None and now_s > self._stuck_since_s + self.guard.stuck_s

    def _enter(self, phase: _Phase) -> None:
        self._phase = phase
        self._since_s = self.loop.time()
        self._has_begun = False
        self._head_bytes = 0

    def _refuse(self, problem: Problem) -> None:
        """Answer without a handler; one that waits for the body learns that the client is gone."""
        is_its_own = self._phase is _Phase.BODY and self._unanswered == 1 and not self.cycle.response_started
        if self._unanswered and not is_its_own:
            self.transport.abort()  # an answer is under way: another in its middle would pass for a part of it
            return
        response = problem.response()
        headers = with_defaults([*response.raw_headers, (b"connection", b"close")])
        lines = [b"%s: %s\r\n" % pair for pair in headers]
        self.transport.write(b"".join([STATUS_LINE[response.status_code], *lines, b"\r\n", bytes(response.body)]))
        self._enter(_Phase.REFUSED)
        if self._unanswered:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:  # TLS
            self.transport.close()


def _answer(problem: Problem) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = problem.response()
        response.headers["Connection"] = "close"
        await response(scope, receive, send)

    return SafeHeaders(app)


def _head_too_large(guard: Limits) -> Problem:
    detail = f"The head of the request is beyond {guard.head_bytes} bytes or {guard.headers} fields."
    return Problem(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail)


def _too_slow(part: str, limit_s: float) -> Problem:
    return Problem(HTTPStatus.REQUEST_TIMEOUT, f"The {part} of the request did not arrive within {limit_s:g} s.")


def _overloaded() -> Problem:
    detail = "Too many connections are open; keep the value you have, and ask again."
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": "5"})
