"""One row per method and path: the same table makes the routes and the OpenAPI document, so they cannot differ.

Whatever needs an operator and is no mere reading is audited here, on every way out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from calibrator.errors import StoreError
from calibrator.web.http.audit import AuditLog
from calibrator.web.http.auth import SAFE_METHODS, Access, Gatekeeper
from calibrator.web.http.problems import Problem

PROGRAM_PATHS = ("/v1/", "/v3/", "/metrics", "/livez", "/readyz", "/openapi.json", "/static/")

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Answer:
    """A documented answer. `model` None: the body is no JSON of ours, or there is none (`media_type` None)."""

    status: int
    description: str
    model: type[BaseModel] | None = None
    media_type: str | None = "application/json"
    other_types: tuple[str, ...] = ()  # that the same answer may have instead
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """`problems`: the error statuses that this operation may answer, besides those of `access`."""

    method: str
    path: str
    operation_id: str
    summary: str
    handler: Handler
    answers: tuple[Answer, ...]
    access: Access = Access.OPEN
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    form: type[BaseModel] | None = None  # of a page, urlencoded
    request_headers: tuple[tuple[str, str], ...] = ()  # (name, what it does)
    problems: tuple[int, ...] = ()

    @property
    def is_for_people(self) -> bool:
        """A browser is then answered with a page, errors included."""
        return not self.path.startswith(PROGRAM_PATHS)


def routes(operations: Sequence[Operation], gatekeeper: Gatekeeper, trail: AuditLog) -> list[Route]:
    """One route a path, so that 405 names every method there is; credentials are checked before anything else."""
    paths = dict.fromkeys(operation.path for operation in operations)
    return [_route(path, [row for row in operations if row.path == path], gatekeeper, trail) for path in paths]


def _route(path: str, operations: Sequence[Operation], gatekeeper: Gatekeeper, trail: AuditLog) -> Route:
    by_method = {operation.method: operation for operation in operations}

    async def answer(request: Request, operation: Operation) -> Response:
        gatekeeper.check(request, operation.access)
        return await operation.handler(request)

    async def audited(request: Request, operation: Operation) -> Response:
        status, detail = int(HTTPStatus.INTERNAL_SERVER_ERROR), "the handler failed"
        try:
            response = await answer(request, operation)
            status, detail = response.status_code, ""
        except Problem as problem:
            status, detail = int(problem.status), problem.detail
            raise
        except StoreError as error:
            status, detail = int(HTTPStatus.SERVICE_UNAVAILABLE), str(error)
            raise
        finally:
            trail.add(request, operation.operation_id, gatekeeper.caller(request), status, detail)
        return response

    async def endpoint(request: Request) -> Response:
        operation = by_method["GET" if request.method == "HEAD" else request.method]
        if operation.access is Access.OPERATE and operation.method not in SAFE_METHODS:
            return await audited(request, operation)
        return await answer(request, operation)

    return Route(path, endpoint, methods=list(by_method), name=operations[0].operation_id)


def guarded(route: Route, gatekeeper: Gatekeeper) -> Route:
    """A route that another layer made, behind a read token."""

    async def endpoint(request: Request) -> Response:
        gatekeeper.check(request, Access.READ)
        response: Response = await route.endpoint(request)
        return response

    return Route(route.path, endpoint, methods=list(route.methods or ()), name=route.name)
