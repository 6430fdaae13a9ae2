"""`GET /v1/events`: what changes, as server-sent events (WHATWG HTML section 9.2).

| event | data | when |
|---|---|---|
| `backend` | name, server time, and those top-level keys of the backend's document that changed | at a change |
| `removed` | name, server time | a backend left the configuration |
| `beat` | server time | nothing else was said for `BEAT_S` |

A stream begins with the whole document of every backend, so a client that was cut off connects again and has missed
nothing: there are no positions to resume from. `trend` is left out; it changes with `version`.

Each stream looks once in `LOOK_S`; documents are made once for all of them, and only of backends that changed. It ends
when the client goes, when its token or session has ended, when the service stops (`is_stopping`, which wiring's
signal handler sets), or when the client takes nothing for `SLOW_S`: a reader that sleeps must not hold memory here.
More than `MOST_STREAMS` are refused.
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
from calibrator.web.http.operation import Answer, Operation
from calibrator.web.http.problems import Problem
from calibrator.web.http.requests import Views, parsed_query
from calibrator.web.wire.documents import backend_document
from calibrator.web.wire.events import EventDocument, EventsQuery

LOOK_S = 1.0
BEAT_S = 10.0
SLOW_S = 20.0
RETRY_MS = 2000  # how soon a browser connects again
MOST_STREAMS = 200
HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would hold events back
}

Json = dict[str, object]


@dataclass(slots=True)
class _Known:
    """A backend as it was last looked at."""

    view: BackendView
    state: State
    document: Json
    revision: int = 0


@dataclass(slots=True)
class Events:
    """All streams of this process."""

    clock: Clock
    views: Views
    is_stopping: Callable[[], bool]
    may_read: Callable[[Request], bool]  # still: a token may be rotated while a stream is open
    open_streams: int = 0
    _known: dict[str, _Known] = field(default_factory=dict)
    _looked_s: float = -math.inf

    async def answer(self, request: Request) -> Response:
        query = parsed_query(EventsQuery, request)
        if query.backend is not None:
            self.views.one(query.backend)
        if self.open_streams >= MOST_STREAMS:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"There are {MOST_STREAMS} event streams already; ask again, or poll /v1/backends.",
                headers={"Retry-After": "10"},
            )
        return _Stream(self, query.backend, request)

    def look(self) -> Mapping[str, _Known]:
        """The documents of all backends, not much older than `LOOK_S`."""
        now_s = self.clock.monotonic()
        if now_s - self._looked_s < LOOK_S / 2:
            return self._known
        self._looked_s, now = now_s, self.clock.wall()
        views = self.views.all()
        for name in [name for name in self._known if name not in views]:
            del self._known[name]
        for name, view in views.items():
            self._note(name, view, view.state_at(now), now)
        return self._known

    def _note(self, name: str, view: BackendView, state: State, now: float) -> None:
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
            "What changes, as server-sent events: `backend`, `removed` and `beat`",
            self.answer,
            (
                Answer(
                    200,
                    "A stream that ends with the service; the schema is that of the data of one event",
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

    def __init__(self, events: Events, only: str | None, request: Request) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._only = only
        self._request = request
        self._sent: dict[str, _Known] = {}
        self._said_s = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_until_gone(receive))
        self._events.open_streams += 1
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                await self._follow(send, gone)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            structlog.get_logger().warning("event stream dropped: its client reads nothing", after_s=SLOW_S)
        finally:
            self._events.open_streams -= 1
            gone.cancel()

    async def _follow(self, send: Send, gone: asyncio.Task[None]) -> None:
        """Until the client goes, may read no longer, or the service stops.

        Raises TimeoutError when the client reads nothing.
        """
        text = f"retry: {RETRY_MS}\n\n"
        while not (gone.done() or self._events.is_stopping()) and self._events.may_read(self._request):
            text += "".join(self._news())
            if text:
                async with asyncio.timeout(SLOW_S):
                    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            text = ""
            await asyncio.wait({gone}, timeout=LOOK_S)

    def _news(self) -> Iterator[str]:
        known = self._events.look()
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
            self._said_s = clock.monotonic()
        elif clock.monotonic() - self._said_s >= BEAT_S:
            self._said_s = clock.monotonic()
            yield _event("beat", {"at": at})


def _changed(before: Json, now: Json) -> Json:
    return {key: value for key, value in now.items() if key not in before or before[key] != value}


def _event(kind: str, data: Json) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
