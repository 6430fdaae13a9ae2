"""`/static`: the files of the pages. A literal table, so that nothing else of the package can be requested.

Responses carry an ETag and a short lifetime, so that a new release takes effect with a reload.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from calibrator.web.http.operation import Operation, ResponseSpec

PATH = "/static/{asset}"
_CSS, _SCRIPT = "text/css", "text/javascript"
ASSETS: Mapping[str, tuple[str, str]] = {  # by the name in the path: (file, media type)
    "page.css": ("page.css", _CSS),
    "page.js": ("page.js", _SCRIPT),
    "live.js": ("live.js", _SCRIPT),
    "curve.js": ("curve.js", _SCRIPT),
    "icon.svg": ("icon.svg", "image/svg+xml"),
    "uplot.js": ("vendor/uplot/uPlot.iife.min.js", _SCRIPT),
    "uplot.css": ("vendor/uplot/uPlot.min.css", _CSS),
}


@dataclass(frozen=True, slots=True)
class Assets:
    """Reads each file once."""

    _made: dict[str, Response] = field(default_factory=dict)

    async def answer(self, request: Request) -> Response:
        name = request.path_params["asset"]
        if name not in ASSETS:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        full = self._made.get(name) or self._make(name)
        if request.headers.get("if-none-match") == full.headers["etag"]:
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"ETag": full.headers["etag"]})
        return full

    def _make(self, name: str) -> Response:
        path, media_type = ASSETS[name]
        content = (files("calibrator.web.pages") / "static" / path).read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()[:16]}"',
            "Cache-Control": "max-age=300",
        }
        self._made[name] = Response(content, headers=headers, media_type=media_type)
        return self._made[name]

    def operation(self) -> Operation:
        answers = (
            ResponseSpec(
                200,
                "The file",
                media_type=_CSS,
                other_types=(_SCRIPT, "image/svg+xml"),
                headers=("ETag", "Cache-Control"),
            ),
            ResponseSpec(304, "Unchanged", media_type=None, headers=("ETag",)),
        )
        return Operation(
            "GET", PATH, "getAsset", "A style sheet or script of the pages", self.answer, answers, problems=(404,)
        )
