"""What the event stream and the histories send: the data of one event, what was published, who polls."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from calibrator.core.publish.snapshot import State
from calibrator.core.records.sweep import Grade
from calibrator.web.wire.backends import CapacityDocument
from calibrator.web.wire.base import Number, Time, Wire


class EventsQuery(BaseModel):
    model_config = ConfigDict(frozen=True)

    backend: str | None = Field(default=None, max_length=256, description="only this one")


class EventDocument(BaseModel):
    """Data of one event."""

    model_config = ConfigDict(frozen=True)

    backend: str | None = Field(default=None, description="absent in `beat`")
    at: Time = Field(description="the server's clock")
    changed: dict[str, Any] | None = Field(
        default=None, description="in `backend`: the keys of a BackendDocument whose values are new; at first all"
    )


class HistoryQuery(BaseModel):
    model_config = ConfigDict(frozen=True)

    limit: int = Field(default=50, ge=1, le=500, description="how many, newest first")


class RecommendationDocument(Wire):
    """What was published at one time."""

    version: int
    published_at: Time
    cap: int = Field(ge=1)
    replica_cap: int = Field(ge=1)
    replicas: int = Field(ge=1, description="replicas that the cap counts on")
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


class PinDocument(Wire):
    """A cap that a person pinned, now or before."""

    cap: int = Field(ge=1, description="as asked for")
    reason: str
    author: str
    set_at: Time
    ends_at: Time = Field(description="by itself, or when somebody ended it")


class PinList(Wire):
    overrides: list[PinDocument]


class ClientDocument(Wire):
    """One poller of a cap, and its part of it."""

    client: str
    per_replica: bool = Field(description="divides the replica's cap instead of the backend's")
    share: int | None = Field(description="what it was last told; null: it waits for the others to hear of it")
    target: int = Field(description="what it gets with its next poll, as far as the others have heard of theirs")
    seen_age_s: float = Field(ge=0, description="seconds since its last poll")
    gap_s: float = Field(ge=0, description="the longest time between two of its polls")


class ClientList(Wire):
    clients: list[ClientDocument]


class SweepCancelled(Wire):
    sweep_id: str
    backend: str
