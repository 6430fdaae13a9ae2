"""A sweep as a JSON document: what `GET .../sweeps/{id}` serves and what `calibrator sweep --output json` prints.

One projection for both, so that a script written against the command line works against the service. Keys carry their
units, the order of keys is part of the document (people read it), and three rules hold for every value:

- what is not known is null, never 0; a quantile that n cannot support is null;
- a number is finite and has at most six significant digits: more are noise, and NaN is not JSON;
- a time is RFC 3339 in UTC with milliseconds.
"""

from __future__ import annotations

import math
from dataclasses import asdict, fields, is_dataclass
from datetime import UTC, datetime

from calibrator.core.records.history import Capacity
from calibrator.core.records.sweep import BurstReport, LevelReport, Provenance, SweepRecord
from calibrator.core.report.curve import CurveInsight, read_curve
from calibrator.core.stats.quantile import LatencySummary, QuantileEstimate

Document = dict[str, object]

LATENCIES = ("ttft", "ttfc", "itl", "tpot", "e2e")  # attributes of LevelReport, and names of Metric
QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))  # attributes of LatencySummary


def sweep_document(record: SweepRecord, *, cap: int | None) -> Document:
    """A sweep and everything behind its number. `cap`: what is published because of it; None if nothing is."""
    return {
        **sweep_summary(record),
        "cap": cap,
        "aborted": None if record.aborted is None else asdict(record.aborted),
        "harm": {
            key: number(value) if isinstance(value, float) else value for key, value in asdict(record.harm).items()
        },
        "prompt_tokens": record.prompt_tokens,
        "output_tokens": record.output_tokens,
        "provenance": provenance_document(record.provenance),
        "insight": insight_document(read_curve(record.levels, record.history.objectives, record.capacity)),
        "burst": burst_document(record.burst),
        "levels": [level_document(level) for level in record.levels],
        "history": _plain(record.history),
    }


def provenance_document(provenance: Provenance) -> Document:
    return {
        **asdict(provenance),
        "objectives": list(provenance.objectives),
        "adjustments": list(provenance.adjustments),
        "prompt_tokens_achieved": number(provenance.prompt_tokens_achieved),
        "output_tokens_achieved": number(provenance.output_tokens_achieved),
        "cached_ratio_achieved": number(provenance.cached_ratio_achieved),
        "classes_achieved": [
            {key: number(value) if isinstance(value, float) else value for key, value in asdict(one).items()}
            for one in provenance.classes_achieved
        ],
    }


def _plain(value: object) -> object:
    """What is behind the number, unrounded: `calibrator simulate --replay` reads it. Infinity travels as a word."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def insight_document(insight: CurveInsight | None) -> Document | None:
    """What the curve says, in numbers and in words; None where nothing was counted."""
    if insight is None:
        return None
    return {
        "knee_concurrency": number(insight.knee_concurrency),
        "early_slope": number(insight.early_slope),
        "slope": None if insight.slope is None else insight.slope.value,
        "goodput_max_concurrency": insight.goodput_max_concurrency,
        "goodput_max_per_second": number(insight.goodput_max_per_second),
        "limit": insight.limit.value,
        "words": list(insight.words),
    }


def sweep_summary(record: SweepRecord) -> Document:
    """A sweep without its curve, as lists show it."""
    return {
        "sweep_id": record.sweep_id,
        "backend": record.backend,
        "mode": record.mode,
        "trigger": record.trigger,
        "outcome": None if record.outcome is None else record.outcome.value,
        "grade": None if record.grade is None else record.grade.value,
        "capacity": capacity_document(record.capacity),
        "requests": record.requests,
        "duration_s": number(record.duration_s),
        "overload_s": number(record.overload_s),
        "reason": record.reason,
        "remedy": record.remedy,
        "warnings": list(record.warnings),
        "started_at": timestamp(record.started_at),
        "ended_at": timestamp(record.ended_at),
    }


def burst_document(burst: BurstReport | None) -> Document | None:
    if burst is None:
        return None
    return {
        "concurrency": burst.concurrency,
        "bursts": burst.bursts,
        "n": burst.n,
        "exceedances": burst.exceedances,
        "metric": burst.metric,
        "burst_s": latency_document(burst.burst),
        "steady_s": None if burst.steady is None else latency_document(burst.steady),
    }


def level_document(level: LevelReport) -> Document:
    """One point of the curve."""
    return {
        "concurrency": level.concurrency,
        "achieved_concurrency": number(level.achieved_concurrency),
        "n": level.n,
        "exceedances": level.exceedances,
        "verdict": level.verdict.kind.value,
        "reasons": list(level.verdict.reasons),
        **{f"{name}_s": latency_document(getattr(level, name)) for name in LATENCIES},
        "requests_per_second": number(level.requests_per_second),
        "prompt_tokens_per_second": number(level.prompt_tokens_per_second),
        "output_tokens_per_second": number(level.output_tokens_per_second),
        "goodput_per_second": number(level.goodput_per_second),
        "errors": dict(level.errors),
        "requests": level.requests,
        "objectives": [
            {
                "objective": verdict.objective,
                "verdict": verdict.kind.value,
                "n": verdict.n,
                "effective_n": number(verdict.effective_n),
                "exceedances": verdict.exceedances,
                "exceedance_ratio_interval": [number(verdict.ratio_low), number(verdict.ratio_high)],
                "reason": verdict.reason,
                "unmeasured": {code.value: count for code, count in verdict.missing},
            }
            for verdict in level.verdict.objectives
        ],
        "audit": {
            "loop_lag_p99_s": number(level.audit.loop_lag_p99_s),
            "send_delay_p99_s": number(level.audit.send_delay_p99_s),
            "cpu_ratio": number(level.audit.cpu_ratio),
            "reasons": list(level.audit.reasons),
        },
        "server": {
            "running_requests": number(level.server.running_requests),
            "waiting_requests": number(level.server.waiting_requests),
            "kv_usage_ratio": number(level.server.kv_usage_ratio),
            "preemptions": number(level.server.preemptions),
        },
    }


def latency_document(summary: LatencySummary) -> Document:
    """`{p50, p90, p99}` in seconds, each followed by its 95 % interval `[low, high]`; an unbounded high is null."""
    document: Document = {}
    for name, _ in QUANTILES:
        estimate: QuantileEstimate | None = getattr(summary, name)
        document[name] = None if estimate is None else number(estimate.value_s)
    for name, _ in QUANTILES:
        estimate = getattr(summary, name)
        interval = None if estimate is None else [number(estimate.low_s), number(estimate.high_s)]
        document[f"{name}_interval"] = interval
    return document


def capacity_document(capacity: Capacity | None) -> Document | None:
    if capacity is None:
        return None
    return {"estimate": capacity.estimate, "low": capacity.low, "high": capacity.high}


def number(value: float | None) -> float | None:
    """Six significant digits; None for what is not a finite number."""
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.6g}")


def timestamp(unix_s: float | None) -> str | None:
    """`2027-01-15T08:00:00.000Z`."""
    if unix_s is None:
        return None
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
