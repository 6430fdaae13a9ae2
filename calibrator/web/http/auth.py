"""Access control: bearer tokens (RFC 6750), compared in constant time with all configured ones, or sessions.

| path | no read token configured | read tokens configured |
|---|---|---|
| `GET /v1/*` | open | read or operator token |
| pages | open | the same tokens, also as the password of HTTP Basic: `curl -u` |
| writes, `GET /v1/audit` | operator token, bearer or session | the same |
| `/v1/session` | open | open |
| `/livez`, `/readyz`, `/metrics`, `/openapi.json`, `/static` | open | open |

A session (web.http.sessions) has the access of its token, except that writes must come from our own pages: browsers
send cookies with requests that other sites make. A bearer token takes precedence over a session.

Tokens are read at each request, so that a rotated file takes effect without a restart. An empty token is ignored: an
empty file must not accept an empty password.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus

from starlette.requests import Request

from calibrator.web.http.problems import Problem
from calibrator.web.http.sessions import Sessions, is_same_origin

Tokens = Callable[[], Sequence[str]]
SAFE_METHODS = ("GET", "HEAD")


class Access(Enum):
    """What an operation requires."""

    OPEN = "open"
    READ = "read"
    PAGE = "page"  # READ, also with HTTP Basic
    OPERATE = "operate"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request. `access`: what the credentials allow; OPEN without valid ones."""

    access: Access = Access.OPEN
    fingerprint: str = ""  # of the token; "" without
    has_session: bool = False
    has_presented: bool = False  # any credentials, valid or not


NOBODY = Caller()


@dataclass(frozen=True, slots=True)
class Gatekeeper:
    operator_tokens: Tokens
    read_tokens: Tokens
    sessions: Sessions

    @property
    def reading_is_open(self) -> bool:
        return not any(self.read_tokens())

    def caller(self, request: Request, *, basic: bool = False) -> Caller:
        """Never raises."""
        operators, readers = self.operator_tokens(), self.read_tokens()
        presented = _presented(request, basic=basic)
        if presented:
            for access, tokens in ((Access.OPERATE, operators), (Access.READ, readers)):
                if token := _match(presented, tokens):
                    return Caller(access, fingerprint(token), has_presented=True)
            return Caller(has_presented=True)
        token = self.sessions.token_of(request, (*operators, *readers))
        if token is None:
            return NOBODY
        return Caller(Access.OPERATE if token in operators else Access.READ, fingerprint(token), has_session=True)

    def sign_in(self, token: str) -> Caller:
        """The caller that presents this token."""
        for access, tokens in ((Access.OPERATE, self.operator_tokens()), (Access.READ, self.read_tokens())):
            if match := _match(token.encode(), tokens):
                return Caller(access, fingerprint(match), has_presented=True)
        return Caller(has_presented=True)

    def may_read(self, request: Request) -> bool:
        """Whether a request that was allowed when it began still is."""
        return self.reading_is_open or self.caller(request).access is not Access.OPEN

    def check(self, request: Request, access: Access) -> None:
        """Raises Problem 401 without valid credentials, 403 if they do not suffice."""
        if access is Access.OPEN or (access is not Access.OPERATE and self.reading_is_open):
            return
        caller = self.caller(request, basic=access is Access.PAGE)
        if caller.access is Access.OPEN:
            raise _unauthorized(access, caller)
        if caller.access is Access.READ and access is Access.OPERATE:
            raise Problem(
                HTTPStatus.FORBIDDEN,
                "This token is read-only; use an operator token.",
                headers={"WWW-Authenticate": 'Bearer realm="calibrator", error="insufficient_scope"'},
            )
        if caller.has_session and request.method not in SAFE_METHODS and not is_same_origin(request):
            raise Problem(
                HTTPStatus.FORBIDDEN,
                "A session may only change something from this service's own pages; elsewhere send the token as "
                "'Authorization: Bearer ...'.",
            )


def fingerprint(token: str) -> str:
    """Identifies a token in logs without revealing it."""
    return hashlib.sha256(token.encode()).hexdigest()[:8]


def _unauthorized(access: Access, caller: Caller) -> Problem:
    challenge = "Basic" if access is Access.PAGE else "Bearer"
    failed = ', error="invalid_token"' if caller.has_presented and challenge == "Bearer" else ""
    required = "an operator token" if access is Access.OPERATE else "a read token"
    return Problem(
        HTTPStatus.UNAUTHORIZED,
        f"Send {required} as 'Authorization: Bearer ...'.",
        headers={"WWW-Authenticate": f'{challenge} realm="calibrator"{failed}'},
    )


def _presented(request: Request, *, basic: bool) -> bytes:
    """The token of the request, b"" if there is none. Header values are latin-1 by the ASGI specification."""
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip().encode("latin-1")
    if scheme.lower() == "basic" and basic:
        try:
            return base64.b64decode(credentials.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


def _match(presented: bytes, tokens: Sequence[str]) -> str | None:
    """Compares every token, in time that depends neither on a match nor on where they differ."""
    matching = [token for token in tokens if token and hmac.compare_digest(presented, token.encode())]
    return matching[0] if presented and matching else None
