"""One immutable picture of the service; JSON, Prometheus and HTML are projections of it (STYLE principle 13).

Wall times are Unix seconds. What is not known is None, and its metric is absent: never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from calibrator.core.measurement import Capacity
from calibrator.core.sweep_record import Grade, LevelReport, SweepOutcome


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
    warnings: tuple[str, ...] = ()  # of the sweep behind it: what makes the number doubtful


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


@dataclass(frozen=True, slots=True)
class BackendView:
    """One backend as everybody sees it."""

    name: str
    model: str
    objectives: tuple[str, ...]
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

    def state_at(self, now: float) -> State:
        """State with staleness applied."""
        published = self.recommendation
        aged = published.valid_until is not None and now > published.valid_until
        return State.STALE if aged and published.state is not State.OVERRIDDEN else published.state

    @property
    def headroom(self) -> float | None:
        return None if self.organic_in_flight is None else self.recommendation.cap - self.organic_in_flight


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole service at one moment."""

    taken_at: float
    started_at: float
    backends: Mapping[str, BackendView]
    ready: bool = True  # this process has loaded its state; never depends on a backend
    config_reload_success: bool = True
    generator_lag_s: float | None = None
