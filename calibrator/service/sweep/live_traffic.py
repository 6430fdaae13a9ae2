"""Live traffic during a sweep: feeds `core.live.organic_load` with our counts and the scrapes, and answers for the
sweep.

    batches ─▶ ours ─┐
    scrapes ─▶ saw  ─┴▶ estimate ─▶ how many probes, which samples, which levels, what became suspect

An engine that shows no load is measured as if it were alone, and the record says so.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from calibrator.core.live.organic_load import MEMORY_S, OrganicWatch, is_suspect
from calibrator.core.records.history import Stage
from calibrator.core.records.server_load import ServerLoad
from calibrator.ports.clock import Clock

FIRST_LOOK_S = 5.0  # that a sweep waits for the first scrape
SAME_S = 1e-6  # a stage that ended when the scrape was told has not seen it
BASELINE_S = 5.0  # and, where there is live traffic, until it knows how much


@dataclass(frozen=True, slots=True)
class Doubt:
    """The organic load changed by `requests` at some moment between `since_s` and `seen_s`.

    Of `gauges` that were wrong all along: what they told is void.
    """

    since_s: float
    seen_s: float
    requests: float
    gauges: bool = False


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
            self.doubts.append(Doubt(watch.doubt_s, self.clock.monotonic(), watch.doubt, watch.is_blind))
        while self.doubts and self.doubts[0].seen_s < answered_s - MEMORY_S:
            self.doubts.popleft()

    def voided(self, stages: Sequence[Stage], origin_s: float) -> tuple[Stage, ...]:
        """The same; void where the organic load had changed at their end before anybody could see it."""
        return tuple(self._voided(stage, stage.ended_at_s + origin_s) for stage in stages)

    def _voided(self, stage: Stage, ended_s: float) -> Stage:
        for doubt in self.doubts:
            if not doubt.since_s < ended_s <= doubt.seen_s + SAME_S:
                continue
            if doubt.gauges and is_suspect(stage.level, stage.organic or 0.0):
                words = f"{self.watch.scale.fault}: it was held beside users that there may not be"
                return replace(stage, level_lost=words)
            if not doubt.gauges and is_suspect(stage.level, doubt.requests):
                return replace(stage, level_lost=f"live traffic changed by {doubt.requests:.0f} requests at its end")
        return stage

    def left(self, stage: Stage) -> Stage:
        """The same; void if live traffic left no room to measure its level."""
        floor = self.watch.floor
        has_evidence = stage.ramp_failed or min(part.n for part in stage.evidence) > 0
        if stage.level > floor or has_evidence:
            return stage
        words = f"live traffic alone holds about {floor} in flight, so {stage.level} could not be held"
        return replace(stage, level_lost=words)

    def warnings(self, problem: str) -> tuple[str, ...]:
        """Codes, causes and remedies. `problem`: what the telemetry says of its last scrape."""
        scale = self.watch.scale
        if scale.fault is not None:
            cause = f"the engine's gauges do not count each of our requests once ({scale.words})"
            remedy = "Give the metrics_url of the engine itself; if it is, please report its page."
            return (f"{scale.fault}: live traffic could not be seen: {cause}. {remedy}",)
        if self.watch.looks == 0:
            why = problem or "The engine shows no running requests on a metrics page."
            return (f"live_traffic_unknown: live traffic could not be seen. {why}",)
        return ()
