"""Backends of which everything is known: the largest page that a scrape can get."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calibrator.core.publish.snapshot import BackendView, Snapshot
from calibrator.core.records.harm import AbortReason
from calibrator.core.records.sweep import SweepOutcome
from calibrator.core.report.formats import LATENCIES
from support.web_fakes import calibrated, latency, level, snapshot


def full(name: str, levels: int = 20, **changes: Any) -> BackendView:
    view = calibrated(name)
    assert view.last_sweep is not None
    everything = replace(latency(), p99=latency().p90)
    known: dict[str, Any] = dict.fromkeys(LATENCIES, everything)
    curve = tuple(replace(level(1 + at), **known) for at in range(levels))
    counters = replace(view.counters, sweep_aborts={reason.value: 0 for reason in AbortReason})
    return replace(
        view,
        counters=counters,
        last_sweep=replace(view.last_sweep, levels=curve),
        last_sweep_at={outcome.value: 1.0 for outcome in SweepOutcome},
        **changes,
    )


def fleet(backends: int, levels: int) -> Snapshot:
    return snapshot(*(full(f"b{number}", levels) for number in range(backends)))
