"""The polling contract: what a gateway gets when it asks for the cap.

| situation | answer |
|---|---|
| a cap is known, fallback and stale ones included | 200, marked by `state`; strong ETag; `Cache-Control` |
| If-None-Match names the current ETag | 304 with the same ETag |
| the same with `wait=S` | held until the ETag changes (200), S seconds passed or the service stops (304) |
| this process has not loaded its state yet | 503 with Retry-After: gateways keep their last value |

The ETag is `"<share>-<version>-<state>"`. A body is a function of these three and of the backend's name: all else in it
belongs to the version. So it is byte-stable while nothing changed, and the strong ETag keeps its promise. Going stale
is a change of `state` under an unchanged version.

`share` equals `cap`: caps are not divided among pollers in this release, so every gateway *process* that enforces one
adds to what the backend sees. `client`, `in_flight` and `rejected` are checked, for gateways set up today to be right
when caps are divided. `RateLimit-Policy` (IETF draft) repeats the share as information.

If-None-Match follows RFC 9110 section 13.1.2: a list, or `*`; weak comparison; a field that does not parse matches
nothing, which costs one body and is always right.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus

from starlette.responses import Response

from calibrator.core.render import number, timestamp
from calibrator.core.snapshot import BackendView
from calibrator.ports import Clock
from calibrator.web.models import CapDocument, TokensPerMinute

POLL_S = 5  # how often a gateway should ask; what caches may reuse
STALE_IF_ERROR_S = 86_400  # for caches in between; clients go by valid_until
WATCH_S = 0.2  # how soon a long poll sees a change, and a shutdown

_ENTITY_TAG = r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*+")'
# Possessive quantifiers: without them a long run of blanks costs quadratic time.
_LIST = re.compile(rf"[\s,]*+{_ENTITY_TAG}\s*+(?:,[\s,]*+{_ENTITY_TAG}\s*+)*+[\s,]*+")


def cap_document(view: BackendView, now: float) -> CapDocument:
    published = view.recommendation
    rates = published.rates
    rps = None if rates is None else number(rates.requests_per_second)
    prompt = None if rates is None else number(rates.prompt_tokens_per_minute)
    output = None if rates is None else number(rates.output_tokens_per_minute)
    return CapDocument(
        backend=view.name,
        cap=published.cap,
        replica_cap=published.replica_cap,
        share=published.cap,
        max_queue_wait_s=number(published.max_queue_wait_s),
        requests_per_second=rps or None,  # a rate limit of 0 would block all
        tokens_per_minute=TokensPerMinute(prompt=prompt, output=output) if prompt and output else None,
        state=view.state_at(now),
        grade=published.grade,
        version=published.version,
        measured_at=timestamp(published.measured_at),
        valid_until=timestamp(published.valid_until),
    )


def entity_tag(view: BackendView, now: float) -> str:
    published = view.recommendation
    return f'"{published.cap}-{published.version}-{view.state_at(now)}"'


def matches(if_none_match: str, etag: str) -> bool:
    """Whether the client's representation is the current one."""
    if if_none_match.strip() == "*":
        return True
    return _LIST.fullmatch(if_none_match) is not None and etag in re.findall(_ENTITY_TAG, if_none_match)


def cap_response(view: BackendView, now: float, if_none_match: str) -> Response:
    etag = entity_tag(view, now)
    headers = {
        "ETag": etag,
        "Cache-Control": f"max-age={POLL_S}, stale-if-error={STALE_IF_ERROR_S}",
        "RateLimit-Policy": f'"llm";q={view.recommendation.cap};qu="concurrent-requests"',
        "X-Content-Type-Options": "nosniff",
    }
    if matches(if_none_match, etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(cap_document(view, now).model_dump_json(), headers=headers, media_type="application/json")


async def hold(is_unchanged: Callable[[], bool], clock: Clock, wait_s: float, is_stopping: Callable[[], bool]) -> None:
    """Return when something changed, `wait_s` passed or the service stops."""
    deadline_s = clock.monotonic() + wait_s
    while is_unchanged() and not is_stopping() and (left_s := deadline_s - clock.monotonic()) > 0.0:
        await clock.sleep(min(WATCH_S, left_s))
