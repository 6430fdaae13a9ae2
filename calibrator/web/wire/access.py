"""Sessions and the audit log."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from calibrator.web.wire.base import Time, Wire


class SignIn(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    token: SecretStr = Field(min_length=1, max_length=4096, description="a read or operator token")


class SessionDocument(Wire):
    """What the caller may do."""

    access: Literal["none", "read", "operate"]
    by: Literal["nothing", "token", "session"] = Field(description="what grants it; nothing: it is open to everybody")
    writes_exist: bool = Field(description="false: read-only, as no operator token is configured")
    ends_at: Time | None = Field(default=None, description="when a session that has just begun ends")


class AuditQuery(BaseModel):
    model_config = ConfigDict(frozen=True)

    limit: int = Field(default=100, ge=1, le=500, description="maximum number of entries, newest first")


class AuditEntryDocument(Wire):
    """One attempt to change something."""

    at: Time
    operation: str = Field(description="operationId in the OpenAPI document")
    backend: str
    who: str = Field(description="fingerprint of the token, as `calibrator check` prints it")
    with_session: bool = Field(description="true: by a session of the pages; false: by the token itself")
    address: str = Field(description="address of the peer")
    outcome: Literal["done", "refused", "failed"]
    status: int
    detail: str = Field(description="why it was refused or failed")
    request_summary: dict[str, Any] = Field(description="what the request asked for; empty if it was not valid")


class AuditList(Wire):
    entries: list[AuditEntryDocument]
