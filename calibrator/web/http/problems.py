"""Errors as RFC 9457 problem documents: every answer of 400 and above, those of the router included.

`title` is the status's phrase and `detail` one sentence of cause and remedy; members of its own help a program, such
as `backends` (the names that do exist) and `errors` (which parameter, what is wrong). `type` is left out, which RFC
9457 defines as `about:blank`: the status says all there is to dispatch on.
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
    """Raised by a handler to answer with a problem document."""

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
    """What pydantic found, without echoing what was sent."""
    errors = [
        {"parameter": ".".join(str(part) for part in found["loc"]), "detail": found["msg"]}
        for found in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    named = "; ".join(f"{found['parameter'] or 'body'}: {found['detail']}" for found in errors)
    return Problem(HTTPStatus.BAD_REQUEST, f"The {what} is not valid: {named}.", errors=errors)


async def on_problem(_request: Request, error: Exception) -> Response:
    return problem_of(error).response()


async def on_http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return of_http_exception(request, error).response()


def of_http_exception(request: Request, error: HTTPException) -> Problem:
    """What the router raises, no such path, no such method; and what a gateway's own route refuses, in its words."""
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
    details = {
        404: "There is nothing at this path; /openapi.json lists what there is.",
        405: f"{request.method} is not possible here; possible is {headers.get('Allow', 'nothing')}.",
    }
    status = HTTPStatus(error.status_code)
    detail = details.get(status, error.detail) if error.detail == status.phrase else error.detail
    return Problem(status, detail, headers=headers)


async def on_store_error(_request: Request, error: Exception) -> Response:
    return problem_of(error).response()


async def on_disconnect(_request: Request, _error: Exception) -> Response:
    """The client left in the middle of its own request; nobody reads this, and it is no defect to log."""
    return Problem(HTTPStatus.BAD_REQUEST, "The request ended before its body did.").response()


async def on_crash(_request: Request, error: Exception) -> Response:
    """The server logs the traceback; the client learns nothing of it."""
    return problem_of(error).response()


def problem_of(error: Exception) -> Problem:
    """A problem as it is, a failure of the store as 503, and everything else as a defect of ours."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, StoreError):
        return Problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), headers={"Retry-After": "5"})
    return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error; see the calibrator's log.")
