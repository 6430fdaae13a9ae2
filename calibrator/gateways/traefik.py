"""Traefik polls its caps through its HTTP provider, `GET /v1/integrations/traefik[?client=NAME][&backend=NAME]...`

Each backend becomes one `inFlightReq` middleware, `llm-cap-<backend>`, that routers of other providers refer to as
`llm-cap-<backend>@http`. Without `backend` the configuration has all of them: name those that this Traefik routes
to, or it holds shares that it cannot use. Without `client` it gets the whole cap (core.sharing.allocator).

| rule | because Traefik |
|---|---|
| 200, and never 304 | treats any other status as an error and backs off; it sends no If-None-Match |
| identical bytes while nothing changes | hashes the body; a new one rebuilds the limiter, and its count restarts |
| always every middleware, always an amount >= 1 | drops a missing middleware and every router that uses it |
| a new client that must wait gets 1 | the same: the lowest value that is not "no limit" |
| no state loaded: an empty configuration | ignores it and keeps the last one |
| one bucket for all requests, by a header that nobody sends: strip it at the entry point | counts per Host by default |

Source: the source code of Traefik v3, July 2026. Not yet tested with Traefik itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from calibrator.ports.operator import Operator
from calibrator.ports.sharing import Poll

PATH = "/v1/integrations/traefik"
BUCKET_HEADER = "X-Calibrator-Unset"
WAITING = 1

_NAME = re.compile(r"[\x21-\x7e]{1,128}")


def routes(operator: Operator) -> Sequence[Route]:
    """Raises HTTPException for configuration errors: an invalid client name, an unknown backend."""

    async def configuration(request: Request) -> Response:
        known = operator.snapshot()
        client = request.query_params.get("client", "")
        if client and _NAME.fullmatch(client) is None:
            raise HTTPException(
                HTTPStatus.BAD_REQUEST, "The client name must have 1 to 128 printable ASCII characters."
            )
        wanted = request.query_params.getlist("backend") or list(known.backends)
        unknown = [name for name in wanted if known.ready and name not in known.backends]
        if unknown:
            names = ", ".join(known.backends) or "none"
            detail = f"No such backend: {', '.join(unknown)}; configured: {names}."
            raise HTTPException(HTTPStatus.NOT_FOUND, detail)
        amounts = {name: _amount(operator, name, client) for name in sorted(wanted)} if known.ready else {}
        return Response(body(amounts), media_type="application/json", headers={"Cache-Control": "no-store"})

    return (Route(PATH, configuration, methods=["GET"], name="getTraefik"),)


def body(amounts: dict[str, int]) -> bytes:
    """A dynamic configuration; `{}` without amounts."""
    criterion = {"requestHeaderName": BUCKET_HEADER}
    middlewares = {
        f"llm-cap-{name}": {"inFlightReq": {"amount": amount, "sourceCriterion": criterion}}
        for name, amount in amounts.items()
    }
    return json.dumps({"http": {"middlewares": middlewares}} if middlewares else {}, separators=(",", ":")).encode()


def _amount(operator: Operator, backend: str, client: str) -> int:
    return operator.poll(backend, Poll(client)).requests or WAITING
