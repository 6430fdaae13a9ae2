"""Errors as RFC 9457 problem documents: every response of 400 and above, including those of the router.

`title` is the phrase of the status, `detail` one sentence with cause and remedy. Extension members are for programs:
`backends` (the configured names) and `errors` (what is wrong, by parameter). `type` is absent, which RFC 9457 defines
as `about:blank`: clients dispatch on the status alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from calibrator.errors import StoreError

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):  # noqa: N818 - RFC 9457 calls it a problem
    """Raised by a handler to respond with a problem document."""

    def __init__(
        self, status: HTTPStatus, detail: str, *, headers: Mapping[str, str] | None = None, **members: object
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = members

    def response(self) -> Response:
        document = {"title": self.status.phrase, "status": int(self.status), "detail": self.detail, **self.members}
        return Response(json.dumps(document), self.status, headers=self.headers, media_type=MEDIA_TYPE)


def invalid(error: ValidationError, what: str) -> Problem:
    """The errors that pydantic found, without echoing the input."""
    errors = [
        {"parameter": ".".join(str(part) for part in found["loc"]), "detail": found["msg"]}
        for found in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    named = "; ".join(f"{found['parameter'] or 'body'}: {found['detail']}" for found in errors)
    return Problem(HTTPStatus.BAD_REQUEST, f"Invalid {what}: {named}.", errors=errors)


async def on_problem(_request: Request, error: Exception) -> Response:
    return problem_of(error).response()


async def on_http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return of_http_exception(request, error).response()


def of_http_exception(request: Request, error: HTTPException) -> Problem:
    """Errors of the router (404, 405) and of gateways' own routes."""
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
    details = {
        404: "No such path; /openapi.json lists all of them.",
        405: f"{request.method} is not allowed here; allowed: {headers.get('Allow', 'nothing')}.",
    }
    status = HTTPStatus(error.status_code)
    detail = details.get(status, error.detail) if error.detail == status.phrase else error.detail
    return Problem(status, detail, headers=headers)


async def on_store_error(_request: Request, error: Exception) -> Response:
    return problem_of(error).response()


async def on_disconnect(_request: Request, _error: Exception) -> Response:
    """The client disconnected during its own request: no defect to log, and nobody reads the response."""
    return Problem(HTTPStatus.BAD_REQUEST, "The client disconnected before the end of the request body.").response()


async def on_crash(_request: Request, error: Exception) -> Response:
    """The server logs the traceback; the client learns nothing of it."""
    return problem_of(error).response()


def problem_of(error: Exception) -> Problem:
    """A Problem unchanged, a failure of the store as 503, anything else as 500."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, StoreError):
        return Problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), headers={"Retry-After": "5"})
    return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error; see the calibrator's log.")
