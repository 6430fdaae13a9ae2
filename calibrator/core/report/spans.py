"""A sweep as a trace: spans are derived from its record once it has ended.

    sweep ─┬─ preflight
           ├─ level {calibrator.concurrency: 1}
           ├─ level {calibrator.concurrency: 2} ...
           └─ burst

Nothing is exported while latencies are measured: an exporter would share the cores and the network with the probes.
Probes need the ids before the end, so ids are derived from the sweep's id rather than random: their `traceparent` (W3C
Trace Context) names the trace of the sweep, with the span of the level as parent, whether or not these spans are
exported. So the engine's own traces and logs of a probe lead to the sweep.

Probes are marked as sampled only on request (`sampled_ratio`): otherwise a sweep would fill tracing stores with
thousands of traces of requests that no user sent.

Times: a record has wall times of its start and end and durations in between; levels are placed backwards from the end.
Of an interrupted sweep only the start is exact, and its levels may be late by up to the duration of the running level.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from urllib.parse import urlsplit

from calibrator.core.records.history import Stage
from calibrator.core.records.sweep import SweepOutcome, SweepRecord
from calibrator.core.search.burst import FIRST_BURST_STAGE

Value = str | bool | int | float | Sequence[str]
SWEEP, PREFLIGHT, LEVEL, BURST = "sweep", "preflight", "level", "burst"


@dataclass(frozen=True, slots=True)
class Span:
    """`started_at`, `ended_at` are Unix seconds; attributes hold only what is known."""

    name: str
    span_id: int  # 64 bits, not 0
    started_at: float
    ended_at: float
    attributes: Mapping[str, Value]
    error: str = ""  # why it failed


@dataclass(frozen=True, slots=True)
class SweepTrace:
    trace_id: int  # 128 bits, not 0
    root: Span
    children: tuple[Span, ...]


# --------------------------------------------------------------------------------------------------------------- ids
@lru_cache(maxsize=16)  # called for every probe
def trace_id(sweep_id: str) -> int:
    return _hashed(sweep_id, 16)


@lru_cache(maxsize=256)  # likewise, for that of its level
def span_id(sweep_id: str, stage: int = 0) -> int:
    """Of the span that a probe with this label belongs to; 0: of the sweep's own."""
    return _hashed(f"{sweep_id}/{min(stage, FIRST_BURST_STAGE)}", 8)


def _hashed(text: str, octets: int) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=octets).digest()) or 1


@dataclass(frozen=True, slots=True)
class ProbeTrace:
    """The trace context of the probes of a sweep. Picklable."""

    sweep_id: str
    sampled_ratio: float = 0.0

    def traceparent(self, request_id: int, stage: int) -> str:
        """https://www.w3.org/TR/trace-context/#traceparent-header"""
        is_sampled = int((request_id + 1) * self.sampled_ratio) > int(request_id * self.sampled_ratio)
        return f"00-{trace_id(self.sweep_id):032x}-{span_id(self.sweep_id, stage):016x}-{is_sampled:02x}"


# ------------------------------------------------------------------------------------------------------------- spans
def sweep_trace(record: SweepRecord, ended_at: float) -> SweepTrace:
    """`ended_at` counts where the record has no end of its own."""
    ended_at = ended_at if record.ended_at is None else record.ended_at
    stages = record.history.stages
    last_s = stages[-1].ended_at_s if stages else 0.0
    origin = max(record.started_at, min(ended_at - record.duration_s, ended_at - last_s))
    children = [Span(PREFLIGHT, _hashed(f"{record.sweep_id}/{PREFLIGHT}", 8), record.started_at, origin, {})]
    children += _levels(record, origin)
    if record.burst is not None:
        burst = {"calibrator.concurrency": record.burst.concurrency, "calibrator.bursts": record.burst.bursts,
                 "calibrator.exceedances": record.burst.exceedances}  # fmt: skip
        children.append(Span(BURST, span_id(record.sweep_id, FIRST_BURST_STAGE), origin + last_s, ended_at, burst))
    error = f"{record.reason} {record.remedy}".strip() if record.outcome is SweepOutcome.ERROR else ""
    root = Span(SWEEP, span_id(record.sweep_id), record.started_at, ended_at, _of_sweep(record), error)
    return SweepTrace(trace_id(record.sweep_id), root, tuple(children))


def _of_sweep(record: SweepRecord) -> dict[str, Value]:
    url = urlsplit(record.provenance.url)
    known: dict[str, Value | None] = {
        "calibrator.sweep_id": record.sweep_id,
        "calibrator.backend": record.backend,
        "calibrator.outcome": record.outcome and record.outcome.value,
        "calibrator.grade": record.grade and record.grade.value,
        "calibrator.reason": record.reason,
        "calibrator.trigger": record.trigger or None,
        "calibrator.objectives": tuple(str(one) for one in record.history.objectives),
        "calibrator.requests": record.requests,
        "calibrator.prompt_tokens": record.prompt_tokens,
        "calibrator.output_tokens": record.output_tokens,
        "calibrator.overload_s": record.overload_s,
        "calibrator.warnings": record.warnings or None,
        "gen_ai.request.model": record.provenance.model,
        "server.address": url.hostname,
        "server.port": url.port,
    }
    if record.capacity is not None:
        known |= {
            "calibrator.capacity.estimate": record.capacity.estimate,
            "calibrator.capacity.low": record.capacity.low,
            "calibrator.capacity.high": record.capacity.high,
        }
    return _known(known)


def _levels(record: SweepRecord, origin: float) -> Iterator[Span]:
    verdicts = {level.concurrency: level.verdict.kind.value for level in record.levels}
    for number, group in itertools.groupby(record.history.stages, key=lambda stage: stage.number):
        stages = tuple(group)
        yield Span(
            LEVEL,
            span_id(record.sweep_id, number),
            origin + stages[0].started_at_s,
            origin + stages[-1].ended_at_s,
            _of_level(stages, verdicts.get(stages[0].level)),
        )


def _of_level(stages: Sequence[Stage], verdict: str | None) -> dict[str, Value]:
    last = stages[-1]
    return _known(
        {
            "calibrator.concurrency": last.level,
            "calibrator.verdict": verdict,  # of the level, by all its stages
            "calibrator.requests": sum(stage.requests for stage in stages),
            "calibrator.counted_requests": sum(min(part.n for part in stage.evidence) for stage in stages),
            "calibrator.exceedances": max(part.exceedances for stage in stages for part in stage.evidence),
            "calibrator.residence_s": last.residence_s or None,
            "calibrator.organic_in_flight": last.organic,
            "calibrator.invalid_reasons": tuple(reason for stage in stages for reason in stage.invalid_reasons) or None,
            "calibrator.engine.running_requests": last.server.running_requests,
            "calibrator.engine.waiting_requests": last.server.waiting_requests,
            "calibrator.engine.kv_usage_ratio": last.server.kv_usage_ratio,
        }
    )


def _known(attributes: Mapping[str, Value | None]) -> dict[str, Value]:
    return {name: value for name, value in attributes.items() if value is not None}
