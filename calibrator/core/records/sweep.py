"""A sweep as it is stored, served and printed: immutable, versioned by its history."""

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
    """Contract words of `sweeps_total{outcome}`."""

    CALIBRATED = "calibrated"
    INCONCLUSIVE = "inconclusive"
    INFEASIBLE = "infeasible"
    ERROR = "error"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"


class Grade(StrEnum):
    """How much stands behind a capacity (DESIGN section 3)."""

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
    """What the bits of one objective say about one level."""

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
    """Verdict of a level over all objectives: exceeded if any is, within if all are."""

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
    requests: int  # sent, warm-up and followers included
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
    organic_in_flight: float | None = None  # mean, beside ours; None: could not be seen


@dataclass(frozen=True, slots=True)
class BurstReport:
    """Simultaneous arrivals after idle, beside the steady state at the same level."""

    concurrency: int
    bursts: int
    n: int  # requests
    exceedances: int  # of any objective, failures included
    metric: str  # of both summaries: the first objective's
    burst: LatencySummary
    steady: LatencySummary | None  # None: that level was not measured in steady state


@dataclass(frozen=True, slots=True)
class ClassAchieved:
    """Mean lengths of one class as they were sent and answered; None: the server does not count them."""

    name: str
    requests: int  # counted ones
    prompt_tokens_wanted: float | None
    prompt_tokens: float | None
    output_tokens_wanted: float | None
    output_tokens: float | None


@dataclass(frozen=True, slots=True)
class Provenance:
    """The conditions, so that the number can be verified by somebody else."""

    backend: str
    url: str
    model: str
    engine: str | None
    objectives: tuple[str, ...]
    workload: str  # in words
    prompt_tokens_achieved: float | None  # mean by the server's usage
    output_tokens_achieved: float | None
    seed: int
    software: str  # calibrator version
    cached_ratio_achieved: float | None = None  # of the prompt tokens, by the server's usage; None: it does not say
    classes_achieved: tuple[ClassAchieved, ...] = ()
    bounds: Bounds | None = None  # None: written by a release that did not keep them
    adjustments: tuple[str, ...] = ()  # parameters of the probes that the server refused, with what was sent instead


@dataclass(frozen=True, slots=True)
class SweepRecord:
    """One run and everything behind its number. `started_at`/`ended_at` are Unix seconds."""

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
    burst: BurstReport | None = None  # None: not asked for, or not one burst came to its end
    aborted: Abort | None = None  # ended to spare live users: it may lower a cap, never raise one
    harm: Harm = field(default_factory=Harm)
    samples: bytes = field(
        default=b"", repr=False
    )  # core.records.sample_log, on its way to the store; empty everywhere else
    trigger: str = ""  # why it ran, in words; empty: written by a release that did not keep it
