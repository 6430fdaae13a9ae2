"""The polling contract: what a gateway gets when it polls the cap.

| situation | response |
|---|---|
| a cap is known, including fallback and stale ones | 200, with `state`; strong ETag; `Cache-Control` |
| If-None-Match names the current ETag | 304 with the same ETag |
| the same with `wait=S` | 200 when share, cap, version or state change; 304 after S seconds or when the service stops |
| a new client, while others still hold the whole cap | 503 with Retry-After; with `wait=S` held until it has a share |
| this process has not loaded its state yet | 503 with Retry-After: gateways keep their last value |

The ETag is `"<share>-<cap>-<version>-<state>.<clients>"`. The body is a function of these and of the
backend's name: everything else in it follows from the version, or, in state `overridden`, from the end of the override,
which is then part of the ETag too. So the body is byte-stable while nothing changes, and rendered responses are cached.
Going stale changes `state` under an unchanged version. Clients that come or go do not end a long poll, or every gateway
of a fleet that starts would wake all the others: only the part before the dot counts.

`client` makes the poller one of the clients that share the cap (core.sharing.allocator). Without it the response is the
whole cap, and no share is taken: for people and monitoring, or for a single gateway. Enforced beside clients that share
the cap, it would add to their load. `RateLimit-Policy` (IETF draft) repeats the share for information.

If-None-Match follows RFC 9110 section 13.1.2: a list, or `*`; weak comparison; a field that does not parse matches
nothing, which costs one body and is always correct.
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

POLL_S = 5  # recommended polling interval, and the lifetime in caches
STALE_IF_ERROR_S = 86_400  # for caches in between; clients use valid_until
CHECK_S = 5.0  # a long poll checks that its client is still connected, which also renews the client's share
MAX_CACHED = 4096  # rendered responses; a few KB each

_ENTITY_TAG = r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*+")'
# Possessive quantifiers: without them a long run of blanks takes quadratic time.
_LIST = re.compile(rf"[\s,]*+{_ENTITY_TAG}\s*+(?:,[\s,]*+{_ENTITY_TAG}\s*+)*+[\s,]*+")


def matches(if_none_match: str, etag: str) -> bool:
    """Whether the client's copy is current."""
    if if_none_match == etag or if_none_match.strip() == "*":
        return True
    return _LIST.fullmatch(if_none_match) is not None and etag in re.findall(_ENTITY_TAG, if_none_match)


class Offer(NamedTuple):
    """The cap and share of one client at one moment."""

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
        """Whether a long poll has nothing new to report."""
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


class _Rendered(NamedTuple):
    """Rendered once and shared: responses are stateless."""

    etag: str
    full: Response
    unchanged: Response  # 304


@dataclass(frozen=True, slots=True)
class _ViewCache:
    """Responses for one view in one state, by share: nearly every poll finds its response here."""

    view: BackendView
    state: State
    by_share: dict[Share, _Rendered] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CapPolls:
    """Serves `GET /v1/backends/{name}/cap`, thousands of times a second."""

    operator: Operator
    clock: Clock
    views: Views
    is_stopping: Callable[[], bool]
    _newest: dict[str, _ViewCache] = field(default_factory=dict)  # by backend; for its newest view
    _cache: dict[tuple[str, str], _Rendered] = field(default_factory=dict)  # by backend and ETag

    async def answer(self, request: Request) -> Response:
        name = request.path_params["name"]
        query = parsed_query(CapQuery, request)
        known = ", ".join(request.headers.getlist("if-none-match"))
        offer = self._ask(name, Poll(query.client or "", query.in_flight, query.rejected))
        if query.wait > 0.0 and (offer.share.requests is None or offer.is_known(known)):
            offer = await self._hold(request, offer, Poll(query.client or "", is_waiting=True), query.wait)
        return self._answer(offer, known)

    def immediate(self, name: str, poll: Poll, known: str) -> Response:
        """The response without waiting; `known`: If-None-Match. Raises Problem."""
        return self._answer(self._ask(name, poll), known)

    def _answer(self, offer: Offer, known: str) -> Response:
        view, share, state = offer
        cache = self._newest.get(view.name)
        if cache is None or cache.view is not view or cache.state is not state:
            cache = self._newest[view.name] = _ViewCache(view, state)
        rendered = cache.by_share.get(share)
        if rendered is None:
            rendered = cache.by_share[share] = self._rendered(offer)
        return rendered.unchanged if known and matches(known, rendered.etag) else rendered.full

    def _rendered(self, offer: Offer) -> _Rendered:
        """Views change every second, but seldom in what gateways get."""
        if offer.share.requests is None:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "Other clients hold the whole cap until their smaller shares have been delivered; use the static cap.",
                headers={"Retry-After": str(math.ceil(offer.share.retry_after_s))},
            )
        etag = offer.etag
        return self._cache.get((offer.view.name, etag)) or self._render(offer, etag, offer.share.requests)

    def _ask(self, name: str, poll: Poll) -> Offer:
        view = self.views.one(name)
        return Offer(view, self.operator.poll(name, poll), view.advertised_state_at(self.clock.wall()))

    async def _hold(self, request: Request, offer: Offer, poll: Poll, wait_s: float) -> Offer:
        """Until something changes, `wait_s` pass, the client disconnects or the service stops."""
        name, stem = offer.view.name, offer.stem
        ends_at_s = self.clock.monotonic() + wait_s
        # One task: asking at each check would cost as much as the check.
        disconnected = asyncio.create_task(_until_disconnected(request))
        try:
            while offer.stem == stem and not self.is_stopping():
                left_s = ends_at_s - self.clock.monotonic()
                if left_s <= 0.0 or disconnected.done():
                    break
                await self.operator.changed(name, min(left_s, CHECK_S))
                offer = self._ask(name, poll)
        finally:
            disconnected.cancel()
        return offer

    def _render(self, offer: Offer, etag: str, share: int) -> _Rendered:
        headers = {
            "ETag": etag,
            "Cache-Control": f"max-age={POLL_S}, stale-if-error={STALE_IF_ERROR_S}",
            "RateLimit-Policy": f'"llm";q={share};qu="concurrent-requests"',
        }
        full = Response(offer.document(share).model_dump_json(), headers=headers, media_type="application/json")
        full.raw_headers = with_defaults(full.raw_headers)  # the fast path bypasses the middleware that adds them
        rendered = _Rendered(etag, full, Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers))
        if len(self._cache) >= MAX_CACHED:
            self._cache.clear()
        self._cache[offer.view.name, etag] = rendered
        return rendered


async def _until_disconnected(request: Request) -> None:
    """Returns when the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
