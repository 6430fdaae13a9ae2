"""The ASGI application: projections of `operator.snapshot()` over HTTP (DESIGN section 6).

Wiring passes in the operator, the clock, the tokens and the lifespan. Whether write routes exist is decided here, once:
without an operator token at startup there are none, even if one is configured later. Tokens themselves are read again
at each request.

Long polls and event streams would delay the server's shutdown. Wiring's signal handler makes `is_stopping` true before
it stops the server; then every waiting poll is answered at once, and every stream ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from calibrator.errors import StoreError
from calibrator.ports.clock import Clock
from calibrator.ports.operator import Operator
from calibrator.web.api.backends import BackendsApi
from calibrator.web.api.events import EventStreams
from calibrator.web.api.history import HistoryApi
from calibrator.web.api.override import OverrideApi
from calibrator.web.api.samples import SamplesApi
from calibrator.web.api.session import SessionApi
from calibrator.web.http import problems
from calibrator.web.http.audit import AuditLog
from calibrator.web.http.auth import Gatekeeper, Tokens
from calibrator.web.http.headers import SafeHeaders
from calibrator.web.http.openapi import Json, openapi_document
from calibrator.web.http.operation import PROGRAM_PATHS, Operation, ResponseSpec, guarded, routes
from calibrator.web.http.requests import RETRY_AFTER_S, Views
from calibrator.web.http.sessions import Sessions
from calibrator.web.pages.assets import Assets
from calibrator.web.pages.forms import Forms
from calibrator.web.pages.page import Pages
from calibrator.web.poll.cap import CapPolls
from calibrator.web.poll.fast_path import FastPath
from calibrator.web.prometheus.metrics import MetricsPage

ErrorHandler = Callable[[Request, Exception], Awaitable[Response]]
Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def create_app(
    operator: Operator,
    *,
    clock: Clock,
    operator_tokens: Tokens,
    read_tokens: Tokens,
    software_version: str,
    lifespan: Lifespan | None = None,
    is_stopping: Callable[[], bool] = lambda: False,
    extra_routes: Sequence[Route] = (),
) -> Starlette:
    """`extra_routes`: gateways' own protocols; they require a read token like any other read."""
    site = _Site(operator, MetricsPage(operator.snapshot, clock, software_version))
    views = Views(operator)
    polls = CapPolls(operator, clock, views, is_stopping)
    api = BackendsApi(operator, clock, views, polls, OverrideApi(operator, clock, views))
    gatekeeper = Gatekeeper(operator_tokens, read_tokens, Sessions(clock))
    audit_log, writable = AuditLog(clock), any(operator_tokens())
    pages = Pages(operator, clock, views, gatekeeper, software_version, writable)
    forms = Forms(pages, audit_log)
    operations = [
        *api.operations(writable=writable),
        *HistoryApi(operator, views).operations(writable=writable),
        SamplesApi(operator, views).operation(),
        EventStreams(clock, views, is_stopping, gatekeeper.may_read).operation(),
        *SessionApi(gatekeeper, audit_log).operations(writable=writable),
        *site.operations(),
        *pages.operations(),
        *forms.operations(writable=writable),
        Assets().operation(),
    ]
    operations.append(_describe(operations, software_version))
    app = _Guarded(
        polls,
        gatekeeper,
        routes=[
            *routes(operations, gatekeeper, audit_log),
            *(guarded(route, gatekeeper) for route in extra_routes),
        ],
        lifespan=lifespan,
        exception_handlers={
            problems.Problem: _as_page(problems.on_problem, forms),
            HTTPException: _as_page(problems.on_http_exception, forms),
            StoreError: problems.on_store_error,
            ClientDisconnect: problems.on_disconnect,
            Exception: problems.on_crash,
        },
    )
    app.router.redirect_slashes = False  # a redirect would be built from the Host header
    return app


class _Guarded(Starlette):
    """Starlette with security headers on every response, including crashes, and a fast path for polls."""

    def __init__(self, polls: CapPolls, gatekeeper: Gatekeeper, **named: Any) -> None:
        super().__init__(**named)
        self._polls = polls
        self._gatekeeper = gatekeeper

    def build_middleware_stack(self) -> ASGIApp:
        return FastPath(SafeHeaders(super().build_middleware_stack()), self._polls, self._gatekeeper)


@dataclass(frozen=True, slots=True)
class _Site:
    """Metrics and health checks."""

    operator: Operator
    measured: MetricsPage

    async def metrics(self, request: Request) -> Response:
        return self.measured.response(request)

    async def live(self, _request: Request) -> Response:
        """This process responds. Nothing else may cause a restart."""
        return PlainTextResponse("ok\n")

    async def ready(self, _request: Request) -> Response:
        """This process has loaded its state. Does not depend on backends: the cap matters most when they fail."""
        if not self.operator.snapshot().ready:
            raise problems.Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "The service has not loaded its state yet.",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        return PlainTextResponse("ok\n")

    def operations(self) -> tuple[Operation, ...]:
        def text(description: str) -> tuple[ResponseSpec, ...]:
            return (ResponseSpec(200, description, media_type="text/plain"),)

        return (
            Operation("GET", "/metrics", "getMetrics", "Prometheus metrics", self.metrics, text("Text or OpenMetrics")),
            Operation("GET", "/livez", "getLive", "Liveness: this process responds", self.live, text("Alive")),
            Operation(
                "GET", "/readyz", "getReady", "Readiness: state is loaded", self.ready, text("Ready"), problems=(503,)
            ),
        )


def _as_page(answer: ErrorHandler, forms: Forms) -> ErrorHandler:
    """Browsers that request a page get errors as a page: the sign-in form, or the error."""

    async def handler(request: Request, error: Exception) -> Response:
        if request.url.path.startswith(PROGRAM_PATHS) or "text/html" not in request.headers.get("accept", ""):
            return await answer(request, error)
        if isinstance(error, HTTPException):
            error = problems.of_http_exception(request, error)
        return await (
            forms.on_problem(request, error) if isinstance(error, problems.Problem) else answer(request, error)
        )

    return handler


def _describe(operations: Sequence[Operation], software_version: str) -> Operation:
    """`/openapi.json` describes itself too, so it is added last and reads the document when requested."""

    async def serve(_request: Request) -> Response:
        return JSONResponse(document)

    answers = (ResponseSpec(200, "This document"),)
    own = Operation("GET", "/openapi.json", "getOpenapi", "This API as OpenAPI 3.1", serve, answers)
    document: Json = openapi_document([*operations, own], software_version)
    return own
