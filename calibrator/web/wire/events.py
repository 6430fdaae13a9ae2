"""Events, and what stands under one backend: its recommendations, overrides and clients."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from calibrator.core.publish.snapshot import State
from calibrator.core.records.sweep import Grade
from calibrator.web.wire.backends import CapacityDocument
from calibrator.web.wire.base import Number, Time, Wire


class EventsQuery(BaseModel):
    model_config = ConfigDict(frozen=True)

    backend: str | None = Field(default=None, max_length=256, description="only this backend")


class EventDocument(BaseModel):
    """The data of one event."""

    model_config = ConfigDict(frozen=True)

    backend: str | None = Field(default=None, description="absent in `heartbeat`")
    at: Time = Field(description="server time")
    changed: dict[str, Any] | None = Field(
        default=None,
        description="in `backend`: the keys of a BackendDocument that have changed; all of them in the first event",
    )


class HistoryQuery(BaseModel):
    model_config = ConfigDict(frozen=True)

    limit: int = Field(default=50, ge=1, le=500, description="maximum number of entries, newest first")


class RecommendationDocument(Wire):
    """A recommendation as it was published."""

    version: int
    published_at: Time
    cap: int = Field(ge=1)
    replica_cap: int = Field(ge=1)
    replicas: int = Field(ge=1, description="replicas that the cap is computed for")
    balance_factor: Number
    state: State
    grade: Grade | None
    capacity: CapacityDocument | None
    reason: str
    measured_at: Time | None
    valid_until: Time | None
    sweep_id: str | None


class RecommendationList(Wire):
    recommendations: list[RecommendationDocument]


class OverrideEntry(Wire):
    """An override, in force or ended."""

    cap: int = Field(ge=1, description="as requested")
    reason: str
    author: str
    set_at: Time
    ends_at: Time = Field(description="when it expires, or was ended")


class OverrideList(Wire):
    overrides: list[OverrideEntry]


class ClientDocument(Wire):
    """A client that polls a cap, and its share."""

    client: str
    per_replica: bool = Field(description="shares the cap of one replica instead of the backend's")
    share: int | None = Field(
        description="share in its last response; null: it waits until the smaller shares of others have been delivered"
    )
    target: int = Field(description="share that it converges to")
    seen_age_s: float = Field(ge=0, description="seconds since its last poll")
    gap_s: float = Field(ge=0, description="longest interval between two of its polls")


class ClientList(Wire):
    clients: list[ClientDocument]


class SweepCancelled(Wire):
    sweep_id: str
    backend: str
