"""What an engine reports about itself, one scrape at a time. What it does not report is None, never 0."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Histogram:
    """An engine's Prometheus histogram: how many observations were at or below each bound since it started.

    `bounds` ascend and end with infinity; `counts` are cumulative, one for each bound.
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]

    @property
    def total(self) -> float:
        return self.counts[-1]

    def since(self, earlier: Histogram) -> Histogram | None:
        """Observations since an earlier scrape. None: the engine restarted in between, or its bounds differ."""
        if self.bounds != earlier.bounds:
            return None
        counts = tuple(now - before for now, before in zip(self.counts, earlier.counts, strict=True))
        return None if min(counts) < 0.0 else Histogram(self.bounds, counts)


def grown(now: float | None, before: float | None) -> float | None:
    """Increase of a counter. None: missing at either end, or it fell, as after a restart."""
    return None if now is None or before is None or now < before else now - before


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """One scrape of one replica. Counters count since the engine started."""

    engine: str  # name of the engine's row in `telemetry.engines`
    running_requests: float | None = None
    waiting_requests: float | None = None
    kv_usage_ratio: float | None = None
    preemptions_total: float | None = None
    process_start: str | None = None  # opaque (`has_restarted`)
    finished_total: float | None = None  # requests that completed
    refused_total: float | None = None  # requests rejected or failed
    prompt_tokens_total: float | None = None
    output_tokens_total: float | None = None
    prefix_queried_tokens_total: float | None = None  # prompt tokens looked up in the prefix cache, and found there
    prefix_hit_tokens_total: float | None = None
    ttft_s: Histogram | None = None
    e2e_s: Histogram | None = None
    tpot_s: Histogram | None = None
    prompt_tokens: Histogram | None = None
    output_tokens: Histogram | None = None
    model: str | None = None  # as named in the metrics
    version: str | None = None

    @property
    def in_flight_requests(self) -> float | None:
        if self.running_requests is None:
            return None
        return self.running_requests + (self.waiting_requests or 0.0)


COUNTERS = (
    "preemptions_total",
    "finished_total",
    "refused_total",
    "prompt_tokens_total",
    "output_tokens_total",
    "prefix_queried_tokens_total",
    "prefix_hit_tokens_total",
)
HISTOGRAMS = ("ttft_s", "e2e_s", "tpot_s", "prompt_tokens", "output_tokens")


def has_restarted(before: ServerLoad, now: ServerLoad) -> bool:
    """Whether another engine process answered the later of two scrapes of one replica.

    A counter that fell means that it did, and so does a start time that changed or vanished. A start time that appears,
    or a counter that is missing in either scrape, does not.
    """
    if before.process_start is not None and now.process_start != before.process_start:
        return True
    return any(
        earlier is not None and later is not None and later < earlier
        for earlier, later in zip(_totals(before), _totals(now), strict=True)
    )


def _totals(load: ServerLoad) -> tuple[float | None, ...]:
    """Everything on the page that can only grow while the process lives."""
    counters: list[float | None] = [getattr(load, name) for name in COUNTERS]
    histograms: list[Histogram | None] = [getattr(load, name) for name in HISTOGRAMS]
    return (*counters, *(None if one is None else one.total for one in histograms))


@dataclass(frozen=True, slots=True)
class ServerLoadPeak:
    """The worst values of a stage's scrapes; None where no scrape had one."""

    scrapes: int = 0
    running_requests: float | None = None
    waiting_requests: float | None = None
    kv_usage_ratio: float | None = None
    preemptions: float | None = None  # increase over the stage

    @property
    def shows_pressure(self) -> bool:
        """Slows the ramp down: queueing, KV cache above 80 %, or preemptions. Never evidence that a level passes."""
        return (self.waiting_requests or 0) > 0 or (self.kv_usage_ratio or 0) > 0.8 or (self.preemptions or 0) > 0
