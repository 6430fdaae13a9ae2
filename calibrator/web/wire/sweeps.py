"""Documents of sweeps: the curve and everything behind a number, as `core.report.documents` projects a record."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from calibrator.core.records.harm import AbortReason
from calibrator.core.records.objective import Metric
from calibrator.core.records.sweep import Grade, SweepOutcome, VerdictKind
from calibrator.core.report.curve import Limit, Slope
from calibrator.web.wire.backends import CapacityDocument, Interval, Time, Wire


class AbortDocument(Wire):
    reason: AbortReason
    words: str


class HarmDocument(Wire):
    """What live users met with during the sweep."""

    live_requests: int
    live_exceedances: int
    live_overload_s: float | None
    live_refusals: int
    preemptions: int
    most_organic: int
    prefix_hit_ratio_before: float | None
    prefix_hit_ratio: float | None


class SweepSummaryDocument(Wire):
    sweep_id: str
    backend: str
    mode: Literal["search", "levels"]
    trigger: str = Field(description="why it ran, in words; empty: not kept")
    outcome: SweepOutcome | None = Field(description="null while it runs")
    grade: Grade | None
    capacity: CapacityDocument | None
    requests: int
    duration_s: float
    overload_s: float
    reason: str
    remedy: str
    warnings: list[str]
    started_at: Time
    ended_at: Time | None


class LatencyDocument(Wire):
    """Seconds; null where n cannot support the quantile."""

    p50: float | None
    p90: float | None
    p99: float | None
    p50_interval: Interval | None
    p90_interval: Interval | None
    p99_interval: Interval | None


class ObjectiveVerdictDocument(Wire):
    objective: str
    verdict: VerdictKind
    n: int
    effective_n: float | None
    exceedances: int
    exceedance_ratio_interval: Interval
    reason: str
    unmeasured: dict[str, int] = Field(description="requests that say nothing about the objective, by what they lack")


class AuditDocument(Wire):
    """The generator's own error; reasons not empty = the level was not judged."""

    loop_lag_p99_s: float | None
    send_delay_p99_s: float | None
    cpu_ratio: float | None
    reasons: list[str]


class ServerPeakDocument(Wire):
    """Worst of the engine's own figures during the level."""

    running_requests: float | None
    waiting_requests: float | None
    kv_usage_ratio: float | None
    preemptions: float | None


class LevelDocument(Wire):
    concurrency: int
    achieved_concurrency: float | None
    n: int
    exceedances: int
    verdict: VerdictKind
    reasons: list[str]
    ttft_s: LatencyDocument
    ttfc_s: LatencyDocument
    itl_s: LatencyDocument
    tpot_s: LatencyDocument
    e2e_s: LatencyDocument
    requests_per_second: float | None
    prompt_tokens_per_second: float | None
    output_tokens_per_second: float | None
    goodput_per_second: float | None
    errors: dict[str, int] = Field(description="failed requests by kind")
    requests: int
    objectives: list[ObjectiveVerdictDocument]
    audit: AuditDocument
    server: ServerPeakDocument


class ClassAchievedDocument(Wire):
    """Mean lengths of one class as they were sent and answered; null where the server does not count them."""

    name: str
    requests: int
    prompt_tokens_wanted: float | None
    prompt_tokens: float | None
    output_tokens_wanted: float | None
    output_tokens: float | None


class BoundsDocument(Wire):
    """What the sweep was allowed."""

    min_level: int
    max_level: int
    requests: int
    requests_per_level: int
    duration_s: float
    overload_s: float


class ProvenanceDocument(Wire):
    backend: str
    url: str
    model: str
    engine: str | None
    objectives: list[str]
    workload: str
    prompt_tokens_achieved: float | None
    output_tokens_achieved: float | None
    seed: int
    software: str
    cached_ratio_achieved: float | None = Field(description="of the prompt tokens, by the server's usage")
    classes_achieved: list[ClassAchievedDocument]
    bounds: BoundsDocument | None = Field(description="null: not kept by the release that measured")
    adjustments: list[str] = Field(
        default_factory=list, description="parameters that the server refused, with what probes sent instead"
    )


class InsightDocument(Wire):
    """What the curve says; null where the measured levels cannot tell."""

    knee_concurrency: float | None = Field(description="onset of batch interference")
    early_slope: float | None = Field(description="d ln(tail) / d ln(concurrency) at low concurrency")
    slope: Slope | None
    goodput_max_concurrency: int
    goodput_max_per_second: float | None
    limit: Limit
    words: list[str]


class BurstDocument(Wire):
    """Simultaneous arrivals after idle, beside the steady state at the same level."""

    concurrency: int
    bursts: int
    n: int
    exceedances: int
    metric: Metric
    burst_s: LatencyDocument
    steady_s: LatencyDocument | None = Field(description="null: that level was not measured in steady state")


class SweepDocument(SweepSummaryDocument):
    cap: int | None = Field(ge=1, description="the published cap, if it comes from this sweep")
    aborted: AbortDocument | None = Field(description="ended at once to spare live users: never raises a cap")
    harm: HarmDocument
    prompt_tokens: int
    output_tokens: int
    provenance: ProvenanceDocument
    insight: InsightDocument | None
    burst: BurstDocument | None = Field(description="null: not asked for")
    levels: list[LevelDocument]
    history: dict[str, Any] = Field(description="stages and their bits, unrounded; `calibrator simulate` replays it")


class SweepList(Wire):
    sweeps: list[SweepSummaryDocument]


class SweepAccepted(Wire):
    sweep_id: str
    backend: str
