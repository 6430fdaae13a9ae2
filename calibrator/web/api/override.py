"""`PUT` and `DELETE /v1/backends/{name}/override`: set the cap by hand for a while (core.publish.override)."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from calibrator.core.publish.snapshot import Override
from calibrator.ports.clock import Clock
from calibrator.ports.operator import Operator
from calibrator.web.http.auth import Access
from calibrator.web.http.operation import Operation, ResponseSpec
from calibrator.web.http.problems import Problem
from calibrator.web.http.requests import Views, json_answer
from calibrator.web.wire.backends import ClearQuery, OverrideAccepted, OverrideRequest
from calibrator.web.wire.documents import override_document

PATH = "/v1/backends/{name}/override"


@dataclass(frozen=True, slots=True)
class OverrideApi:
    operator: Operator
    clock: Clock
    views: Views

    async def put(self, request: Request, body: OverrideRequest) -> Response:
        name = self.views.one(request.path_params["name"]).name
        now = self.clock.wall()
        override = Override(body.cap, body.reason, body.author, now, now + body.expires_in_s)
        stored = await self.operator.override(name, override)
        view = self.views.one(name)
        return json_answer(
            OverrideAccepted(backend=name, cap=view.recommendation.cap, override=override_document(view), stored=stored)
        )

    async def delete(self, request: Request, query: ClearQuery) -> Response:
        name = self.views.one(request.path_params["name"]).name
        if not await self.operator.clear_override(name, query.author):
            raise Problem(HTTPStatus.NOT_FOUND, f"The cap of '{name}' is not overridden.")
        return Response(status_code=HTTPStatus.NO_CONTENT)

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "PUT",
                PATH,
                "putOverride",
                "Override the cap for a while, with precedence over sweeps and guard, within the configured bounds",
                self.put,
                (ResponseSpec(200, "In force", OverrideAccepted),),
                access=Access.OPERATE,
                body=OverrideRequest,
                problems=(400, 404, 413, 503),
            ),
            Operation(
                "DELETE",
                PATH,
                "deleteOverride",
                "End the override; the current recommendation is served again",
                self.delete,
                (ResponseSpec(204, "Removed", media_type=None),),
                access=Access.OPERATE,
                query=ClearQuery,
                problems=(400, 404, 503),
            ),
        )
