"""Sessions of people at a browser: a signed cookie instead of the token, which a browser should not keep.

    value = expiry "." nonce "." HMAC-SHA256(token, "calibrator session" expiry nonce)

Nothing is stored, so that every instance knows every session; whoever has no token cannot make one; and a session ends
with the token that it was made from, as soon as that is rotated, or after `SESSION_S`.

The cookie is HttpOnly and SameSite=Strict; over TLS it is Secure too, under the `__Host-` name that no other host or
plain connection can set. A browser adds cookies by itself, so whatever writes must show that the request comes from a
page of ours (`is_same_origin`): SameSite alone would let other ports and subdomains of the same site pass.
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
_MOST_DIGITS = 12  # of an expiry; whatever is longer is not ours


@dataclass(frozen=True, slots=True)
class Sessions:
    clock: Clock

    def token_of(self, request: Request, tokens: Sequence[str]) -> str | None:
        """The one of `tokens` that this request's session was made from; None: no session, or none in force."""
        expiry, nonce, mac = ([*request.cookies.get(_name(request), "").split("."), "", ""])[:3]
        if not (expiry.isascii() and expiry.isdigit() and len(expiry) <= _MOST_DIGITS):
            return None
        if int(expiry) <= self.clock.wall() or not mac.isascii():
            return None
        fitting = [token for token in tokens if token and hmac.compare_digest(_mac(token, expiry, nonce), mac)]
        return fitting[0] if fitting else None

    def begin(self, request: Request, response: Response, token: str) -> float:
        """Returns when it ends."""
        expiry, nonce = str(int(self.clock.wall() + SESSION_S)), secrets.token_hex(8)
        _set(request, response, f"{expiry}.{nonce}.{_mac(token, expiry, nonce)}", int(SESSION_S))
        return float(expiry)

    def end(self, request: Request, response: Response) -> None:
        _set(request, response, "", 0)


def is_same_origin(request: Request) -> bool:
    """Whether a page of this very origin made the request, by what the browser says and no script can change."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin, host = request.headers.get("origin"), request.headers.get("host")
    try:
        return bool(origin) and bool(host) and urlsplit(origin).netloc == host
    except ValueError:
        return False


def is_foreign(request: Request) -> bool:
    """Whether a browser says that another site's page made the request; programs say nothing."""
    speaks = "origin" in request.headers or "sec-fetch-site" in request.headers
    return speaks and not is_same_origin(request)


def _mac(token: str, expiry: str, nonce: str) -> str:
    return hmac.new(token.encode(), f"calibrator session {expiry} {nonce}".encode(), hashlib.sha256).hexdigest()


def _name(request: Request) -> str:
    return "__Host-calibrator" if request.url.scheme == "https" else "calibrator"


def _set(request: Request, response: Response, value: str, max_age_s: int) -> None:
    secure = request.url.scheme == "https"
    response.set_cookie(_name(request), value, max_age=max_age_s, httponly=True, secure=secure, samesite="strict")
