"""Who did what, when, from where, and what came of it: one entry for each attempt to change something.

An entry is written whether the attempt succeeded or was refused, by whichever check; `who` is the fingerprint of the
token (`calibrator check` prints the fingerprint of each), never the token. The lines go to the log under
`logger=calibrator.audit`, whatever the log's level is, and that is the record to keep: the last ones, of this instance
only, can also be read by operators at `GET /v1/audit`. Attempts of strangers are kept apart, or whoever has no token
could push out of sight what others did.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from http import HTTPStatus

import structlog
from pydantic import BaseModel
from starlette.requests import Request

from calibrator.core.report.formats import timestamp
from calibrator.ports.clock import Clock
from calibrator.web.http.auth import Caller
from calibrator.web.wire.access import AuditEntryDocument

KEPT = 250  # of either kind
SHOWN_CHARACTERS = 100  # of what a caller chose freely
_SAID = "calibrator.said"  # in the ASGI scope: what the request asked for, once it was found valid


def said(request: Request, model: BaseModel) -> None:
    """Remember for the entry what is asked for. Secrets in it must be of a type that hides them."""
    request.scope[_SAID] = model.model_dump(mode="json", exclude_none=True)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One attempt. `outcome`: done, refused or failed; `detail` says why if it was not done."""

    at: float
    operation: str
    backend: str
    who: str
    with_session: bool
    address: str
    status: int
    detail: str = ""
    said: Mapping[str, object] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        if self.status < HTTPStatus.BAD_REQUEST:
            return "done"
        return "refused" if self.status < HTTPStatus.INTERNAL_SERVER_ERROR else "failed"


def log_deed(deed: AuditEntry) -> None:
    """Without the filter for levels, which must not switch this off."""
    logger: structlog.BoundLogger = structlog.wrap_logger(None, wrapper_class=structlog.BoundLogger)
    fields = {key: value for key, value in asdict(deed).items() if key not in {"at", "operation"}}
    logger.info(deed.operation, logger="calibrator.audit", outcome=deed.outcome, **fields)


class AuditLog:
    """Writes deeds down and keeps the last ones."""

    def __init__(self, clock: Clock, write: Callable[[AuditEntry], None] = log_deed) -> None:
        self._clock = clock
        self._write = write
        self._known: deque[AuditEntry] = deque(maxlen=KEPT)
        self._strangers: deque[AuditEntry] = deque(maxlen=KEPT)

    def add(self, request: Request, operation: str, caller: Caller, status: int, detail: str = "") -> None:
        deed = AuditEntry(
            at=self._clock.wall(),
            operation=operation,
            backend=str(request.path_params.get("name", ""))[:SHOWN_CHARACTERS],
            who=caller.fingerprint or ("unknown token" if caller.has_presented else "nobody"),
            with_session=caller.has_session,
            address="" if request.client is None else request.client.host,
            status=status,
            detail=detail,
            said=request.scope.get(_SAID, {}),
        )
        (self._known if caller.fingerprint else self._strangers).append(deed)
        self._write(deed)

    def entries(self, limit: int) -> list[AuditEntryDocument]:
        """Newest first."""
        newest = sorted((*self._known, *self._strangers), key=lambda deed: deed.at)[::-1][:limit]
        return [
            AuditEntryDocument(**{**asdict(one), "at": timestamp(one.at), "outcome": one.outcome}) for one in newest
        ]
