"""One backend of the snapshot as its JSON document."""

from __future__ import annotations

from dataclasses import asdict

from calibrator.core.admission.admission import Deferral
from calibrator.core.publish.snapshot import BackendView, Override, Progress, Rates, Recommendation, SweepSummary
from calibrator.core.records.sweep import SweepRecord
from calibrator.core.report.documents import capacity_document, number, sweep_document, timestamp
from calibrator.ports.sharing import Poller
from calibrator.web.wire.backends import BackendDocument
from calibrator.web.wire.events import ClientDocument, PinDocument, RecommendationDocument
from calibrator.web.wire.sweeps import SweepDocument


def backend_document(view: BackendView, now: float) -> BackendDocument:
    """Everything about one backend but its history."""
    published, last, running = view.recommendation, view.last_sweep, view.progress
    held = view.deferred
    return BackendDocument.model_validate(
        {
            "name": view.name,
            "model": view.model,
            "engine": view.engine,
            "objectives": list(view.objectives),
            "health": view.health,
            "health_reason": view.health_reason,
            "up": view.up,
            "state": view.state_at(now),
            "grade": published.grade,
            "cap": published.cap,
            "replica_cap": published.replica_cap,
            "fallback_cap": view.fallback_cap,
            "capacity": capacity_document(published.capacity),
            "version": published.version,
            "reason": published.reason,
            "published_at": timestamp(published.published_at),
            "measured_at": timestamp(published.measured_at),
            "valid_until": timestamp(published.valid_until),
            "rates": None if published.rates is None else _rounded(published.rates),
            "max_queue_wait_s": number(published.max_queue_wait_s),
            "warnings": list(published.warnings),
            "ready_replicas": view.ready_replicas,
            "counted_replicas": published.replicas,
            "balance_factor": number(published.balance_factor),
            "replicas": [asdict(replica) for replica in view.replicas],
            "discovery_problem": view.discovery_problem or None,
            "measured_by": view.measured_by or view.name,
            "in_flight": {"organic": number(view.organic_in_flight), "probe": view.probe_in_flight},
            "headroom": number(view.headroom),
            "headroom_ratio": None if view.headroom is None else number(view.headroom / published.cap),
            "override": override_document(view),
            "guard": _guard(view),
            "gateway_clients": view.gateway_clients,
            "gateway_clients_over_cap": view.gateway_clients_over_cap,
            "progress": None if running is None else _rounded(running),
            "last_sweep": None if last is None else _last_sweep(last),
            "next_sweep_at": timestamp(view.next_sweep_at),
            "traffic_note": view.traffic_note or None,
            "metrics_problem": view.metrics_problem or None,
            "lease_held": view.lease_held,
            "store_problem": view.store_problem or None,
            "queued": view.queued or None,
            "deferred": None if held is None else _deferral(held),
            "trend": [{"at": timestamp(one.at), "cap": one.cap, "state": one.state} for one in view.trend],
            "shadow": view.shadow is not None,
            "gateway_cap": view.served_cap,
        }
    )


def published_sweep(view: BackendView, record: SweepRecord) -> SweepDocument:
    """A sweep with the cap that is published because of it."""
    published = view.recommendation
    cap = published.cap if published.sweep_id == record.sweep_id else None
    return SweepDocument.model_validate(sweep_document(record, cap=cap))


def override_document(view: BackendView) -> dict[str, object] | None:
    pin, underlying = view.override, view.underlying
    if pin is None or underlying is None:
        return None
    return {
        "cap": pin.cap,
        "reason": pin.reason,
        "author": pin.author,
        "set_at": timestamp(pin.set_at),
        "expires_at": timestamp(pin.expires_at),
        "underlying_cap": underlying.cap,
        "underlying_state": underlying.state,
    }


def _guard(view: BackendView) -> dict[str, object] | None:
    guard, before_cut = view.guard, (view.underlying or view.recommendation).before_cut
    if guard is None:
        return None
    return {
        "is_watching": guard.is_watching,
        "bounds_s": guard.bounds_s,
        "guarded_since": None if before_cut is None else timestamp(before_cut.since),
        "cap_before_cut": None if before_cut is None else before_cut.cap,
        "breach_reason": guard.breach_reason,
        "breach_since": timestamp(guard.breach_since),
        "trips": guard.trips,
    }


def _deferral(held: Deferral) -> dict[str, object]:
    return {"reason": held.reason, "words": held.words, "until": timestamp(held.until)}


def _last_sweep(last: SweepSummary) -> dict[str, object]:
    return {
        "sweep_id": last.sweep_id,
        "outcome": last.outcome,
        "grade": last.grade,
        "capacity": capacity_document(last.capacity),
        "requests": last.requests,
        "duration_s": number(last.duration_s),
        "reason": last.reason,
        "started_at": timestamp(last.started_at),
        "ended_at": timestamp(last.ended_at),
    }


def _rounded(value: Progress | Rates) -> dict[str, object]:
    return {key: number(item) if isinstance(item, float) else item for key, item in asdict(value).items()}


def recommendation_document(published: Recommendation) -> RecommendationDocument:
    return RecommendationDocument.model_validate(
        {
            "version": published.version,
            "published_at": timestamp(published.published_at),
            "cap": published.cap,
            "replica_cap": published.replica_cap,
            "replicas": max(1, published.replicas),
            "balance_factor": number(published.balance_factor),
            "state": published.state,
            "grade": published.grade,
            "capacity": capacity_document(published.capacity),
            "reason": published.reason,
            "measured_at": timestamp(published.measured_at),
            "valid_until": timestamp(published.valid_until),
            "sweep_id": published.sweep_id,
        }
    )


def client_document(poller: Poller) -> ClientDocument:
    return ClientDocument(
        client=poller.client,
        per_replica=poller.per_replica,
        share=poller.share or None,
        target=poller.target,
        seen_age_s=round(max(0.0, poller.seen_age_s), 3),
        gap_s=round(poller.gap_s, 3),
    )


def pin_document(pin: Override) -> PinDocument:
    return PinDocument.model_validate(
        {
            "cap": pin.cap,
            "reason": pin.reason,
            "author": pin.author,
            "set_at": timestamp(pin.set_at),
            "ends_at": timestamp(pin.expires_at),
        }
    )
