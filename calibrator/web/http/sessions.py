"""Browser sessions: a signed cookie instead of the token, which a browser should not keep.

    value = expiry "." nonce "." HMAC-SHA256(token, "calibrator session" expiry nonce)

Nothing is stored, so every instance accepts every session. A session cannot be forged without a token, and it ends
when the token that signed it is rotated, or after `SESSION_S`.

The cookie is HttpOnly and SameSite=Strict; over TLS it is also Secure, under a `__Host-` name that no other host or
plain connection can set. Browsers add cookies by themselves, so writes must also prove to come from our own pages
(`is_same_origin`): SameSite alone would admit other ports and subdomains of the same site.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from calibrator.ports.clock import Clock

SESSION_S = 12 * 3600.0
_MOST_DIGITS = 12  # of an expiry


@dataclass(frozen=True, slots=True)
class Sessions:
    clock: Clock

    def token_of(self, request: Request, tokens: Sequence[str]) -> str | None:
        """The one of `tokens` that this request's session was made from; None: no valid session."""
        expiry, nonce, mac = ([*request.cookies.get(_name(request), "").split("."), "", ""])[:3]
        if not (expiry.isascii() and expiry.isdigit() and len(expiry) <= _MOST_DIGITS):
            return None
        if int(expiry) <= self.clock.wall() or not mac.isascii():
            return None
        matching = [token for token in tokens if token and hmac.compare_digest(_mac(token, expiry, nonce), mac)]
        return matching[0] if matching else None

    def begin(self, request: Request, response: Response, token: str) -> float:
        """Returns when it ends."""
        expiry, nonce = str(int(self.clock.wall() + SESSION_S)), secrets.token_hex(8)
        _set(request, response, f"{expiry}.{nonce}.{_mac(token, expiry, nonce)}", int(SESSION_S))
        return float(expiry)

    def end(self, request: Request, response: Response) -> None:
        _set(request, response, "", 0)


def is_same_origin(request: Request) -> bool:
    """Whether a page of this origin made the request, by headers that browsers set and scripts cannot change."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin, host = request.headers.get("origin"), request.headers.get("host")
    try:
        return bool(origin) and bool(host) and urlsplit(origin).netloc == host
    except ValueError:
        return False


def is_foreign(request: Request) -> bool:
    """Whether a browser made the request from another site's page; programs send neither header."""
    is_browser = "origin" in request.headers or "sec-fetch-site" in request.headers
    return is_browser and not is_same_origin(request)


def _mac(token: str, expiry: str, nonce: str) -> str:
    return hmac.new(token.encode(), f"calibrator session {expiry} {nonce}".encode(), hashlib.sha256).hexdigest()


def _name(request: Request) -> str:
    return "__Host-calibrator" if request.url.scheme == "https" else "calibrator"


def _set(request: Request, response: Response, value: str, max_age_s: int) -> None:
    secure = request.url.scheme == "https"
    response.set_cookie(_name(request), value, max_age=max_age_s, httponly=True, secure=secure, samesite="strict")
