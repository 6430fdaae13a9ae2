"""One row per method and path: the same table makes the routes and the OpenAPI document, so they cannot differ.

An operation that changes something is audited, however it ends. What it asks for is read here, by the model of its row,
and handed to its handler: so the audit log can name it even if the handler fails.
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
from calibrator.web.http.requests import Submission, parsed_body, parsed_query, submitted

PROGRAM_PATHS = ("/v1/", "/v3/", "/metrics", "/livez", "/readyz", "/openapi.json", "/static/")

Handler = Callable[..., Awaitable[Response]]  # (request); of a change: (request, what its row's model read)


@dataclass(frozen=True, slots=True)
class ResponseSpec:
    """A documented response. `model` None: the body is not one of our documents, or absent (`media_type` None)."""

    status: int
    description: str
    model: type[BaseModel] | None = None
    media_type: str | None = "application/json"
    other_types: tuple[str, ...] = ()  # that the same answer may have instead
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """`problems`: the error statuses that this operation may return, besides those that follow from `access`."""

    method: str
    path: str
    operation_id: str
    summary: str
    handler: Handler
    answers: tuple[ResponseSpec, ...]
    access: Access = Access.OPEN
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    form: type[BaseModel] | None = None  # of a page, urlencoded
    request_headers: tuple[tuple[str, str], ...] = ()  # (name, what it does)
    problems: tuple[int, ...] = ()

    @property
    def is_change(self) -> bool:
        return self.access is Access.OPERATE and self.method not in SAFE_METHODS

    async def read(self, request: Request) -> BaseModel | Submission | None:
        """What the request asks for, by this row's models. Raises Problem 400 or 413."""
        if self.form is not None:
            return await submitted(self.form, request)
        if self.body is not None:
            return await parsed_body(self.body, request)
        return None if self.query is None else parsed_query(self.query, request)

    @property
    def is_for_people(self) -> bool:
        """Browsers get pages from it, also for errors."""
        return not self.path.startswith(PROGRAM_PATHS)


def routes(operations: Sequence[Operation], gatekeeper: Gatekeeper, audit_log: AuditLog) -> list[Route]:
    """One route a path, so that 405 names every method there is; credentials are checked before anything else."""
    paths = dict.fromkeys(operation.path for operation in operations)
    return [_route(path, [row for row in operations if row.path == path], gatekeeper, audit_log) for path in paths]


def _route(path: str, operations: Sequence[Operation], gatekeeper: Gatekeeper, audit_log: AuditLog) -> Route:
    by_method = {operation.method: operation for operation in operations}

    async def audited(request: Request, operation: Operation) -> Response:
        status, detail = int(HTTPStatus.INTERNAL_SERVER_ERROR), "the handler failed"
        summary: dict[str, object] = {}
        try:
            gatekeeper.check(request, operation.access)
            asked = await operation.read(request)
            summary = _summary(asked)
            response = await operation.handler(request, asked)
            status, detail = response.status_code, ""
        except Problem as problem:
            status, detail = int(problem.status), problem.detail
            raise
        except StoreError as error:
            status, detail = int(HTTPStatus.SERVICE_UNAVAILABLE), str(error)
            raise
        finally:
            caller = gatekeeper.caller(request)
            audit_log.add(request, operation.operation_id, caller, status, detail=detail, request_summary=summary)
        return response

    async def endpoint(request: Request) -> Response:
        operation = by_method["GET" if request.method == "HEAD" else request.method]
        if operation.is_change:
            return await audited(request, operation)
        gatekeeper.check(request, operation.access)
        return await operation.handler(request)

    return Route(path, endpoint, methods=list(by_method), name=operations[0].operation_id)


def _summary(asked: BaseModel | Submission | None) -> dict[str, object]:
    """Secrets in a model must be of a type that hides them."""
    valid = asked.form if isinstance(asked, Submission) else asked
    return {} if valid is None else valid.model_dump(mode="json", exclude_none=True)


def guarded(route: Route, gatekeeper: Gatekeeper) -> Route:
    """A route of another layer, behind a read token."""

    async def endpoint(request: Request) -> Response:
        gatekeeper.check(request, Access.READ)
        response: Response = await route.endpoint(request)
        return response

    return Route(route.path, endpoint, methods=list(route.methods or ()), name=route.name)
