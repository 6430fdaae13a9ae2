"""The audit log: one entry for each attempt to change something.

An entry is written whether the attempt succeeded, was refused (by whichever check) or failed. `who` is the fingerprint
of the token, never the token; `calibrator check` prints the fingerprint of each. Entries go to the log under
`logger=calibrator.audit` at every log level, and that is the record to keep. The latest ones of this instance can also
be read by operators at `GET /v1/audit`. Unauthenticated attempts are kept separately, so that they cannot displace
entries of token holders.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from types import MappingProxyType

import structlog
from starlette.requests import Request

from calibrator.core.report.formats import timestamp
from calibrator.ports.clock import Clock
from calibrator.web.http.auth import Caller
from calibrator.web.wire.access import AuditEntryDocument

KEPT = 250  # of either kind
SHOWN_CHARACTERS = 100  # of a name that a caller may choose freely


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One attempt. `detail`: why it was not done. `request_summary`: what a valid request asked for."""

    at: float
    operation: str
    backend: str
    who: str
    with_session: bool
    address: str
    status: int
    detail: str = ""
    request_summary: Mapping[str, object] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        if self.status < HTTPStatus.BAD_REQUEST:
            return "done"
        return "refused" if self.status < HTTPStatus.INTERNAL_SERVER_ERROR else "failed"


def log_entry(entry: AuditEntry) -> None:
    """Bypasses the level filter: the audit log cannot be switched off."""
    logger: structlog.BoundLogger = structlog.wrap_logger(None, wrapper_class=structlog.BoundLogger)
    fields = {key: value for key, value in asdict(entry).items() if key not in {"at", "operation"}}
    logger.info(entry.operation, logger="calibrator.audit", outcome=entry.outcome, **fields)


class AuditLog:
    """Writes entries and keeps the latest."""

    def __init__(self, clock: Clock, write: Callable[[AuditEntry], None] = log_entry) -> None:
        self._clock = clock
        self._write = write
        self._authenticated: deque[AuditEntry] = deque(maxlen=KEPT)
        self._unauthenticated: deque[AuditEntry] = deque(maxlen=KEPT)

    def add(
        self,
        request: Request,
        operation: str,
        caller: Caller,
        status: int,
        *,
        detail: str = "",
        request_summary: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        entry = AuditEntry(
            at=self._clock.wall(),
            operation=operation,
            backend=str(request.path_params.get("name", ""))[:SHOWN_CHARACTERS],
            who=caller.fingerprint or ("unknown token" if caller.has_presented else "anonymous"),
            with_session=caller.has_session,
            address="" if request.client is None else request.client.host,
            status=status,
            detail=detail,
            request_summary=dict(request_summary),
        )
        (self._authenticated if caller.fingerprint else self._unauthenticated).append(entry)
        self._write(entry)

    def entries(self, limit: int) -> list[AuditEntryDocument]:
        """Newest first."""
        newest = sorted((*self._authenticated, *self._unauthenticated), key=lambda entry: entry.at)[::-1][:limit]
        return [
            AuditEntryDocument(**{**asdict(one), "at": timestamp(one.at), "outcome": one.outcome}) for one in newest
        ]
