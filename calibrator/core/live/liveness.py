"""Guard signals that need no latency histograms: plain rules, one scrape at a time.

| signal | of one replica |
|---|---|
| silence | requests run, yet none finished and no token came for 10 residences, at least a minute |
| queue | the engine queues more than at the certified level, for two minutes, with at most the cap in flight |

**Residence** by Little's law, mean = integral of in-flight / requests finished, over some ten minutes.

**Frozen pages.** A metrics page that no longer changes looks like an engine that hangs. Users of a hanging engine keep
arriving, so its gauges move: silence counts only if the page changed at least `LIVE_CHANGES` times during it. A replica
that does not answer, restarts or becomes idle starts over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from calibrator.core.records.server_load import ServerLoad, has_restarted
from calibrator.core.records.sweep import LevelReport

RESIDENCE_MEMORY_S = 600.0
SILENCE_RESIDENCES = 10.0
SILENCE_LEAST_S = 60.0
SILENCE_UNKNOWN_S = 300.0  # before any request has finished
LIVE_CHANGES = 3
QUEUE_S = 120.0


@dataclass(frozen=True, slots=True)
class Residence:
    """Mean duration of live requests, exponentially weighted."""

    busy_s: float = 0.0  # requests in flight, integrated over time
    finished: float = 0.0

    @property
    def mean_s(self) -> float | None:
        return self.busy_s / self.finished if self.finished >= 1.0 else None

    def after(self, in_flight: float, finished: float, elapsed_s: float) -> Residence:
        kept = math.exp(-elapsed_s / RESIDENCE_MEMORY_S)
        return Residence(self.busy_s * kept + in_flight * elapsed_s, self.finished * kept + finished)


@dataclass(frozen=True, slots=True)
class Silence:
    """Since when one replica has shown running requests without any progress."""

    since_s: float | None = None
    page: ServerLoad | None = None
    changes: int = 0

    def after(self, load: ServerLoad | None, at_s: float) -> Silence:
        if load is None or not load.running_requests or not _work(load):
            return Silence(page=load)
        if self.since_s is None or self.page is None or has_restarted(self.page, load):
            return Silence(at_s, load)
        if _work(load) != _work(self.page):
            return Silence(at_s, load)
        return Silence(self.since_s, load, self.changes + (load != self.page))

    def outlasts(self, at_s: float, residence_s: float | None) -> bool:
        """Longer than a request takes: such time does not count as clean."""
        return self.since_s is not None and at_s - self.since_s > (residence_s or SILENCE_LEAST_S)

    def is_implausible(self, at_s: float, residence_s: float | None) -> bool:
        if self.since_s is None or self.changes < LIVE_CHANGES:
            return False
        return at_s - self.since_s >= longest_silence_s(residence_s)


def longest_silence_s(residence_s: float | None) -> float:
    """Longer than a working engine is ever silent."""
    return SILENCE_UNKNOWN_S if residence_s is None else max(SILENCE_LEAST_S, SILENCE_RESIDENCES * residence_s)


def finished_total(load: ServerLoad) -> float | None:
    """Requests finished since the start, by whichever series the engine has."""
    if load.finished_total is not None:
        return load.finished_total
    return None if load.e2e_s is None else load.e2e_s.total


def _work(load: ServerLoad) -> tuple[float, ...]:
    """Every counter that grows while the engine works; empty: the page has none."""
    totals = (finished_total(load), load.output_tokens_total, None if load.ttft_s is None else load.ttft_s.total)
    return tuple(total for total in totals if total is not None)


@dataclass(frozen=True, slots=True)
class Queue:
    """Since when one replica has queued more than it should."""

    since_s: float | None = None

    def after(self, load: ServerLoad | None, at_s: float, allowed: float, replica_cap: int) -> Queue:
        in_flight = None if load is None else load.in_flight_requests
        if load is None or in_flight is None or in_flight > replica_cap or (load.waiting_requests or 0.0) <= allowed:
            return Queue()
        return self if self.since_s is not None else Queue(at_s)

    def is_persistent(self, at_s: float) -> bool:
        return self.since_s is not None and at_s - self.since_s >= QUEUE_S


def certified_queue(levels: Sequence[LevelReport], replica_cap: int) -> float:
    """The longest queue in the last sweep at levels up to the cap: it was part of what was certified."""
    seen = (level.server.waiting_requests for level in levels if level.concurrency <= replica_cap)
    return max((waiting for waiting in seen if waiting is not None), default=0.0)
