"""Who may ask: bearer tokens (RFC 6750), compared in constant time with every configured one, or a session made of one.

| path | no read token configured | read tokens configured |
|---|---|---|
| `GET /v1/*` | open | read or operator token |
| `/` (for people) | open | the same tokens, also as the password of HTTP Basic: `curl -u` |
| writes, `GET /v1/audit` | operator token, bearer or session | the same |
| `/v1/session` (sign in and out, who am I) | open | open |
| `/livez`, `/readyz`, `/metrics`, `/openapi.json`, `/static` | open | open |

A session (web.http.sessions) counts as its token, except that a write must come from a page of ours: browsers send
cookies with whatever another site's page asks for. A bearer wins over a session.

Tokens are asked for at each request, so that a rotated file works without a restart. An empty token is no token: an
empty file must not open the door to an empty password.
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
    """What an operation asks for."""

    OPEN = "open"
    READ = "read"
    PAGE = "page"  # READ, with HTTP Basic as the second way in
    OPERATE = "operate"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `access`: the most that the credentials allow; OPEN without any that count."""

    access: Access = Access.OPEN
    fingerprint: str = ""  # of the token; "" without
    has_session: bool = False
    has_presented: bool = False  # credentials, valid or not


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
        """As if the token had been presented."""
        for access, tokens in ((Access.OPERATE, self.operator_tokens()), (Access.READ, self.read_tokens())):
            if match := _match(token.encode(), tokens):
                return Caller(access, fingerprint(match), has_presented=True)
        return Caller(has_presented=True)

    def may_read(self, request: Request) -> bool:
        """Whether what was allowed when it began still is."""
        return self.reading_is_open or self.caller(request).access is not Access.OPEN

    def check(self, request: Request, access: Access) -> None:
        """Raises Problem 401 without valid credentials, 403 where they do not suffice."""
        if access is Access.OPEN or (access is not Access.OPERATE and self.reading_is_open):
            return
        caller = self.caller(request, basic=access is Access.PAGE)
        if caller.access is Access.OPEN:
            raise _unauthorized(access, caller)
        if caller.access is Access.READ and access is Access.OPERATE:
            raise Problem(
                HTTPStatus.FORBIDDEN,
                "This token may read only; use an operator token.",
                headers={"WWW-Authenticate": 'Bearer realm="calibrator", error="insufficient_scope"'},
            )
        if caller.has_session and request.method not in SAFE_METHODS and not is_same_origin(request):
            raise Problem(
                HTTPStatus.FORBIDDEN,
                "A session writes from this service's own page only; elsewhere send the token as "
                "'Authorization: Bearer ...'.",
            )


def fingerprint(token: str) -> str:
    """Names a token in logs without telling it."""
    return hashlib.sha256(token.encode()).hexdigest()[:8]


def _unauthorized(access: Access, caller: Caller) -> Problem:
    challenge = "Basic" if access is Access.PAGE else "Bearer"
    failed = ', error="invalid_token"' if caller.has_presented and challenge == "Bearer" else ""
    wanted = "an operator token" if access is Access.OPERATE else "a read token"
    return Problem(
        HTTPStatus.UNAUTHORIZED,
        f"Send {wanted} as 'Authorization: Bearer ...'.",
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
    """Every token is compared, whichever matches, in time that does not depend on where they differ."""
    fitting = [token for token in tokens if token and hmac.compare_digest(presented, token.encode())]
    return fitting[0] if presented and fitting else None
