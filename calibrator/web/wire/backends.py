"""The cap, backends and what is sent to change them.

A key that may be unknown is nullable and always present, with one exception: in the cap document, which gateways
read, a limit that is not known is left out, because programs take null or 0 for "no limit" or "block all".
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from calibrator.core.admission.admission import DeferralReason
from calibrator.core.publish.snapshot import Health, ReplicaStatus, State
from calibrator.core.records.sweep import Grade, SweepOutcome
from calibrator.web.wire.base import Number, NumberOrNull, ObjectiveText, TextOrNull, Time, Wire

MAX_WAIT_S = 60.0
MAX_OVERRIDE_S = 30 * 86_400.0
MAX_COUNT = 1_000_000_000
CLIENT_PATTERN = r"^[A-Za-z0-9._:@/-]{1,128}$"


def _is_none(value: object) -> bool:
    return value is None


# --------------------------------------------------------------------------------------------------------- requests
class CapQuery(BaseModel):
    """How a gateway asks. Unknown parameters are ignored."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    client: str | None = Field(
        default=None,
        pattern=CLIENT_PATTERN,
        description="stable name of the polling process; without it the response is the whole cap, unshared",
    )
    in_flight: int | None = Field(
        default=None, ge=0, le=MAX_COUNT, description="requests that the client has in flight now"
    )
    rejected: int | None = Field(
        default=None, ge=0, le=MAX_COUNT, description="requests that the client rejected since its last poll"
    )
    wait: float = Field(
        default=0.0,
        ge=0.0,
        le=MAX_WAIT_S,
        description="long poll, in seconds: wait for a change from If-None-Match, or for a first share",
    )


class SweepsQuery(BaseModel):
    model_config = ConfigDict(frozen=True)

    limit: int = Field(default=20, ge=1, le=200, description="maximum number of entries, newest first")


class ReportQuery(BaseModel):
    model_config = ConfigDict(frozen=True)

    kind: Literal["html", "md", "json"] = Field(default="html", alias="format", description="format of the report")
    compare: str | None = Field(default=None, max_length=64, description="id of an earlier sweep to compare with")


class SamplesQuery(BaseModel):
    model_config = ConfigDict(frozen=True)

    kind: Literal["jsonl", "csv"] = Field(default="jsonl", alias="format", description="format of the export")


ShortText = Annotated[str, Field(min_length=1, max_length=200)]


class OverrideRequest(BaseModel):
    """A manual cap. It always expires, after `expires_in_s` at the latest."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cap: int = Field(ge=1, le=1_000_000, description="clamped to the configured bounds")
    reason: ShortText
    author: ShortText
    expires_in_s: float = Field(gt=0, le=MAX_OVERRIDE_S, description="seconds from now")


class ClearQuery(BaseModel):
    model_config = ConfigDict(frozen=True)

    author: ShortText = Field(default="unnamed", description="who ends it, for the audit log")


class SweepRequest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str = Field(default="requested over HTTP", min_length=1, max_length=200)


# -------------------------------------------------------------------------------------------------------------- caps
class TokensPerMinute(Wire):
    prompt: Number = Field(gt=0)
    output: Number = Field(gt=0)


class CapDocument(Wire):
    """What gateways poll. `share` is what the polling gateway may have in flight."""

    backend: str
    cap: int = Field(
        ge=1, description="cap on in-flight requests of the whole backend, minus slots reserved for probes"
    )
    replica_cap: int = Field(
        ge=1, description="cap on in-flight requests of one replica, for gateways that limit each server"
    )
    share: int = Field(
        ge=1, description="in-flight requests that this client may have; the whole cap if it gave no name"
    )
    clients_seen: int = Field(ge=0, description="clients among which the cap is divided")
    max_queue_wait_s: NumberOrNull = Field(
        default=None,
        ge=0,
        exclude_if=_is_none,
        description="how long a gateway may queue requests beyond the cap; absent if unknown",
    )
    requests_per_second: NumberOrNull = Field(
        default=None,
        gt=0,
        exclude_if=_is_none,
        description="request rate that corresponds to the cap at the measured mix; absent if unknown",
    )
    tokens_per_minute: TokensPerMinute | None = Field(default=None, exclude_if=_is_none)
    state: State
    grade: Grade | None
    version: int = Field(ge=0, description="increases with each change of the recommendation")
    measured_at: Time | None
    valid_until: Time | None


# ---------------------------------------------------------------------------------------------------------- backends
class CapacityDocument(Wire):
    """Measured capacity of one replica, with its 95 % interval."""

    estimate: int = Field(ge=0)
    low: int = Field(ge=0)
    high: int = Field(ge=0)


class InFlight(Wire):
    organic: NumberOrNull
    probe: int


class RatesDocument(Wire):
    requests_per_second: Number
    prompt_tokens_per_minute: Number
    output_tokens_per_minute: Number


class LastSweep(Wire):
    sweep_id: str
    outcome: SweepOutcome
    grade: Grade | None
    capacity: CapacityDocument | None
    requests: int
    duration_s: Number
    reason: str
    started_at: Time
    ended_at: Time


class ProgressDocument(Wire):
    """A running sweep."""

    sweep_id: str
    phase: str
    level: int
    n: int
    exceedances: int
    verdict: str
    p50_s: NumberOrNull
    p99_s: NumberOrNull
    requests: int
    requests_budget: int
    elapsed_s: Number
    duration_budget_s: Number
    in_flight: int = Field(description="probes in flight")
    organic: NumberOrNull = Field(
        description="live requests in flight beside the probes; null: the engine does not report it"
    )
    overload_s: Number = Field(description="seconds in which probes pushed the backend over its SLA")
    overload_budget_s: Number


class OverrideDocument(Wire):
    """A manual override, and what is served again when it ends."""

    cap: int = Field(ge=1, description="as requested; the published cap may be clamped")
    reason: str
    author: str
    set_at: Time
    expires_at: Time
    underlying_cap: int = Field(ge=1, description="what would be published now without it")
    underlying_state: State


class OverrideAccepted(Wire):
    backend: str
    cap: int = Field(ge=1, description="now published")
    override: OverrideDocument | None = Field(description="null: it was so short that it has already expired")
    stored: bool = Field(description="false: in force, but not stored yet and lost by a restart; storing is retried")


class GuardDocument(Wire):
    """The guard, which watches live users between sweeps."""

    is_watching: bool
    bounds_s: dict[str, float | None] = Field(
        description="by objective: the histogram bound above which requests are counted; null: the engine exports none"
    )
    guarded_since: Time | None = Field(description="first cut since the last sweep; null while the cap is not lowered")
    cap_before_cut: int | None = Field(
        ge=1, description="cap before the first cut; the guard raises the cap no further than this"
    )
    breach_reason: str | None = Field(description="signal of an SLA breach that a lower cap would not end; null: none")
    breach_since: Time | None
    trips: dict[str, int] = Field(description="trips by reason since this process started")


class DeferralDocument(Wire):
    """A sweep that is due and has not started. `until`: when it may start, null if unknown."""

    reason: DeferralReason
    message: str
    until: Time | None


class ReplicaDocument(Wire):
    """One engine of a backend."""

    url: str
    status: ReplicaStatus = Field(
        description="ready: counts towards the cap; mismatched: another engine, model or version"
    )
    organic_in_flight: NumberOrNull
    engine: str | None
    model: str | None
    version: str | None


class CapPointDocument(Wire):
    at: Time
    cap: int = Field(ge=1)
    state: State


class BackendDocument(Wire):
    name: str
    model: str
    engine: str | None
    objectives: list[ObjectiveText]
    health: Health
    health_reason: str
    up: bool | None
    state: State
    grade: Grade | None
    cap: int = Field(ge=1)
    replica_cap: int = Field(ge=1)
    fallback_cap: int = Field(ge=1)
    capacity: CapacityDocument | None
    version: int
    reason: str
    published_at: Time
    measured_at: Time | None
    valid_until: Time | None
    rates: RatesDocument | None
    max_queue_wait_s: NumberOrNull
    warnings: list[str] = Field(description="of the sweep behind the cap: reasons to doubt the number")
    ready_replicas: int | None
    counted_replicas: int = Field(ge=1, description="replicas that the cap is computed for")
    balance_factor: Number = Field(
        gt=0, le=1, description="cap divided by the sum over its replicas: the loss to uneven load balancing"
    )
    replicas: list[ReplicaDocument]
    discovery_problem: TextOrNull = Field(description="why the list of replicas may be out of date")
    measured_by: str = Field(description="the backend whose sweeps measure these engines; usually itself")
    in_flight: InFlight
    headroom: NumberOrNull
    headroom_ratio: NumberOrNull
    override: OverrideDocument | None
    guard: GuardDocument | None
    gateway_clients: int = Field(ge=0, description="clients that poll the cap")
    gateway_clients_over_cap: int = Field(
        ge=0, description="clients beyond the number that the cap allows; each gets 1"
    )
    progress: ProgressDocument | None
    last_sweep: LastSweep | None
    next_sweep_at: Time | None
    traffic_note: TextOrNull = Field(
        description="how live prompts differ from the probes that the cap was measured with"
    )
    metrics_problem: TextOrNull = Field(description="why the engine's metrics cannot be used, and what to do")
    lease_held: bool = Field(description="whether this instance measures the backend and publishes its cap")
    store_problem: TextOrNull = Field(description="why the database fails; what is served may be out of date")
    deferred: DeferralDocument | None = Field(description="why a sweep that is due has not started")
    queued: TextOrNull = Field(description="trigger of a queued sweep; null: none is queued")
    trend: list[CapPointDocument] = Field(description="recently published caps without overrides, oldest first")
    shadow: bool = Field(description="`publish: shadow`: gateways get the fallback")
    gateway_cap: int = Field(
        ge=1, description="cap advertised to gateways (the fallback in shadow mode), minus slots reserved for probes"
    )


class BackendList(Wire):
    backends: list[BackendDocument]


# ---------------------------------------------------------------------------------------------------------- problems
class ParameterError(Wire):
    parameter: str
    detail: str


class ProblemDocument(BaseModel):
    """RFC 9457; `type` is absent, which means about:blank."""

    title: str
    status: int
    detail: str
    backends: list[str] | None = Field(default=None, description="404 for an unknown backend: the configured names")
    errors: list[ParameterError] | None = Field(default=None, description="400: what is wrong, by parameter")
