"""One backend of the snapshot as its JSON document."""

from __future__ import annotations

from dataclasses import asdict

from calibrator.core.render import capacity_document, number, timestamp
from calibrator.core.snapshot import BackendView, Progress, Rates, SweepSummary
from calibrator.web.models import BackendDocument


def backend_document(view: BackendView, now: float) -> BackendDocument:
    """Everything about one backend but its history."""
    published, last, running = view.recommendation, view.last_sweep, view.progress
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
            "in_flight": {"organic": number(view.organic_in_flight), "probe": view.probe_in_flight},
            "headroom": number(view.headroom),
            "headroom_ratio": None if view.headroom is None else number(view.headroom / published.cap),
            "progress": None if running is None else _rounded(running),
            "last_sweep": None if last is None else _last_sweep(last),
            "next_sweep_at": timestamp(view.next_sweep_at),
        }
    )


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
