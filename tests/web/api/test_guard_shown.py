"""What the guard does is visible: metrics and the backend's document."""

from __future__ import annotations

from dataclasses import replace

from support.virtual_time import run_virtual
from support.web_fakes import EPOCH_S, calibrated

from calibrator.clock import LoopClock
from calibrator.core.live.change_test import GuardReason
from calibrator.core.publish.snapshot import BackendView, CapBeforeCut, GuardView, Snapshot, State
from calibrator.web.prometheus.metrics import MetricsPage
from calibrator.web.wire.documents import backend_document


def guarded() -> BackendView:
    view = calibrated()
    published = replace(
        view.recommendation,
        cap=29,
        state=State.GUARDED,
        before_cut=CapBeforeCut(37, 37, State.CALIBRATED, EPOCH_S - 60.0),
    )
    trips = {reason.value: 0 for reason in GuardReason} | {"latency": 2}
    guard = GuardView(True, {str(view.objectives[0]): 0.5}, trips, "latency", EPOCH_S - 30.0)
    return replace(view, recommendation=published, guard=guard)


def page(view: BackendView) -> str:
    snapshot = Snapshot(EPOCH_S, EPOCH_S, {view.name: view})

    async def exposed() -> str:
        return MetricsPage(lambda: snapshot, LoopClock(), "1").text()

    return run_virtual(exposed())


def test_trips_by_reason_start_at_zero_and_a_breach_is_a_gauge() -> None:
    text = page(guarded())
    assert 'calibrator_guard_trips_total{backend="chat",reason="latency"} 2.0' in text
    for reason in ("queue", "no_completions", "breach_not_concurrency"):
        assert f'calibrator_guard_trips_total{{backend="chat",reason="{reason}"}} 0.0' in text
    assert 'calibrator_guard_breach{backend="chat"} 1.0' in text
    assert 'calibrator_guard_breach{backend="chat"} 0.0' in page(calibrated())
    assert 'calibrator_recommendation_state{backend="chat",state="guarded"} 1.0' in text


def test_the_document_names_the_bound_the_cut_and_the_breach() -> None:
    guard = backend_document(replace(guarded(), progress=None), EPOCH_S).guard
    assert guard is not None
    assert guard.model_dump() == {
        "is_watching": True,
        "bounds_s": {"ttft p99 <= 500ms": 0.5},
        "guarded_since": "2027-01-15T07:59:00.000Z",
        "cap_before_cut": 37,
        "breach_reason": "latency",
        "breach_since": "2027-01-15T07:59:30.000Z",
        "trips": {"latency": 2, "queue": 0, "no_completions": 0, "breach_not_concurrency": 0},
    }
