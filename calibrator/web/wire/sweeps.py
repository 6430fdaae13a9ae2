"""A sweep: its curve and everything behind the number. The service serves it and the command line prints it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from calibrator.core.records.harm import AbortReason
from calibrator.core.records.objective import Metric
from calibrator.core.records.sweep import Grade, SweepOutcome, VerdictKind
from calibrator.core.report.curve import Limit, Slope
from calibrator.web.wire.backends import CapacityDocument
from calibrator.web.wire.base import Interval, Number, NumberOrNull, ObjectiveText, Time, Wire


class AbortDocument(Wire):
    reason: AbortReason
    message: str


class HarmDocument(Wire):
    """What live users experienced during the sweep."""

    live_requests: int
    live_exceedances: int
    live_overload_s: NumberOrNull
    live_refusals: int
    preemptions: int
    most_organic: int
    prefix_hit_ratio_before: NumberOrNull
    prefix_hit_ratio: NumberOrNull


class SweepSummaryDocument(Wire):
    sweep_id: str
    backend: str
    mode: Literal["search", "levels"]
    trigger: str = Field(description="why it ran; empty: not recorded")
    outcome: SweepOutcome | None = Field(description="null while it runs")
    grade: Grade | None
    capacity: CapacityDocument | None
    requests: int
    duration_s: Number
    overload_s: Number
    reason: str
    remedy: str
    warnings: list[str]
    started_at: Time
    ended_at: Time | None


class LatencyDocument(Wire):
    """Seconds; null where n does not support the quantile."""

    p50: NumberOrNull
    p90: NumberOrNull
    p99: NumberOrNull
    p50_interval: Interval | None
    p90_interval: Interval | None
    p99_interval: Interval | None


class ObjectiveVerdictDocument(Wire):
    objective: str
    verdict: VerdictKind
    n: int
    effective_n: NumberOrNull
    exceedances: int
    exceedance_ratio_interval: Interval
    reason: str
    unmeasured: dict[str, int] = Field(description="requests that cannot be judged by the objective, by what they lack")


class AuditDocument(Wire):
    """Measurement error of the load generator. With any `reasons` the level was not judged."""

    loop_lag_p99_s: NumberOrNull
    send_delay_p99_s: NumberOrNull
    cpu_ratio: NumberOrNull
    reasons: list[str]


class ServerPeakDocument(Wire):
    """Maxima of the engine's own metrics during the level."""

    running_requests: NumberOrNull
    waiting_requests: NumberOrNull
    kv_usage_ratio: NumberOrNull
    preemptions: NumberOrNull


class LevelDocument(Wire):
    concurrency: int
    achieved_concurrency: NumberOrNull
    n: int
    exceedances: int
    verdict: VerdictKind
    reasons: list[str]
    ttft_s: LatencyDocument
    ttfc_s: LatencyDocument
    itl_s: LatencyDocument
    tpot_s: LatencyDocument
    e2e_s: LatencyDocument
    requests_per_second: NumberOrNull
    prompt_tokens_per_second: NumberOrNull
    output_tokens_per_second: NumberOrNull
    goodput_per_second: NumberOrNull
    errors: dict[str, int] = Field(description="failed requests by kind")
    requests: int
    objectives: list[ObjectiveVerdictDocument]
    audit: AuditDocument
    server: ServerPeakDocument


class ClassAchievedDocument(Wire):
    """Mean lengths of one workload class, requested and measured; null where the server does not count tokens."""

    name: str
    requests: int
    prompt_tokens_wanted: NumberOrNull
    prompt_tokens: NumberOrNull
    output_tokens_wanted: NumberOrNull
    output_tokens: NumberOrNull


class BoundsDocument(Wire):
    """The limits of the sweep."""

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
    objectives: list[ObjectiveText]
    workload: str
    prompt_tokens_achieved: NumberOrNull
    output_tokens_achieved: NumberOrNull
    seed: int
    software: str
    cached_ratio_achieved: NumberOrNull = Field(
        description="share of the prompt tokens served from the prefix cache, by the server's usage"
    )
    classes_achieved: list[ClassAchievedDocument]
    bounds: BoundsDocument | None = Field(description="null: not recorded by the release that measured")
    adjustments: list[str] = Field(
        default_factory=list, description="request parameters that the server rejected, with what probes sent instead"
    )


class InsightDocument(Wire):
    """What the curve shows; null where the measured levels do not show it."""

    knee_concurrency: NumberOrNull = Field(description="onset of batch interference")
    early_slope: NumberOrNull = Field(description="d ln(tail) / d ln(concurrency) at low concurrency")
    slope: Slope | None
    goodput_max_concurrency: int
    goodput_max_per_second: NumberOrNull
    limit: Limit
    messages: list[str]


class BurstDocument(Wire):
    """Simultaneous arrivals after idle, compared with the steady state at the same level."""

    concurrency: int
    bursts: int
    n: int
    exceedances: int
    metric: Metric
    burst_s: LatencyDocument
    steady_s: LatencyDocument | None = Field(description="null: the level was not measured in steady state")


class SweepDocument(SweepSummaryDocument):
    cap: int | None = Field(ge=1, description="the published cap, if it is based on this sweep")
    aborted: AbortDocument | None = Field(
        description="stopped early to protect live users; such a sweep never raises a cap"
    )
    harm: HarmDocument
    prompt_tokens: int
    output_tokens: int
    provenance: ProvenanceDocument
    insight: InsightDocument | None
    burst: BurstDocument | None = Field(description="null: not requested")
    levels: list[LevelDocument]
    history: dict[str, Any] = Field(
        description="the stages with their raw evidence, unrounded; `calibrator simulate --replay` reads it"
    )


class SweepList(Wire):
    sweeps: list[SweepSummaryDocument]


class SweepAccepted(Wire):
    sweep_id: str
    backend: str
