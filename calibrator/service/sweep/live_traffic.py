"""Live traffic during a sweep: feeds `core.live.organic_load` with our counts and the scrapes, and answers for the
sweep.

    batches ─▶ ours ─┐
    scrapes ─▶ saw  ─┴▶ estimate ─▶ how many probes, which samples, which levels, what became doubtful

An engine that shows no load is measured as if it were alone, and the record says so.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from calibrator.core.live.organic_load import MEMORY_S, OrganicWatch, is_doubtful
from calibrator.core.records.history import Visit
from calibrator.core.records.server_load import ServerLoad
from calibrator.ports.clock import Clock

FIRST_LOOK_S = 5.0  # that a sweep waits for the first scrape
SAME_S = 1e-6  # a visit that ended when the scrape was told has not seen it
BASELINE_S = 5.0  # and, where there is live traffic, until it knows how much


@dataclass(frozen=True, slots=True)
class Doubt:
    """The organic load changed by `requests` at some moment between `since_s` and `seen_s`."""

    since_s: float
    seen_s: float
    requests: float


@dataclass(slots=True)
class LiveTraffic:
    """One for each sweep."""

    clock: Clock
    watch: OrganicWatch = field(default_factory=OrganicWatch)
    doubts: deque[Doubt] = field(default_factory=deque)
    most: float = 0.0
    _looked: asyncio.Event = field(default_factory=asyncio.Event)

    async def begin(self) -> None:
        """Until the organic load is known, or cannot be."""
        try:
            async with asyncio.timeout(FIRST_LOOK_S):
                await self._looked.wait()
        except TimeoutError:
            return
        if self.watch.estimate:
            await self.clock.sleep(BASELINE_S)

    def saw(self, asked_s: float, answered_s: float, load: ServerLoad | None) -> None:
        """One scrape, or None where none came."""
        self._looked.set()
        if load is None or load.in_flight_requests is None:
            return
        watch = self.watch
        watch.saw(asked_s, answered_s, load.in_flight_requests)
        self.most = max(self.most, watch.estimate or 0.0)
        if watch.doubt > 0.0:
            self.doubts.append(Doubt(watch.doubt_s, self.clock.monotonic(), watch.doubt))
        while self.doubts and self.doubts[0].seen_s < answered_s - MEMORY_S:
            self.doubts.popleft()

    def voided(self, visits: Sequence[Visit], origin_s: float) -> tuple[Visit, ...]:
        """The same; void where the organic load had changed at their end before anybody could see it."""
        return tuple(self._voided(visit, visit.ended_at_s + origin_s) for visit in visits)

    def _voided(self, visit: Visit, ended_s: float) -> Visit:
        for doubt in self.doubts:
            if doubt.since_s < ended_s <= doubt.seen_s + SAME_S and is_doubtful(visit.level, doubt.requests):
                return replace(visit, unheld=f"live traffic changed by {doubt.requests:.0f} requests at its end")
        return visit

    def left(self, visit: Visit) -> Visit:
        """The same; void if live traffic left no room to measure its level."""
        floor = self.watch.floor
        has_evidence = visit.ramp_failed or min(part.n for part in visit.evidence) > 0
        if visit.level > floor or has_evidence:
            return visit
        words = f"live traffic alone holds about {floor} in flight, so {visit.level} could not be held"
        return replace(visit, unheld=words)

    @property
    def warnings(self) -> tuple[str, ...]:
        if self.watch.is_blind:
            return ("live traffic could not be seen: the engine's metrics do not count our requests",)
        if self.watch.looks == 0:
            return ("live traffic could not be seen: the engine shows no running requests on a metrics page",)
        return ()
