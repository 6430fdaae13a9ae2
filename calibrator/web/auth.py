"""Who may ask: bearer tokens (RFC 6750), compared in constant time with every configured one.

| path | no read token configured | read tokens configured |
|---|---|---|
| `GET /v1/*` | open | read or operator token |
| `/` (for people) | open | the same tokens, also as the password of HTTP Basic: browsers cannot send a bearer |
| writes | operator token, bearer only | the same |
| `/livez`, `/readyz`, `/metrics`, `/openapi.json`, `/static` | open | open |

Tokens are asked for at each request, so that a rotated file works without a restart. An empty token is no token: an
empty file must not open the door to an empty password.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus

from starlette.requests import Request

from calibrator.web.problems import Problem

Tokens = Callable[[], Sequence[str]]


class Access(Enum):
    """What an operation asks for."""

    OPEN = "open"
    READ = "read"
    PAGE = "page"  # READ, with HTTP Basic as the second way in
    OPERATE = "operate"


@dataclass(frozen=True, slots=True)
class Gatekeeper:
    operator_tokens: Tokens
    read_tokens: Tokens

    def check(self, request: Request, access: Access) -> None:
        """Raises Problem 401 without valid credentials, 403 where they do not suffice."""
        if access is Access.OPEN or (access is not Access.OPERATE and not any(self.read_tokens())):
            return
        presented = _presented(request, basic=access is Access.PAGE)
        is_operator = _matches(presented, self.operator_tokens())
        is_reader = _matches(presented, self.read_tokens())
        if is_operator or (is_reader and access is not Access.OPERATE):
            return
        if is_reader:
            raise Problem(
                HTTPStatus.FORBIDDEN,
                "This token may read only; use an operator token.",
                headers={"WWW-Authenticate": 'Bearer realm="calibrator", error="insufficient_scope"'},
            )
        challenge = "Basic" if access is Access.PAGE else "Bearer"
        failed = ', error="invalid_token"' if presented and challenge == "Bearer" else ""
        wanted = "an operator token" if access is Access.OPERATE else "a read token"
        raise Problem(
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


def _matches(presented: bytes, tokens: Sequence[str]) -> bool:
    # A sum, not `any`: every token is compared, whichever matches.
    return bool(presented) and sum(hmac.compare_digest(presented, token.encode()) for token in tokens if token) > 0
