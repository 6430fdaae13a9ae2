"""`/v1/backends`: backends, their caps and sweeps. Handlers read the snapshot and never wait for a backend."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from calibrator.core.publish.snapshot import BackendView
from calibrator.errors import ConfigurationError
from calibrator.ports.clock import Clock
from calibrator.ports.operator import Operator
from calibrator.web.api.override import OverrideApi
from calibrator.web.http.auth import Access
from calibrator.web.http.operation import Operation, ResponseSpec
from calibrator.web.http.problems import Problem
from calibrator.web.http.requests import Views, json_answer, parsed_query
from calibrator.web.poll.cap import CapPolls
from calibrator.web.report.report import REPORT_HEADERS, REPORT_TYPES, report
from calibrator.web.wire.backends import (
    BackendDocument,
    BackendList,
    CapDocument,
    CapQuery,
    ReportQuery,
    SweepRequest,
    SweepsQuery,
)
from calibrator.web.wire.documents import backend_document, published_sweep
from calibrator.web.wire.sweeps import SweepAccepted, SweepDocument, SweepList


@dataclass(frozen=True, slots=True)
class BackendsApi:
    operator: Operator
    clock: Clock
    views: Views
    polls: CapPolls
    override: OverrideApi

    def operations(self, *, writable: bool) -> tuple[Operation, ...]:
        """Not `writable`: there are no write routes at all."""
        written = (self._start_sweep_operation(), *self.override.operations()) if writable else ()
        return (*self._read_operations(), *written)

    async def list_backends(self, _request: Request) -> Response:
        views = self.views.all().values()
        return json_answer(BackendList(backends=[backend_document(view, self.clock.wall()) for view in views]))

    async def get_backend(self, request: Request) -> Response:
        return json_answer(backend_document(self.views.one(request.path_params["name"]), self.clock.wall()))

    async def list_sweeps(self, request: Request) -> Response:
        view = self.views.one(request.path_params["name"])
        query = parsed_query(SweepsQuery, request)
        records = await self.operator.sweeps(view.name, query.limit)
        return json_answer(SweepList.model_validate({"sweeps": records}))

    async def get_sweep(self, request: Request) -> Response:
        view = self.views.one(request.path_params["name"])
        return json_answer(await self._sweep(view, request.path_params["sweep_id"]))

    async def get_report(self, request: Request) -> Response:
        view = self.views.one(request.path_params["name"])
        query = parsed_query(ReportQuery, request)
        sweep = await self._sweep(view, request.path_params["sweep_id"])
        other = None if query.compare is None else await self._sweep(view, query.compare)
        return Response(report(sweep, query.kind, other), headers=REPORT_HEADERS, media_type=REPORT_TYPES[query.kind])

    async def _sweep(self, view: BackendView, sweep_id: str) -> SweepDocument:
        record = await self.operator.sweep(sweep_id) if sweep_id.isprintable() else None
        if record is None or record.backend not in (view.name, view.measured_by):
            raise Problem(HTTPStatus.NOT_FOUND, f"Backend '{view.name}' has no such sweep.")
        return published_sweep(view, record)

    async def start_sweep(self, request: Request, body: SweepRequest) -> Response:
        view = self.views.one(request.path_params["name"])
        try:
            sweep_id = await self.operator.request_sweep(view.name, body.reason)
        except ConfigurationError as error:
            raise Problem(HTTPStatus.CONFLICT, str(error)) from None
        location = f"/v1/backends/{quote(view.name, safe='')}/sweeps/{quote(sweep_id, safe='')}"
        response = json_answer(SweepAccepted(sweep_id=sweep_id, backend=view.name), HTTPStatus.ACCEPTED)
        response.headers["Location"] = location
        return response

    def _read_operations(self) -> tuple[Operation, ...]:
        html, *others = REPORT_TYPES.values()
        # The cap comes first: the router tries paths in this order, and gateways request nothing else.
        return (
            Operation(
                "GET",
                "/v1/backends/{name}/cap",
                "getCap",
                "The cap that gateways poll: how many requests may be in flight",
                self.polls.answer,
                (
                    ResponseSpec(200, "The cap", CapDocument, headers=("ETag", "Cache-Control", "RateLimit-Policy")),
                    ResponseSpec(
                        304, "Unchanged", media_type=None, headers=("ETag", "Cache-Control", "RateLimit-Policy")
                    ),
                ),
                access=Access.READ,
                query=CapQuery,
                request_headers=(("If-None-Match", "ETags that the client holds; a match returns 304"),),
                problems=(400, 404, 503),
            ),
            Operation(
                "GET",
                "/v1/backends",
                "listBackends",
                "Every backend: cap, state, health, headroom, last and next sweep",
                self.list_backends,
                (ResponseSpec(200, "The backends", BackendList),),
                access=Access.READ,
                problems=(503,),
            ),
            Operation(
                "GET",
                "/v1/backends/{name}",
                "getBackend",
                "One backend",
                self.get_backend,
                (ResponseSpec(200, "The backend", BackendDocument),),
                access=Access.READ,
                problems=(404, 503),
            ),
            Operation(
                "GET",
                "/v1/backends/{name}/sweeps",
                "listSweeps",
                "Sweeps of a backend, newest first",
                self.list_sweeps,
                (ResponseSpec(200, "The sweeps", SweepList),),
                access=Access.READ,
                query=SweepsQuery,
                problems=(400, 404, 503),
            ),
            Operation(
                "GET",
                "/v1/backends/{name}/sweeps/{sweep_id}",
                "getSweep",
                "One sweep, with its curve and all evidence",
                self.get_sweep,
                (ResponseSpec(200, "The sweep", SweepDocument),),
                access=Access.READ,
                problems=(404, 503),
            ),
            Operation(
                "GET",
                "/v1/backends/{name}/sweeps/{sweep_id}/report",
                "getReport",
                "One sweep as a self-contained report",
                self.get_report,
                (ResponseSpec(200, "The report", media_type=html, other_types=tuple(others)),),
                access=Access.READ,
                query=ReportQuery,
                problems=(400, 404, 503),
            ),
        )

    def _start_sweep_operation(self) -> Operation:
        return Operation(
            "POST",
            "/v1/backends/{name}/sweeps",
            "startSweep",
            "Queue a sweep",
            self.start_sweep,
            (
                ResponseSpec(
                    202, "Queued; its document exists once it has started", SweepAccepted, headers=("Location",)
                ),
            ),
            access=Access.OPERATE,
            body=SweepRequest,
            problems=(400, 404, 409, 413, 503),
        )
