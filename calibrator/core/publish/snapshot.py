"""One immutable snapshot of the service; JSON, Prometheus and HTML are projections of it (STYLE principle 13).

Wall times are Unix seconds. What is not known is None, and its metric is absent: never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from calibrator.core.admission.admission import Deferral
from calibrator.core.records.history import Capacity
from calibrator.core.records.objective import Objective
from calibrator.core.records.sweep import Grade, LevelReport, SweepOutcome


class State(StrEnum):
    """Where a cap comes from. `stale` is derived from `valid_until` at reading time, never stored."""

    FALLBACK = "fallback"
    CALIBRATED = "calibrated"
    GUARDED = "guarded"
    STALE = "stale"
    OVERRIDDEN = "overridden"


class Health(StrEnum):
    OK = "ok"
    ERROR = "error"
    OBSERVE = "observe"


@dataclass(frozen=True, slots=True)
class Rates:
    """What the cap means at the measured mix, for gateways that only know rate limits."""

    requests_per_second: float
    prompt_tokens_per_minute: float
    output_tokens_per_minute: float


@dataclass(frozen=True, slots=True)
class CapBeforeCut:
    """What was published before the guard lowered it."""

    cap: int
    replica_cap: int
    state: State
    since: float  # first cut


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What is published. 1 <= replica_cap, 1 <= cap: gateways read 0, negative or null as "block all" or "no limit"."""

    backend: str
    version: int  # grows with each change of this backend's recommendation
    cap: int
    replica_cap: int
    state: State
    grade: Grade | None  # None for a fallback
    capacity: Capacity | None
    reason: str  # in words
    published_at: float
    measured_at: float | None = None
    valid_until: float | None = None  # None: a fallback does not age
    sweep_id: str | None = None
    rates: Rates | None = None
    max_queue_wait_s: float | None = None
    warnings: tuple[str, ...] = ()  # of the sweep behind it: what makes the number suspect
    replicas: int = 1  # that `cap` counts on
    balance_factor: float = 1.0  # `cap` over `replicas` times `replica_cap`, before the configured bounds
    before_cut: CapBeforeCut | None = None  # guarded: what the guard may step back up to


@dataclass(frozen=True, slots=True)
class CapPoint:
    """A cap that was published at one time, for a trend at a glance."""

    at: float
    cap: int
    state: State


@dataclass(frozen=True, slots=True)
class Override:
    """A cap set by an operator; it expires."""

    cap: int  # as asked for; the configured bounds may clamp it
    reason: str
    author: str
    set_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class Progress:
    """A running sweep, for terminals and pages."""

    sweep_id: str
    level: int
    phase: str  # "preflight", "ramp", "screen", "verdict", "levels"
    n: int  # decided requests at this level
    exceedances: int
    verdict: str  # so far
    p50_s: float | None  # of the first objective's metric
    p99_s: float | None
    requests: int
    requests_budget: int
    elapsed_s: float
    duration_budget_s: float
    in_flight: int
    organic: float | None = None  # live requests in flight beside ours; None: not known
    overload_s: float = 0.0  # above the SLA because of us
    overload_budget_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SweepSummary:
    """The last ended sweep of a backend, without its history."""

    sweep_id: str
    outcome: SweepOutcome
    grade: Grade | None
    capacity: Capacity | None
    started_at: float
    ended_at: float
    duration_s: float
    requests: int
    reason: str
    levels: tuple[LevelReport, ...] = ()


@dataclass(frozen=True, slots=True)
class Counters:
    """Monotonic totals since this process started; keys are enum values, all present from the start."""

    sweeps: Mapping[str, int]  # by SweepOutcome
    probe_requests: Mapping[str, int]  # by RequestOutcome
    probe_tokens: Mapping[str, int]  # "prompt", "output"
    probe_overload_s: float = 0.0
    gateway_polls: int = 0
    sweep_aborts: Mapping[str, int] = field(default_factory=dict)  # by AbortReason
    live_exceedances: int = 0  # live requests over an objective while sweeps ran


class ReplicaStatus(StrEnum):
    """Whether a replica counts; `core.publish.fleet` says when."""

    READY = "ready"
    JOINING = "joining"
    DOWN = "down"
    MISMATCHED = "mismatched"
    LOAD_BALANCED = "load_balanced"
    STANDBY = "standby"


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica of a backend."""

    url: str
    status: ReplicaStatus
    organic_in_flight: float | None = None
    engine: str | None = None
    model: str | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class GuardView:
    """The state of the guard."""

    is_watching: bool
    bounds_s: Mapping[str, float | None]  # by objective: the bucket bound above which requests count; None: none known
    trips: Mapping[str, int]  # by core.live.change_test.GuardReason, since this process started
    breach_reason: str | None = None  # objectives are broken, but lowering the cap would not help
    breach_since: float | None = None


@dataclass(frozen=True)
class BackendView:
    """One backend, as all projections show it. What every poll needs is computed once, hence no slots."""

    name: str
    model: str
    objectives: tuple[Objective, ...]
    recommendation: Recommendation
    health: Health
    health_reason: str
    counters: Counters
    fallback_cap: int
    up: bool | None = None  # the engine answers; None: not asked yet
    engine: str | None = None
    ready_replicas: int | None = None
    organic_in_flight: float | None = None
    probe_in_flight: int = 0
    last_sweep: SweepSummary | None = None
    last_sweep_at: Mapping[str, float] = field(default_factory=dict)  # end of the last sweep by outcome
    next_sweep_at: float | None = None
    progress: Progress | None = None
    override: Override | None = None  # in force: `recommendation` is what it makes of `underlying`
    underlying: Recommendation | None = None
    reserved_for_probes: int = 0  # of the cap, while a replica in rotation is swept
    gateway_clients: int = 0  # live pollers of the cap and of the replica's cap
    gateway_clients_over_cap: int = 0
    measured_by: str = ""  # backend whose sweeps are about the engines of this one; often itself
    replicas: tuple[ReplicaView, ...] = ()
    discovery_problem: str = ""  # why the set of replicas may be out of date
    traffic_note: str = ""  # how live traffic differs from the probes
    metrics_problem: str = ""  # why the engine's metrics are missing or cannot be trusted
    in_flight_peak: float | None = None  # organic, of the last 60 s
    headroom_min_ratio: float | None = None  # of the last 60 s
    guard: GuardView | None = None
    deferred: Deferral | None = None  # why a sweep that was due has not started
    queued: str = ""  # why a sweep waits for its turn, in words; empty: none does
    trend: tuple[CapPoint, ...] = ()  # recently published, without overrides; oldest first
    lease_held: bool = True  # by this instance: it measures and publishes
    store_problem: str = ""  # the database fails: what is served may be out of date
    shadow: Recommendation | None = None  # `publish: shadow`: what gateways get instead of the recommendation

    def state_at(self, now: float) -> State:
        """State with staleness applied."""
        published = self.recommendation
        aged = published.valid_until is not None and now > published.valid_until
        return State.STALE if aged and published.state is not State.OVERRIDDEN else published.state

    @cached_property
    def advertised(self) -> Recommendation:
        """What gateways are given. An override applies in shadow mode, too."""
        return self.recommendation if self.shadow is None or self.override is not None else self.shadow

    def advertised_state_at(self, now: float) -> State:
        return self.state_at(now) if self.advertised is self.recommendation else self.advertised.state

    @property
    def gives_way(self) -> int:
        """Slots of the cap reserved for running probes; an override is served in full."""
        return self.reserved_for_probes if self.override is None else 0

    @cached_property
    def served_cap(self) -> int:
        """What gateways get: the advertised cap, minus slots reserved for probes."""
        return max(1, self.advertised.cap - self.gives_way)

    @cached_property
    def served_replica_cap(self) -> int:
        """The same per replica: all replicas are reduced alike, so that the sum falls by as much."""
        return max(1, self.advertised.replica_cap - -(-self.gives_way // max(1, self.ready_replicas or 1)))

    @property
    def headroom(self) -> float | None:
        return None if self.organic_in_flight is None else self.recommendation.cap - self.organic_in_flight

    @property
    def headroom_ratio(self) -> float | None:
        return None if self.headroom is None else self.headroom / self.recommendation.cap


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole service at one moment."""

    taken_at: float
    started_at: float
    backends: Mapping[str, BackendView]
    ready: bool = True  # this process has loaded its state; never depends on a backend
    store_problem: str = ""  # the database fails: what is served may be out of date
    generator_lag_s: float | None = None
    generator_events_per_s: float | None = None  # that all cores can measure, by the self-test of the start
