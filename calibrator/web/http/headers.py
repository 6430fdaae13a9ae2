"""Security headers on every response, including errors of the router, crashes and gateways' routes.

A response may set its own value for any of them. The default policy forbids browsers everything: JSON, metrics and
problem documents are for programs. Pages set `PAGE_POLICY`, which allows scripts and styles from this service's own
files and no inline ones, so that untrusted text that slipped through the escaping would still not run.
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
    """The source expression that allows exactly this text in a style element."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'"


def self_contained_policy(style: str) -> str:
    """For a document with an inline style and no script, so that it can be saved and sent.

    Also valid in a meta element, where frame-ancestors is not allowed.
    """
    return f"default-src 'none'; style-src {style_hash(style)}; base-uri 'none'; form-action 'none'"


RawHeaders = Iterable[tuple[bytes, bytes]]


def with_defaults(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    """`headers`, and the defaults of those that are missing."""
    given = list(headers)
    present = {name for name, _ in given if name in _NAMES}
    return [*given, *(pair for pair in _RAW if pair[0] not in present)]


class SafeHeaders:
    """ASGI middleware that adds the missing headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_safely(message: Message) -> None:
            # A 304 carries only headers that update the stored response (RFC 9110 section 15.4.5).
            if message["type"] == "http.response.start" and message["status"] != HTTPStatus.NOT_MODIFIED:
                message["headers"] = with_defaults(message["headers"])
            await send(message)

        await self._app(scope, receive, send_safely)
