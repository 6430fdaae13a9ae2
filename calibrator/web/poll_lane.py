"""The short way to the cap, for nearly every poll: thousands a second, written as gateways and `calibrator.client` do.

    GET /v1/backends/<name>/cap?client=<id>[&in_flight=<n>][&rejected=<n>]      in this order

Whatever is written otherwise, waits, or is wrong takes the ordinary route behind this one, and gets the same answer:
the two differ in cost alone. The ordinary way costs more than the whole answer: a regular expression for the path, a
Request object, a second layer of exception handling, a query as pairs and as a validated model.

Errors (credentials, an unknown backend, a joiner that must wait) are raised, as anywhere, and answered by the
application's handlers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from starlette.requests import Request
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from calibrator.ports import Poll
from calibrator.web.auth import Access, Gatekeeper
from calibrator.web.polling import CapPolls

BEFORE, AFTER = "/v1/backends/", "/cap"
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


@dataclass(frozen=True, eq=False)
class PollLane(BaseRoute):
    polls: CapPolls
    gatekeeper: Gatekeeper

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http" and scope["method"] == "GET":
            path: str = scope["path"]
            if path.startswith(BEFORE) and path.endswith(AFTER) and not scope.get("root_path"):
                name = path[len(BEFORE) : -len(AFTER)]
                poll = plain_poll(scope["query_string"])
                if poll is not None and name and "/" not in name:
                    return Match.FULL, {"calibrator.poll": (name, poll)}
        return Match.NONE, {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.gatekeeper.reading_is_open:
            self.gatekeeper.check(Request(scope), Access.READ)
        known = ", ".join([value.decode("latin-1") for name, value in scope["headers"] if name == b"if-none-match"])
        name, poll = scope["calibrator.poll"]
        await self.polls.at_once(name, poll, known)(scope, receive, send)
