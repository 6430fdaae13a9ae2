"""What an engine says about itself, one scrape at a time. What it does not say is None, never 0."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """One scrape of one replica. Gauges are the moment's; counters count since the engine started."""

    engine: str  # name of the engine's row in `telemetry.engines`
    running_requests: float | None = None
    waiting_requests: float | None = None
    kv_usage_ratio: float | None = None
    preemptions_total: float | None = None
    process_start: str | None = None  # opaque: a change means that the engine restarted

    @property
    def in_flight_requests(self) -> float | None:
        if self.running_requests is None:
            return None
        return self.running_requests + (self.waiting_requests or 0.0)


@dataclass(frozen=True, slots=True)
class ServerLoadPeak:
    """Worst of the scrapes seen during a visit; what was never seen is None."""

    scrapes: int = 0
    running_requests: float | None = None
    waiting_requests: float | None = None
    kv_usage_ratio: float | None = None
    preemptions: float | None = None  # increase over the visit

    @property
    def shows_pressure(self) -> bool:
        """The brake of the ramp: queueing, KV memory above 80 %, or preemptions; never evidence to pass."""
        return (self.waiting_requests or 0) > 0 or (self.kv_usage_ratio or 0) > 0.8 or (self.preemptions or 0) > 0
