"""The short way to the cap, for nearly every poll: thousands a second, written as gateways and `calibrator.client` do.

    GET /v1/backends/<name>/cap?client=<id>[&in_flight=<n>][&rejected=<n>]      in this order

Whatever is written otherwise, waits, or is wrong takes the ordinary route behind this one, and gets the same answer:
the two differ in cost alone. The ordinary way costs more than the whole answer: three layers of middleware, a regular
expression for the path, a Request object, a query as pairs and as a validated model.

The lane lies around the application and its middleware; made answers carry the safe headers already. What it refuses
(credentials, an unknown backend, a joiner that must wait) is handed to the application, whose handlers answer it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from calibrator.ports.sharing import Poll
from calibrator.web.http.auth import Access, Gatekeeper
from calibrator.web.poll.cap import CapPolls

BEFORE, AFTER = "/v1/backends/", "/cap"
_ERROR = "calibrator.poll_error"
# Nine digits are within MAX_COUNT; more of them are for the model to judge. Of a name's letters, clients escape three.
_PLAIN = re.compile(
    rb"client=((?:[A-Za-z0-9._:@/-]|%3[Aa]|%2[Ff]|%40){1,128})(?:&in_flight=([0-9]{1,9}))?(?:&rejected=([0-9]{1,9}))?"
)


def plain_poll(query: bytes) -> Poll | None:
    """None: written in a way that only the model of the query can read."""
    found = _PLAIN.fullmatch(query)
    if found is None:
        return None
    client, in_flight, rejected = found.groups()
    return Poll(
        client.decode("ascii") if b"%" not in client else unquote(client),
        None if in_flight is None else int(in_flight),
        None if rejected is None else int(rejected),
    )


@dataclass(frozen=True, slots=True)
class PollLane:
    """ASGI middleware, outermost."""

    app: ASGIApp
    polls: CapPolls
    gatekeeper: Gatekeeper

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = plain_request(scope)
        if found is None:
            await self.app(scope, receive, send)
            return
        try:
            answer = self._answer(*found, scope)
        except Exception as error:  # noqa: BLE001 - whatever it is, the application's handlers answer it
            await self.app({**scope, _ERROR: error}, receive, send)
        else:
            await answer(scope, receive, send)

    def _answer(self, name: str, poll: Poll, scope: Scope) -> Response:
        if not self.gatekeeper.reading_is_open:
            self.gatekeeper.check(Request(scope), Access.READ)
        known = ", ".join([value.decode("latin-1") for name, value in scope["headers"] if name == b"if-none-match"])
        return self.polls.at_once(name, poll, known)


def plain_request(scope: Scope) -> tuple[str, Poll] | None:
    """Backend and poll, if it is one that can be answered here."""
    if scope["type"] != "http" or scope["method"] != "GET" or scope.get("root_path"):
        return None
    path: str = scope["path"]
    if not (path.startswith(BEFORE) and path.endswith(AFTER)):
        return None
    name = path[len(BEFORE) : -len(AFTER)]
    poll = plain_poll(scope["query_string"]) if name and "/" not in name else None
    return None if poll is None else (name, poll)


class Refusals(BaseRoute):
    """Raises, inside of the application, what the lane met; belongs before the other routes."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return (Match.FULL if _ERROR in scope else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - starlette's
        error: Exception = scope[_ERROR]
        raise error
