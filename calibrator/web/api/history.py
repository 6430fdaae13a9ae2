"""Under `/v1/backends/{name}`: recommendations, overrides and clients of the cap; and cancelling a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from calibrator.errors import ConfigurationError
from calibrator.ports.operator import Operator
from calibrator.web.http.auth import Access
from calibrator.web.http.operation import Operation, ResponseSpec
from calibrator.web.http.problems import Problem
from calibrator.web.http.requests import Views, json_answer, parsed_query
from calibrator.web.wire.backends import ClearQuery
from calibrator.web.wire.documents import client_document, override_entry, recommendation_document
from calibrator.web.wire.events import (
    ClientList,
    HistoryQuery,
    OverrideList,
    RecommendationList,
    SweepCancelled,
)


@dataclass(frozen=True, slots=True)
class HistoryApi:
    operator: Operator
    views: Views

    async def list_recommendations(self, request: Request) -> Response:
        name = self.views.one(request.path_params["name"]).name
        found = await self.operator.recommendations(name, parsed_query(HistoryQuery, request).limit)
        return json_answer(RecommendationList(recommendations=[recommendation_document(one) for one in found]))

    async def list_overrides(self, request: Request) -> Response:
        name = self.views.one(request.path_params["name"]).name
        return json_answer(OverrideList(overrides=[override_entry(one) for one in await self.operator.pins(name)]))

    async def list_clients(self, request: Request) -> Response:
        name = self.views.one(request.path_params["name"]).name
        return json_answer(ClientList(clients=[client_document(one) for one in self.operator.pollers(name)]))

    async def cancel_sweep(self, request: Request, query: ClearQuery) -> Response:
        name = self.views.one(request.path_params["name"]).name
        try:
            sweep_id = await self.operator.cancel_sweep(name, query.author)
        except ConfigurationError as error:
            raise Problem(HTTPStatus.NOT_FOUND, str(error)) from None
        return json_answer(SweepCancelled(sweep_id=sweep_id, backend=name), HTTPStatus.ACCEPTED)

    def operations(self, *, writable: bool) -> tuple[Operation, ...]:
        return (*self._read_operations(), *((self._cancel_operation(),) if writable else ()))

    def _read_operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "GET",
                "/v1/backends/{name}/recommendations",
                "listRecommendations",
                "Published recommendations of a backend, newest first",
                self.list_recommendations,
                (ResponseSpec(200, "The recommendations", RecommendationList),),
                access=Access.READ,
                query=HistoryQuery,
                problems=(400, 404, 503),
            ),
            Operation(
                "GET",
                "/v1/backends/{name}/overrides",
                "listOverrides",
                "Overrides of a backend, newest first, with the one in force",
                self.list_overrides,
                (ResponseSpec(200, "The overrides", OverrideList),),
                access=Access.READ,
                problems=(404, 503),
            ),
            Operation(
                "GET",
                "/v1/backends/{name}/clients",
                "listClients",
                "Clients that poll the cap of a backend, and the share of each",
                self.list_clients,
                (ResponseSpec(200, "The clients", ClientList),),
                access=Access.READ,
                problems=(404, 503),
            ),
        )

    def _cancel_operation(self) -> Operation:
        return Operation(
            "DELETE",
            "/v1/backends/{name}/sweeps/current",
            "cancelSweep",
            "Cancel the running or queued sweep; the cap does not change",
            self.cancel_sweep,
            (ResponseSpec(202, "Cancelled; its probes end within a second", SweepCancelled),),
            access=Access.OPERATE,
            query=ClearQuery,
            problems=(400, 404, 503),
        )
