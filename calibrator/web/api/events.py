"""`GET /v1/events`: changes, as server-sent events (WHATWG HTML section 9.2).

| event | data | when |
|---|---|---|
| `backend` | name, server time, and the top-level keys of the backend's document that changed | on a change |
| `removed` | name, server time | a backend has left the configuration |
| `heartbeat` | server time | no other event for `HEARTBEAT_S` |

A stream begins with the whole document of every backend. So a client that reconnects has missed nothing, and there are
no event ids to resume from. `trend` is left out; it changes with `version`.

Each stream checks for changes every `REFRESH_S`; documents are made once for all streams, and only for backends that
changed. A stream ends when the client disconnects, when its token or session is no longer valid, when the service stops
(`is_stopping`, set by wiring's signal handler), or when the client reads nothing for `STALLED_S`: stalled readers must
not accumulate memory. Streams beyond `MAX_STREAMS` are refused.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from calibrator.core.publish.snapshot import BackendView, State
from calibrator.core.report.formats import timestamp
from calibrator.ports.clock import Clock
from calibrator.web.http.auth import Access
from calibrator.web.http.operation import Operation, ResponseSpec
from calibrator.web.http.problems import Problem
from calibrator.web.http.requests import Views, parsed_query
from calibrator.web.wire.documents import backend_document
from calibrator.web.wire.events import EventDocument, EventsQuery

REFRESH_S = 1.0
HEARTBEAT_S = 10.0
STALLED_S = 20.0
RETRY_MS = 2000  # until a browser reconnects
MAX_STREAMS = 200
HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would buffer events
}

Json = dict[str, object]


@dataclass(slots=True)
class _Known:
    """The last known document of a backend."""

    view: BackendView
    state: State
    document: Json
    revision: int = 0


@dataclass(slots=True)
class EventStreams:
    """All event streams of this process."""

    clock: Clock
    views: Views
    is_stopping: Callable[[], bool]
    may_read: Callable[[Request], bool]  # checked again: a token may be rotated while a stream is open
    open_streams: int = 0
    _known: dict[str, _Known] = field(default_factory=dict)
    _refreshed_s: float = -math.inf

    async def answer(self, request: Request) -> Response:
        query = parsed_query(EventsQuery, request)
        if query.backend is not None:
            self.views.one(query.backend)
        if self.open_streams >= MAX_STREAMS:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"All {MAX_STREAMS} event streams are in use; retry later, or poll /v1/backends.",
                headers={"Retry-After": "10"},
            )
        return _Stream(self, query.backend, request)

    def refresh(self) -> Mapping[str, _Known]:
        """The documents of all backends, at most about `REFRESH_S` old."""
        now_s = self.clock.monotonic()
        if now_s - self._refreshed_s < REFRESH_S / 2:
            return self._known
        self._refreshed_s, now = now_s, self.clock.wall()
        views = self.views.all()
        for name in [name for name in self._known if name not in views]:
            del self._known[name]
        for name, view in views.items():
            self._update(name, view, view.state_at(now), now)
        return self._known

    def _update(self, name: str, view: BackendView, state: State, now: float) -> None:
        known = self._known.get(name)
        if known is not None and known.state is state and known.view == view:
            return
        document: Json = backend_document(view, now).model_dump(mode="json", exclude={"trend"})
        if known is None:
            self._known[name] = _Known(view, state, document)
            return
        known.view, known.state = view, state
        if document != known.document:
            known.document, known.revision = document, known.revision + 1

    def operation(self) -> Operation:
        return Operation(
            "GET",
            "/v1/events",
            "getEvents",
            "Changes as server-sent events: `backend`, `removed` and `heartbeat`",
            self.answer,
            (
                ResponseSpec(
                    200,
                    "A stream until either side closes it; the schema describes the data of one event",
                    EventDocument,
                    media_type="text/event-stream",
                ),
            ),
            access=Access.READ,
            query=EventsQuery,
            problems=(400, 404, 503),
        )


class _Stream(Response):
    """One client's stream."""

    media_type = "text/event-stream"

    def __init__(self, events: EventStreams, only: str | None, request: Request) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._only = only
        self._request = request
        self._sent: dict[str, _Known] = {}
        self._sent_s = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        disconnected = asyncio.create_task(_until_disconnected(receive))
        self._events.open_streams += 1
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                await self._follow(send, disconnected)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            structlog.get_logger().warning("event stream closed: the client does not read", after_s=STALLED_S)
        finally:
            self._events.open_streams -= 1
            disconnected.cancel()

    async def _follow(self, send: Send, disconnected: asyncio.Task[None]) -> None:
        """Until the client disconnects or may no longer read, or the service stops.

        Raises TimeoutError when the client does not read.
        """
        text = f"retry: {RETRY_MS}\n\n"
        while not (disconnected.done() or self._events.is_stopping()) and self._events.may_read(self._request):
            text += "".join(self._news())
            if text:
                async with asyncio.timeout(STALLED_S):
                    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            text = ""
            await asyncio.wait({disconnected}, timeout=REFRESH_S)

    def _news(self) -> Iterator[str]:
        known = self._events.refresh()
        clock, at = self._events.clock, timestamp(self._events.clock.wall())
        is_silent = True
        for name in [name for name in self._sent if name not in known]:
            del self._sent[name]
            is_silent = False
            yield _event("removed", {"backend": name, "at": at})
        for name, now in known.items():
            before = self._sent.get(name)
            if self._only not in (None, name) or (before is not None and before.revision == now.revision):
                continue
            changed = _changed({} if before is None else before.document, now.document)
            self._sent[name] = _Known(now.view, now.state, now.document, now.revision)
            is_silent = False
            yield _event("backend", {"backend": name, "at": at, "changed": changed})
        if not is_silent:
            self._sent_s = clock.monotonic()
        elif clock.monotonic() - self._sent_s >= HEARTBEAT_S:
            self._sent_s = clock.monotonic()
            yield _event("heartbeat", {"at": at})


def _changed(before: Json, now: Json) -> Json:
    return {key: value for key, value in now.items() if key not in before or before[key] != value}


def _event(kind: str, data: Json) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
