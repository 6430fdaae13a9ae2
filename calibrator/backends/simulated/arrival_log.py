"""Who probed when, as the engine saw it: a line of JSON as each completion begins, and one as it ends.

    {"event": "begin", "number": 17, "at_s": 5123.25, "request_id": "calibrator-20260101-120000-ab12cd-9"}
    {"event": "end", "number": 17, "at_s": 5123.5}

Moments are this machine's monotonic clock. A request ends when its answer was sent, or its client was seen to be gone.
"""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

MEASURED = "/completions"


class ArrivalLog:
    """ASGI middleware. Every line is in the file before the request goes on."""

    def __init__(self, app: ASGIApp, path: Path) -> None:
        self._app = app
        self._file = path.open("a", buffering=1)
        self._numbers = itertools.count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith(MEASURED):
            await self._app(scope, receive, send)
            return
        number = next(self._numbers)
        told = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        self._write({"event": "begin", "number": number, "at_s": time.monotonic(), "request_id": told})
        try:
            await self._app(scope, receive, send)
        finally:
            self._write({"event": "end", "number": number, "at_s": time.monotonic()})

    def close(self) -> None:
        self._file.close()

    def _write(self, line: dict[str, object]) -> None:
        self._file.write(json.dumps(line) + "\n")
