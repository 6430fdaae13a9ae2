"""The fast path for polls in the form that gateways and `calibrator.client` use, thousands per second.

    GET /v1/backends/<name>/cap?client=<id>[&in_flight=<n>][&rejected=<n>]      in this order

Every other request takes the ordinary route behind this one. Both give the same response, byte for byte; they differ
in cost alone. The ordinary route costs more than the response itself: three layers of middleware, a regular expression
for the path, a Request object, a query as pairs and as a validated model.

The fast path wraps the application and its middleware, so its responses bring the protective headers themselves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from calibrator.errors import StoreError
from calibrator.ports.sharing import Poll
from calibrator.web.http.auth import Access, Gatekeeper
from calibrator.web.http.headers import with_defaults
from calibrator.web.http.problems import Problem, problem_of
from calibrator.web.poll.cap import CapPolls

BEFORE, AFTER = "/v1/backends/", "/cap"
# Nine digits are within MAX_COUNT; the model judges longer numbers. Clients escape three of the characters of a name.
_PLAIN = re.compile(
    rb"client=((?:[A-Za-z0-9._:@/-]|%3[Aa]|%2[Ff]|%40){1,128})(?:&in_flight=([0-9]{1,9}))?(?:&rejected=([0-9]{1,9}))?"
)


def plain_poll(query: bytes) -> Poll | None:
    """None: in a form that only the model of the query can read."""
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
class FastPath:
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
            response = self._answer(*found, scope)
        except (Problem, StoreError) as error:
            response = _refusal(error)
        except Exception as error:
            await _refusal(error)(scope, receive, send)
            raise  # to the server's log, as the application does
        await response(scope, receive, send)

    def _answer(self, name: str, poll: Poll, scope: Scope) -> Response:
        if not self.gatekeeper.reading_is_open:
            self.gatekeeper.check(Request(scope), Access.READ)
        known = ", ".join([value.decode("latin-1") for name, value in scope["headers"] if name == b"if-none-match"])
        return self.polls.immediate(name, poll, known)


def _refusal(error: Exception) -> Response:
    response = problem_of(error).response()
    response.raw_headers = with_defaults(response.raw_headers)
    return response


def plain_request(scope: Scope) -> tuple[str, Poll] | None:
    """Backend and poll, if it can be answered here."""
    if scope["type"] != "http" or scope["method"] != "GET" or scope.get("root_path"):
        return None
    path: str = scope["path"]
    if not (path.startswith(BEFORE) and path.endswith(AFTER)):
        return None
    name = path[len(BEFORE) : -len(AFTER)]
    poll = plain_poll(scope["query_string"]) if name and "/" not in name else None
    return None if poll is None else (name, poll)
