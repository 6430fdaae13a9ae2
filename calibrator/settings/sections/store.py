"""What survives a restart, and where: in a local file, or in a PostgreSQL that several instances share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from calibrator.core.publish.lease import LEAST_LEASE_S, LeasePolicy
from calibrator.ports.store import Retention
from calibrator.settings.defaults import default_of
from calibrator.settings.problems import Problem, refuse
from calibrator.settings.values import DurationS, File, Frozen, Secret

_REFERENCE = (
    "Write postgresql: {file: /run/secrets/name} or {env: NAME}, which contains postgresql://user:password@host/db."
)


class StoreSettings(Frozen):
    """What survives a restart."""

    path: File | None = Field(
        default=Path("calibrator.db"), description="SQLite file; one running instance per file; not with postgresql"
    )
    postgresql: Secret | None = Field(
        default=None,
        description="instead of path, for several instances: secret with the URL of the database, such as "
        "`postgresql://user:password@host:5432/name?sslmode=verify-full`",
    )
    ca_file: File | None = Field(
        default=None,
        description="with postgresql: CA bundle for the server; sslmode is then verify-full, unless the URL sets it",
    )
    on_corrupt: Literal["refuse", "move_aside"] = Field(
        default="refuse",
        description="if the SQLite file is damaged: refuse to start, or rename it and start over with the fallback "
        "caps",
    )
    keep_sweeps: int = Field(
        default=default_of(Retention, "sweeps"),
        ge=1,
        le=100_000,
        description="calibrated sweeps kept per backend; twice as many failed ones are kept",
    )
    keep_recommendations: int = Field(
        default=default_of(Retention, "recommendations"),
        ge=1,
        le=1_000_000,
        description="published caps kept per backend, about 1 KB each",
    )
    keep_samples: int = Field(
        default=default_of(Retention, "samples"),
        ge=0,
        le=1000,
        description="latest sweeps per backend whose individual requests are kept for export",
    )

    lease_s: DurationS = Field(
        default=default_of(LeasePolicy, "lease_s"),
        ge=LEAST_LEASE_S,
        le=300.0,
        alias="lease",
        description="with postgresql: time after which another instance takes over from one that died; it is renewed "
        "at every third of it",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_place(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "url" in value:
            refuse(
                Problem("url", "the URL of a database contains a password, which must not be in this file.", _REFERENCE)
            )
        if value.get("postgresql") is None:
            return value
        if value.get("path") is not None:
            refuse(Problem("postgresql", "cannot be combined with path.", "Give one of the two."))
        return {**value, "path": None}

    @model_validator(mode="after")
    def _authorities_of_somebody(self) -> Self:
        if self.ca_file is not None and self.postgresql is None:
            refuse(Problem("ca_file", "has no effect without postgresql.", "Remove it, or give postgresql."))
        if self.path is None and self.postgresql is None:
            refuse(Problem("path", "is empty.", "Give the path of a SQLite file, or postgresql."))
        return self
