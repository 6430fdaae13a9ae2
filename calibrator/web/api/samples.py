"""`/v1/backends/{name}/sweeps/{sweep_id}/samples`: the individual requests of a sweep, for other tools."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from calibrator.core.records.sample_log import unpack
from calibrator.ports.operator import Operator
from calibrator.web.api.sample_export import TYPES, export_samples
from calibrator.web.http.auth import Access
from calibrator.web.http.operation import Operation, ResponseSpec
from calibrator.web.http.problems import Problem
from calibrator.web.http.requests import Views, parsed_query
from calibrator.web.wire.backends import SamplesQuery


@dataclass(frozen=True, slots=True)
class SamplesApi:
    operator: Operator
    views: Views

    async def get_samples(self, request: Request) -> Response:
        view = self.views.one(request.path_params["name"])
        kind = parsed_query(SamplesQuery, request).kind
        sweep_id = request.path_params["sweep_id"]
        record = await self.operator.sweep(sweep_id) if sweep_id.isprintable() else None
        if record is None or record.backend not in (view.name, view.measured_by):
            raise Problem(HTTPStatus.NOT_FOUND, f"Backend '{view.name}' has no such sweep.")
        packed = await self.operator.samples(sweep_id)
        if not packed:
            raise Problem(
                HTTPStatus.NOT_FOUND,
                "The individual requests of this sweep are not stored: it is still running, it was interrupted, or "
                "store.keep_samples newer sweeps have replaced it.",
            )
        return Response(export_samples(unpack(packed), sweep_id, kind), media_type=TYPES[kind])

    def operation(self) -> Operation:
        return Operation(
            "GET",
            "/v1/backends/{name}/sweeps/{sweep_id}/samples",
            "getSamples",
            "The individual requests of a sweep, with AIPerf's field names",
            self.get_samples,
            (ResponseSpec(200, "One line per request", media_type="application/jsonl", other_types=("text/csv",)),),
            access=Access.READ,
            query=SamplesQuery,
            problems=(400, 404, 503),
        )
