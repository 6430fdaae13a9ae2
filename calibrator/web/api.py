"""`/v1`: backends, their caps, their sweeps. Handlers read the snapshot; nothing here waits for a backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from calibrator.core.render import sweep_document, sweep_summary
from calibrator.core.snapshot import BackendView
from calibrator.core.sweep_record import SweepRecord
from calibrator.errors import ConfigurationError
from calibrator.ports import Clock, Operator
from calibrator.web.auth import Access
from calibrator.web.documents import backend_document
from calibrator.web.models import (
    BackendDocument,
    BackendList,
    CapDocument,
    CapQuery,
    SweepAccepted,
    SweepDocument,
    SweepList,
    SweepRequest,
    SweepsQuery,
)
from calibrator.web.operation import Answer, Operation
from calibrator.web.polling import cap_response, entity_tag, hold, matches
from calibrator.web.problems import SAFE_HEADERS, Problem, invalid

MAX_BODY_BYTES = 65_536
RETRY_AFTER_S = 2  # a start takes seconds

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Api:
    operator: Operator
    clock: Clock
    is_stopping: Callable[[], bool]

    def operations(self, *, writable: bool) -> tuple[Operation, ...]:
        """`writable` False: there is no write route at all."""
        written = (self._start_sweep_operation(),) if writable else ()
        return (*self._read_operations(), *written)

    async def list_backends(self, _request: Request) -> Response:
        views = self._backends().values()
        return _json(BackendList(backends=[backend_document(view, self.clock.wall()) for view in views]))

    async def get_backend(self, request: Request) -> Response:
        return _json(backend_document(self._backend(request), self.clock.wall()))

    async def get_cap(self, request: Request) -> Response:
        name = self._backend(request).name
        query = _parse(CapQuery, request.query_params, "query")
        self.operator.count_poll(name)
        known = ", ".join(request.headers.getlist("if-none-match"))
        if query.wait > 0.0 and known:
            await hold(lambda: self._is_current(name, known), self.clock, query.wait, self.is_stopping)
        return cap_response(self._backend(request), self.clock.wall(), known)

    async def list_sweeps(self, request: Request) -> Response:
        view = self._backend(request)
        query = _parse(SweepsQuery, request.query_params, "query")
        records = await self.operator.sweeps(view.name, query.limit)
        return _json(SweepList.model_validate({"sweeps": [sweep_summary(record) for record in records]}))

    async def get_sweep(self, request: Request) -> Response:
        view = self._backend(request)
        sweep_id = request.path_params["sweep_id"]
        record = await self.operator.sweep(sweep_id) if sweep_id.isprintable() else None
        if record is None or record.backend != view.name:
            raise Problem(HTTPStatus.NOT_FOUND, f"Backend '{view.name}' has no such sweep.")
        return _json(SweepDocument.model_validate(sweep_document(record, cap=_published_cap(view, record))))

    async def start_sweep(self, request: Request) -> Response:
        view = self._backend(request)
        body = await _body(request)
        try:
            wanted = SweepRequest.model_validate_json(body) if body.strip() else SweepRequest()
        except ValidationError as error:
            raise invalid(error, "body") from None
        try:
            sweep_id = await self.operator.request_sweep(view.name, wanted.reason)
        except ConfigurationError as error:
            raise Problem(HTTPStatus.CONFLICT, str(error)) from None
        location = f"/v1/backends/{quote(view.name, safe='')}/sweeps/{quote(sweep_id, safe='')}"
        response = _json(SweepAccepted(sweep_id=sweep_id, backend=view.name), HTTPStatus.ACCEPTED)
        response.headers["Location"] = location
        return response

    def _backends(self) -> Mapping[str, BackendView]:
        snapshot = self.operator.snapshot()
        if not snapshot.ready:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "The service has not loaded its state yet; ask again.",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        return snapshot.backends

    def _backend(self, request: Request) -> BackendView:
        backends = self._backends()
        view = backends.get(request.path_params["name"])
        if view is None:
            detail = f"There is no such backend; configured are: {', '.join(backends) or 'none'}."
            raise Problem(HTTPStatus.NOT_FOUND, detail, backends=list(backends))
        return view

    def _is_current(self, name: str, if_none_match: str) -> bool:
        view = self.operator.snapshot().backends.get(name)
        return view is not None and matches(if_none_match, entity_tag(view, self.clock.wall()))

    def _read_operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "GET",
                "/v1/backends",
                "listBackends",
                "Every backend: cap, state, health, headroom, last and next sweep",
                self.list_backends,
                (Answer(200, "The backends", BackendList),),
                access=Access.READ,
                problems=(503,),
            ),
            Operation(
                "GET",
                "/v1/backends/{name}",
                "getBackend",
                "One backend",
                self.get_backend,
                (Answer(200, "The backend", BackendDocument),),
                access=Access.READ,
                problems=(404, 503),
            ),
            Operation(
                "GET",
                "/v1/backends/{name}/cap",
                "getCap",
                "What gateways poll: how many requests may be in flight",
                self.get_cap,
                (
                    Answer(200, "The cap", CapDocument, headers=("ETag", "Cache-Control", "RateLimit-Policy")),
                    Answer(304, "Unchanged", media_type=None, headers=("ETag", "Cache-Control", "RateLimit-Policy")),
                ),
                access=Access.READ,
                query=CapQuery,
                request_headers=(("If-None-Match", "ETags that the client has; a match answers 304"),),
                problems=(400, 404, 503),
            ),
            Operation(
                "GET",
                "/v1/backends/{name}/sweeps",
                "listSweeps",
                "Sweeps of a backend, newest first",
                self.list_sweeps,
                (Answer(200, "The sweeps", SweepList),),
                access=Access.READ,
                query=SweepsQuery,
                problems=(400, 404, 503),
            ),
            Operation(
                "GET",
                "/v1/backends/{name}/sweeps/{sweep_id}",
                "getSweep",
                "One sweep with its curve and everything behind the number",
                self.get_sweep,
                (Answer(200, "The sweep", SweepDocument),),
                access=Access.READ,
                problems=(404, 503),
            ),
        )

    def _start_sweep_operation(self) -> Operation:
        return Operation(
            "POST",
            "/v1/backends/{name}/sweeps",
            "startSweep",
            "Queue a sweep now",
            self.start_sweep,
            (Answer(202, "Queued; its document exists once it started", SweepAccepted, headers=("Location",)),),
            access=Access.OPERATE,
            body=SweepRequest,
            problems=(400, 404, 409, 413, 503),
        )


def _published_cap(view: BackendView, record: SweepRecord) -> int | None:
    published = view.recommendation
    return published.cap if published.sweep_id == record.sweep_id else None


def _json(document: BaseModel, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(document.model_dump_json(), status, headers=SAFE_HEADERS, media_type="application/json")


def _parse(model: type[Model], query: Mapping[str, str], what: str) -> Model:
    try:
        return model.model_validate(dict(query))
    except ValidationError as error:
        raise invalid(error, what) from None


async def _body(request: Request) -> bytes:
    """The whole body, read no further than the limit."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise Problem(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"The body is longer than {MAX_BODY_BYTES} bytes.",
                headers={"Connection": "close"},  # the rest of it stays unread
            )
    return body
