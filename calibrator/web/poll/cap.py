"""The polling contract: what a gateway gets when it asks for the cap.

| situation | answer |
|---|---|
| a cap is known, fallback and stale ones included | 200, marked by `state`; strong ETag; `Cache-Control` |
| If-None-Match names the current ETag | 304 with the same ETag |
| the same with `wait=S` | held until share, cap, version or state change (200), S seconds passed or we stop (304) |
| a joiner, and the others still hold the whole cap | 503 with Retry-After; with `wait=S` held until it has a share |
| this process has not loaded its state yet | 503 with Retry-After: gateways keep their last value |

The ETag is `"<share>-<cap>-<version>-<state>.<clients>"`. A body is a function of these and of the backend's name: all
else in it belongs to the version, or, in the state `overridden`, to the end of the override, which then stands in the
ETag too. So it is byte-stable while nothing changed, and the strong ETag keeps its promise; and made bodies are kept.
Going stale is a change of `state` under an unchanged version. Clients that come or go do not end a long poll, or each
of a fleet that starts would wake all the others: what stands before the dot decides, the next answer tells the rest.

`client` makes a sharer of who asks (core.sharing.allocator). Without it the whole cap is answered and nothing is taken
from anybody: that is for people and monitoring, or for the only gateway there is; whoever enforces it beside sharers
adds to what the backend sees. `RateLimit-Policy` (IETF draft) repeats the share as information.

If-None-Match follows RFC 9110 section 13.1.2: a list, or `*`; weak comparison; a field that does not parse matches
nothing, which costs one body and is always right.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from calibrator.core.publish.snapshot import BackendView, State
from calibrator.ports.clock import Clock
from calibrator.ports.operator import Operator
from calibrator.ports.sharing import Poll, Share
from calibrator.web.http.headers import with_defaults
from calibrator.web.http.problems import Problem
from calibrator.web.http.requests import Views, parsed_query
from calibrator.web.wire.backends import CapDocument, CapQuery
from calibrator.web.wire.base import projected

POLL_S = 5  # how often a gateway should ask; what caches may reuse
STALE_IF_ERROR_S = 86_400  # for caches in between; clients go by valid_until
LOOK_S = 5.0  # a long poll looks whether its client is still there, which also keeps the client's share
MOST_KEPT = 4096  # made answers; a few KB each

_ENTITY_TAG = r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*+")'
# Possessive quantifiers: without them a long run of blanks costs quadratic time.
_LIST = re.compile(rf"[\s,]*+{_ENTITY_TAG}\s*+(?:,[\s,]*+{_ENTITY_TAG}\s*+)*+[\s,]*+")


def matches(if_none_match: str, etag: str) -> bool:
    """Whether the client's representation is the current one."""
    if if_none_match == etag or if_none_match.strip() == "*":
        return True
    return _LIST.fullmatch(if_none_match) is not None and etag in re.findall(_ENTITY_TAG, if_none_match)


class Told(NamedTuple):
    """What one client is told at one moment."""

    view: BackendView
    share: Share
    state: State

    @property
    def stem(self) -> str:
        """The part of the ETag that ends a long poll when it changes."""
        published = self.view.advertised
        stem = f'"{self.share.requests}-{self.view.served_cap}-{published.version}-{self.state}'
        return f"{stem}-{1000.0 * (published.valid_until or 0.0):.0f}" if self.state is State.OVERRIDDEN else stem

    @property
    def etag(self) -> str:
        return f'{self.stem}.{self.share.clients}"'

    def is_known(self, if_none_match: str) -> bool:
        """Whether a long poll has nothing to hear yet."""
        return bool(if_none_match) and (f"{self.stem}." in if_none_match or matches(if_none_match, self.etag))

    def document(self, share: int) -> CapDocument:
        published = self.view.advertised
        rates = published.rates
        tokens = None if rates is None else (rates.prompt_tokens_per_minute, rates.output_tokens_per_minute)
        return projected(
            CapDocument,
            published,
            cap=self.view.served_cap,
            replica_cap=self.view.served_replica_cap,
            share=share,
            clients_seen=self.share.clients,
            # A rate limit of 0 would block all.
            requests_per_second=None if rates is None else rates.requests_per_second or None,
            tokens_per_minute={"prompt": tokens[0], "output": tokens[1]} if tokens and all(tokens) else None,
            state=self.state,
        )


class _Made(NamedTuple):
    """Responses are stateless, so one object serves everybody."""

    etag: str
    full: Response
    unchanged: Response  # 304


@dataclass(frozen=True, slots=True)
class _Ready:
    """What one view in one state comes to for each share: nearly every poll finds its answer here."""

    view: BackendView
    state: State
    by_share: dict[Share, _Made] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CapPolls:
    """Answers `GET /v1/backends/{name}/cap`, thousands of times a second."""

    operator: Operator
    clock: Clock
    views: Views
    is_stopping: Callable[[], bool]
    _ready: dict[str, _Ready] = field(default_factory=dict)  # by backend; of its newest view
    _made: dict[tuple[str, str], _Made] = field(default_factory=dict)  # by backend and ETag

    async def answer(self, request: Request) -> Response:
        name = request.path_params["name"]
        query = parsed_query(CapQuery, request)
        known = ", ".join(request.headers.getlist("if-none-match"))
        told = self._ask(name, Poll(query.client or "", query.in_flight, query.rejected))
        if query.wait > 0.0 and (told.share.requests is None or told.is_known(known)):
            told = await self._hold(request, told, Poll(query.client or "", is_waiting=True), query.wait)
        return self._answer(told, known)

    def at_once(self, name: str, poll: Poll, known: str) -> Response:
        """The same for whoever does not wait; `known` is If-None-Match. Raises Problem."""
        return self._answer(self._ask(name, poll), known)

    def _answer(self, told: Told, known: str) -> Response:
        view, share, state = told
        ready = self._ready.get(view.name)
        if ready is None or ready.view is not view or ready.state is not state:
            ready = self._ready[view.name] = _Ready(view, state)
        made = ready.by_share.get(share)
        if made is None:
            made = ready.by_share[share] = self._made_before(told)
        return made.unchanged if known and matches(known, made.etag) else made.full

    def _made_before(self, told: Told) -> _Made:
        """Views change every second, and mostly not in what gateways are told."""
        if told.share.requests is None:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "The other clients hold the whole cap until they have heard of this one; use your static cap.",
                headers={"Retry-After": str(math.ceil(told.share.retry_after_s))},
            )
        etag = told.etag
        return self._made.get((told.view.name, etag)) or self._make(told, etag, told.share.requests)

    def _ask(self, name: str, poll: Poll) -> Told:
        view = self.views.one(name)
        return Told(view, self.operator.poll(name, poll), view.advertised_state_at(self.clock.wall()))

    async def _hold(self, request: Request, told: Told, poll: Poll, wait_s: float) -> Told:
        """Until something changed, `wait_s` passed, the client went or the service stops."""
        name, stem = told.view.name, told.stem
        ends_at_s = self.clock.monotonic() + wait_s
        leaving = asyncio.create_task(_left(request))  # once: a question at each look would cost as much as the look
        try:
            while told.stem == stem and not self.is_stopping():
                left_s = ends_at_s - self.clock.monotonic()
                if left_s <= 0.0 or leaving.done():
                    break
                await self.operator.changed(name, min(left_s, LOOK_S))
                told = self._ask(name, poll)
        finally:
            leaving.cancel()
        return told

    def _make(self, told: Told, etag: str, share: int) -> _Made:
        headers = {
            "ETag": etag,
            "Cache-Control": f"max-age={POLL_S}, stale-if-error={STALE_IF_ERROR_S}",
            "RateLimit-Policy": f'"llm";q={share};qu="concurrent-requests"',
        }
        full = Response(told.document(share).model_dump_json(), headers=headers, media_type="application/json")
        full.raw_headers = with_defaults(full.raw_headers)  # the short way leads past the middleware that adds them
        made = _Made(etag, full, Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers))
        if len(self._made) >= MOST_KEPT:
            self._made.clear()
        self._made[told.view.name, etag] = made
        return made


async def _left(request: Request) -> None:
    """Until the client is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
