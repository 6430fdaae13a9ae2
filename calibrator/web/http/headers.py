"""Response headers that protect browsers, on every answer: those of the router, of crashes and of gateways' routes too.

An answer may bring its own value of any of them, and then that one holds. The default policy lets a browser do nothing
at all with what it got: JSON, metrics and problem documents are for programs. A page brings `PAGE_POLICY`, which allows
scripts and styles from this service's own files and none that stand in the text, so that a name or a reason from
elsewhere that slipped through the escaping would still not run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
PAGE_HEADERS = {"Content-Security-Policy": PAGE_POLICY}
DEFAULTS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",  # for browsers that do not know frame-ancestors
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_RAW = tuple((name.lower().encode(), value.encode()) for name, value in DEFAULTS.items())
_NAMES = frozenset(name for name, _ in _RAW)


def style_hash(style: str) -> str:
    """The source expression that allows exactly this text of a style element."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'"


def self_contained_policy(style: str) -> str:
    """For a document that carries its style and no script, so that it can be saved and sent.

    It fits a meta element too, where frame-ancestors is not allowed.
    """
    return f"default-src 'none'; style-src {style_hash(style)}; base-uri 'none'; form-action 'none'"


RawHeaders = Iterable[tuple[bytes, bytes]]


def with_defaults(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    """Those, and what is missing."""
    given = list(headers)
    present = {name for name, _ in given if name in _NAMES}
    return [*given, *(pair for pair in _RAW if pair[0] not in present)]


class SafeHeaders:
    """ASGI middleware that adds what is missing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_safely(message: Message) -> None:
            # A 304 tells only what changes in what the client has already (RFC 9110 section 15.4.5).
            if message["type"] == "http.response.start" and message["status"] != HTTPStatus.NOT_MODIFIED:
                message["headers"] = with_defaults(message["headers"])
            await send(message)

        await self._app(scope, receive, send_safely)
