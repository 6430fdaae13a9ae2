"""What goes over the wire about access: sessions of people, and the audit trail."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from calibrator.web.wire.base import Time, Wire


class SignIn(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    token: SecretStr = Field(min_length=1, max_length=4096, description="a read or operator token")


class SessionDocument(Wire):
    """What the caller may do now."""

    access: Literal["none", "read", "operate"]
    by: Literal["nothing", "token", "session"] = Field(description="nothing: what everybody may do")
    writes_exist: bool = Field(description="false: no operator token is configured")
    ends_at: Time | None = Field(default=None, description="of the session, as it begins")


class AuditQuery(BaseModel):
    model_config = ConfigDict(frozen=True)

    limit: int = Field(default=100, ge=1, le=500, description="how many, newest first")


class AuditEntryDocument(Wire):
    """One attempt to change something."""

    at: Time
    operation: str = Field(description="operationId, as in this document")
    backend: str
    who: str = Field(description="fingerprint of the token; `calibrator check` prints each token's")
    with_session: bool = Field(description="from the page, else with the token itself")
    address: str = Field(description="where the connection came from")
    outcome: Literal["done", "refused", "failed"]
    status: int
    detail: str = Field(description="why it was not done")
    request_summary: dict[str, Any] = Field(description="what the request asked for; empty if it was not valid")


class AuditList(Wire):
    entries: list[AuditEntryDocument]
