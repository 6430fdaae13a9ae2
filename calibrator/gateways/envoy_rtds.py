"""Envoy polls its caps by runtime discovery (RTDS) over REST, `POST /v3/discovery:runtime`.

Envoy limits the requests in flight to each of its clusters with a circuit breaker whose threshold can be overridden at
runtime. The response is one runtime layer with `circuit_breakers.<cluster>.default.max_requests` for every mapped
cluster: flat keys, as cluster names contain dots and slashes.

| poll | response | what Envoy does |
|---|---|---|
| its `version_info` is current | 304 | keeps its caps |
| else | 200, all caps of this Envoy | replaces the layer |
| a new client, while others hold all of every cap | 503 with Retry-After | keeps its caps, initially the static ones |
| this process has not loaded its state yet | 503 with Retry-After | the same |
| too long, too slow, malformed, unnamed, another resource | 413, 408, 400 | the same, and counts `update_failure` |

**The layer is never empty and never lacks a mapped cluster:** Envoy would fall back to the static threshold, which may
be "no limit". So a cluster that must wait while others have a cap gets 1; 0 would block it.

The version is a digest of the layer: it changes exactly when the layer does, and survives restarts.

**Clients.** `node.id` is the client name (core.sharing.allocator). Circuit breakers of one Envoy are independent, so
where several mapped clusters lead to one backend each is a client of its own, `<node.id>/<cluster>`. An Envoy that has
only some of the mapped clusters lists them in `node.metadata.calibrator_clusters`, or it holds shares that it cannot
use.

The body of each poll has 77 KB, nearly all of it a list of Envoy's extensions, which is ignored.

Source: envoy.service.discovery.v3 and envoy.service.runtime.v3; behaviour observed with Envoy 1.40.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Literal, NoReturn

from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from calibrator.ports.operator import Operator
from calibrator.ports.sharing import Poll

PATH = "/v3/discovery:runtime"
TYPE_URL = "type.googleapis.com/envoy.service.runtime.v3.Runtime"
MAX_BODY_BYTES = 262_144
BODY_LIMIT_S = 10.0
NOT_READY_RETRY_S = 2
HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}

ShortText = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[\x21-\x7e]+$")]


class _Metadata(BaseModel):
    calibrator_clusters: tuple[str, ...] | None = None


class _Node(BaseModel):
    id: ShortText
    metadata: _Metadata = _Metadata()


class _Discovery(BaseModel):
    """The fields used of a DiscoveryRequest; all others are ignored."""

    node: _Node
    resource_names: tuple[ShortText]  # exactly one: the name of the `rtds_layer`, repeated in the response
    version_info: str = ""
    type_url: Literal["", "type.googleapis.com/envoy.service.runtime.v3.Runtime"] = ""


def routes(operator: Operator, clusters: Mapping[str, str]) -> Sequence[Route]:
    """`clusters`: backend by the name of the Envoy cluster."""
    return (Route(PATH, _Caps(operator, clusters, Counter(clusters.values())).answer, methods=["POST"], name="rtds"),)


@dataclass(frozen=True, slots=True)
class _Caps:
    operator: Operator
    clusters: Mapping[str, str]
    breakers: Counter[str]  # mapped clusters by backend

    async def answer(self, request: Request) -> Response:
        asked = await _discovery(request)
        if not self.operator.snapshot().ready:
            _refuse_for_now("The service has not loaded its state yet; retry.", NOT_READY_RETRY_S)
        layer = json.dumps(self._layer(asked.node), separators=(",", ":"))
        version = hashlib.sha256(layer.encode()).hexdigest()[:16]
        if asked.version_info == version:
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=HEADERS)
        name = json.dumps(asked.resource_names[0])
        body = (
            f'{{"version_info":"{version}","resources":'
            f'[{{"@type":"{TYPE_URL}","name":{name},"layer":{layer}}}]}}'
        )  # fmt: skip
        return Response(body, headers=HEADERS, media_type="application/json")

    def _layer(self, node: _Node) -> dict[str, int]:
        """Raises HTTPException 400 or 503: never an empty layer."""
        only = node.metadata.calibrator_clusters
        clusters = [cluster for cluster in self.clusters if only is None or cluster in only]
        if not clusters:
            _refuse(HTTPStatus.BAD_REQUEST, "None of the clusters in node.metadata.calibrator_clusters is mapped.")
        shares = {cluster: self.operator.poll(*self._poll(node.id, cluster)) for cluster in clusters}
        if all(share.requests is None for share in shares.values()):
            retry_after_s = max(share.retry_after_s for share in shares.values())
            _refuse_for_now(
                "Other clients hold the whole cap until their smaller shares have been delivered.",
                math.ceil(retry_after_s),
            )
        return {f"circuit_breakers.{name}.default.max_requests": share.requests or 1 for name, share in shares.items()}

    def _poll(self, node_id: str, cluster: str) -> tuple[str, Poll]:
        backend = self.clusters[cluster]
        return backend, Poll(node_id if self.breakers[backend] == 1 else f"{node_id}/{cluster}")


async def _discovery(request: Request) -> _Discovery:
    """Raises HTTPException 400, 408 or 413."""
    try:
        async with asyncio.timeout(BODY_LIMIT_S):
            body = await _body(request)
    except TimeoutError:
        _refuse(HTTPStatus.REQUEST_TIMEOUT, "The body did not arrive in time.", {"Connection": "close"})
    try:
        return _Discovery.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in found["loc"]) or "body"
        _refuse(HTTPStatus.BAD_REQUEST, f"Invalid RTDS request: {where}: {found['msg']}.")


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            _refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"The body exceeds {MAX_BODY_BYTES} bytes.",
                {"Connection": "close"},  # the rest of the body is not read
            )
    return bytes(body)


def _refuse_for_now(detail: str, retry_after_s: int) -> NoReturn:
    _refuse(HTTPStatus.SERVICE_UNAVAILABLE, detail, {"Retry-After": str(retry_after_s)})


def _refuse(status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None) -> NoReturn:
    raise HTTPException(status, detail, headers)
