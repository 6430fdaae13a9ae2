"""A sweep as it is stored, served and printed: immutable, and versioned by its history."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from calibrator.core.records.harm import Abort, Harm
from calibrator.core.records.history import Audit, Bounds, Capacity, History
from calibrator.core.records.server_load import ServerLoadPeak
from calibrator.core.records.unmeasured import Counts, is_unmeasured
from calibrator.core.stats.quantile import LatencySummary


class SweepOutcome(StrEnum):
    """Values of `sweeps_total{outcome}`."""

    CALIBRATED = "calibrated"
    INCONCLUSIVE = "inconclusive"
    INFEASIBLE = "infeasible"
    ERROR = "error"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"


class EndReason(StrEnum):
    """Why a sweep ended: the code of `SweepRecord.reason`."""

    BRACKETED = "bracketed"  # the highest level that holds is close to the lowest that does not
    NEARLY_EXACT = "nearly_exact"  # the capacity is probably little above the highest level that holds
    AT_MAX = "at_max"  # the highest allowed level holds
    CONFIRMED = "confirmed"  # the capacity in force still holds
    INFEASIBLE = "infeasible"  # even the lowest level fails
    LIVE_TRAFFIC = "live_traffic"  # it left no level to measure
    INDIFFERENCE_ZONE = "indifference_zone"
    CAPACITY_KNOWN = "capacity_known"  # closely enough, without a finished test
    REQUEST_BUDGET = "request_budget"
    TIME_BUDGET = "time_budget"
    OVERLOAD_BUDGET = "overload_budget"
    DAY_REQUESTS = "day_requests"
    TOKENS = "tokens"
    WINDOW = "window"  # it closed
    ABORTED = "aborted"  # to protect live users
    INVALID_MEASUREMENT = "invalid_measurement"
    UNMEASURED = "unmeasured"  # answers do not show what an objective is about
    BURSTS = "bursts"  # they lowered the capacity
    ALL_LEVELS = "all_levels"  # the requested levels were measured
    NO_SUCCESS = "no_success"  # every request failed
    ERROR = "error"


class Grade(StrEnum):
    """How well a capacity is supported by evidence (DESIGN section 3)."""

    CERTIFIED = "certified"
    PROVISIONAL = "provisional"
    INFEASIBLE = "infeasible"
    AT_MAX = "at_max"


class VerdictKind(StrEnum):
    WITHIN = "within"
    EXCEEDED = "exceeded"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class ObjectiveVerdict:
    """The verdict of one objective at one level."""

    objective: str
    kind: VerdictKind
    n: int
    effective_n: float
    exceedances: int
    ratio_low: float  # 95 % interval of the true exceedance ratio
    ratio_high: float
    reason: str
    missing: Counts = ()  # requests without a bit, by what they lack (`records.unmeasured`)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict of a level: exceeded if any objective is, within if all are."""

    kind: VerdictKind
    reasons: tuple[str, ...]
    objectives: tuple[ObjectiveVerdict, ...] = ()

    @property
    def is_unmeasured(self) -> bool:
        """Not judged, because the answers do not show an objective."""
        is_open = self.kind is VerdictKind.INCONCLUSIVE
        return is_open and any(is_unmeasured(one.n, one.missing) for one in self.objectives)


@dataclass(frozen=True, slots=True)
class LevelReport:
    """One point of the curve: all stages of a level together."""

    concurrency: int
    achieved_concurrency: float
    n: int  # counted requests with a decided bit in every objective
    exceedances: int  # requests that violated at least one objective
    requests: int  # sent in all, including the warm-up and requests after the last counted one
    verdict: Verdict
    ttft: LatencySummary
    ttfc: LatencySummary
    itl: LatencySummary
    tpot: LatencySummary
    e2e: LatencySummary
    requests_per_second: float
    prompt_tokens_per_second: float
    output_tokens_per_second: float
    goodput_per_second: float  # completed requests that met every objective
    errors: tuple[tuple[str, int], ...]  # (failure kind, count), most frequent first
    audit: Audit = field(default_factory=Audit)
    server: ServerLoadPeak = field(default_factory=ServerLoadPeak)
    organic_in_flight: float | None = None  # mean of live requests; None: not visible


@dataclass(frozen=True, slots=True)
class BurstReport:
    """Simultaneous arrivals after idle, compared with the steady state at the same level."""

    concurrency: int
    bursts: int
    n: int  # requests
    exceedances: int  # of any objective, failures included
    metric: str  # of both summaries: the first objective's
    burst: LatencySummary
    steady: LatencySummary | None  # None: that level was not measured in steady state


@dataclass(frozen=True, slots=True)
class ClassAchieved:
    """Mean lengths of one class as sent and answered; None: the server does not report them."""

    name: str
    requests: int  # counted ones
    prompt_tokens_wanted: float | None
    prompt_tokens: float | None
    output_tokens_wanted: float | None
    output_tokens: float | None


@dataclass(frozen=True, slots=True)
class Provenance:
    """The conditions of the measurement, so that others can verify it."""

    backend: str
    url: str
    model: str
    engine: str | None
    workload: str  # in words
    prompt_tokens_achieved: float | None  # mean by the server's usage
    output_tokens_achieved: float | None
    seed: int
    software: str  # calibrator version
    cached_ratio_achieved: float | None = None  # of the prompt tokens, by the server's usage; None: not reported
    classes_achieved: tuple[ClassAchieved, ...] = ()
    bounds: Bounds | None = None  # None: written by a release that did not store them
    adjustments: tuple[str, ...] = ()  # probe parameters that the server refused, with what was sent instead


@dataclass(frozen=True, slots=True)
class SweepRecord:
    """One sweep and all its evidence. `started_at`/`ended_at` are Unix seconds."""

    sweep_id: str
    backend: str
    mode: Literal["search", "levels"]
    started_at: float
    ended_at: float | None
    outcome: SweepOutcome | None  # None while it runs
    grade: Grade | None
    capacity: Capacity | None
    reason: str  # why it ended, in words
    requests: int
    duration_s: float
    overload_s: float
    prompt_tokens: int
    output_tokens: int
    levels: tuple[LevelReport, ...]
    warnings: tuple[str, ...]
    provenance: Provenance
    history: History
    remedy: str = ""  # for outcome `error`: what to do
    error_exit_code: int = 1  # for outcome `error`: `errors.ExitCode` of its cause
    outcomes: tuple[tuple[str, int], ...] = ()  # probe requests by RequestOutcome
    burst: BurstReport | None = None  # None: not requested, or no burst was completed
    aborted: Abort | None = None  # aborted to protect live users: may lower a cap, never raises one
    harm: Harm = field(default_factory=Harm)
    samples: bytes = field(
        default=b"", repr=False
    )  # core.records.sample_log, on its way to the store; empty everywhere else
    trigger: str = ""  # why it ran, in words; empty: written by a release that did not store it
    end_reason: EndReason | None = None  # code of `reason`; None: it runs, or as above
