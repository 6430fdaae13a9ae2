"""Core values as documents: what a field is called otherwise there, and what is derived; the rest goes by name."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_jsonable_python

from calibrator.core.publish.snapshot import BackendView, Override, Recommendation
from calibrator.core.records.sweep import LevelReport, SweepRecord
from calibrator.core.report.curve import read_curve
from calibrator.core.report.formats import LATENCIES, QUANTILES
from calibrator.core.stats.quantile import LatencySummary
from calibrator.ports.sharing import Poller
from calibrator.web.wire.backends import BackendDocument, GuardDocument, OverrideDocument
from calibrator.web.wire.base import projected
from calibrator.web.wire.events import ClientDocument, OverrideEntry, RecommendationDocument
from calibrator.web.wire.sweeps import (
    AbortDocument,
    BurstDocument,
    LatencyDocument,
    LevelDocument,
    ObjectiveVerdictDocument,
    ProvenanceDocument,
    SweepDocument,
)


# ---------------------------------------------------------------------------------------------------------- backends
def backend_document(view: BackendView, now: float) -> BackendDocument:
    """Everything about one backend but its history."""
    published = view.recommendation
    return projected(
        BackendDocument,
        view,
        published,
        state=view.state_at(now),
        counted_replicas=published.replicas,
        measured_by=view.measured_by or view.name,
        in_flight={"organic": view.organic_in_flight, "probe": view.probe_in_flight},
        override=override_document(view),
        guard=_guard(view),
        shadow=view.shadow is not None,
        gateway_cap=view.served_cap,
    )


def override_document(view: BackendView) -> OverrideDocument | None:
    underlying = view.underlying
    if view.override is None or underlying is None:
        return None
    return projected(OverrideDocument, view.override, underlying_cap=underlying.cap, underlying_state=underlying.state)


def _guard(view: BackendView) -> GuardDocument | None:
    before_cut = (view.underlying or view.recommendation).before_cut
    if view.guard is None:
        return None
    return projected(
        GuardDocument,
        view.guard,
        guarded_since=None if before_cut is None else before_cut.since,
        cap_before_cut=None if before_cut is None else before_cut.cap,
    )


def recommendation_document(published: Recommendation) -> RecommendationDocument:
    return projected(RecommendationDocument, published, replicas=max(1, published.replicas))


def client_document(poller: Poller) -> ClientDocument:
    return projected(
        ClientDocument,
        poller,
        share=poller.share or None,
        seen_age_s=round(max(0.0, poller.seen_age_s), 3),
        gap_s=round(poller.gap_s, 3),
    )


def override_entry(override: Override) -> OverrideEntry:
    return projected(OverrideEntry, override, ends_at=override.expires_at)


# ------------------------------------------------------------------------------------------------------------ sweeps
def published_sweep(view: BackendView, record: SweepRecord) -> SweepDocument:
    """A sweep with the cap that is published because of it."""
    published = view.recommendation
    return sweep_document(record, cap=published.cap if published.sweep_id == record.sweep_id else None)


def sweep_document(record: SweepRecord, *, cap: int | None) -> SweepDocument:
    """A sweep and everything behind its number. `cap`: what is published because of it; None if nothing is."""
    objectives, burst, aborted = record.history.objectives, record.burst, record.aborted
    return projected(
        SweepDocument,
        record,
        cap=cap,
        aborted=None if aborted is None else AbortDocument(reason=aborted.reason, message=aborted.words),
        provenance=projected(ProvenanceDocument, record.provenance, objectives=objectives),
        insight=read_curve(record.levels, objectives, record.capacity),
        burst=None
        if burst is None
        else projected(
            BurstDocument,
            burst,
            burst_s=latency_document(burst.burst),
            steady_s=None if burst.steady is None else latency_document(burst.steady),
        ),
        levels=[level_document(level) for level in record.levels],
        history=to_jsonable_python(record.history, inf_nan_mode="strings"),
    )


def level_document(level: LevelReport) -> LevelDocument:
    """One point of the curve."""
    return projected(
        LevelDocument,
        level,
        verdict=level.verdict.kind,
        reasons=level.verdict.reasons,
        **{f"{name}_s": latency_document(getattr(level, name)) for name in LATENCIES},
        errors=dict(level.errors),
        objectives=[
            projected(
                ObjectiveVerdictDocument,
                one,
                verdict=one.kind,
                unmeasured={code.value: count for code, count in one.missing},
                exceedance_ratio_interval=[one.ratio_low, one.ratio_high],
            )
            for one in level.verdict.objectives
        ],
    )


def latency_document(summary: LatencySummary) -> LatencyDocument:
    values: dict[str, Any] = {}
    for name, _ in QUANTILES:
        estimate = getattr(summary, name)
        values[name] = None if estimate is None else estimate.value_s
        values[f"{name}_interval"] = None if estimate is None else [estimate.low_s, estimate.high_s]
    return LatencyDocument.model_validate(values)
