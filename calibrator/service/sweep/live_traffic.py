"""Live traffic during a sweep: passes our counts and the scrapes to `core.live.organic_load`, and invalidates stages.

    batches ─▶ ours    ─┐
    scrapes ─▶ scraped ─┴▶ estimate ─▶ how many probes, which samples, which levels, what became suspect

An engine that shows no load is measured as if there were no live traffic, and the record says so.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from calibrator.core.live.organic_load import MEMORY_S, OrganicEstimate, is_suspect
from calibrator.core.records.history import Stage
from calibrator.core.records.server_load import ServerLoad
from calibrator.ports.clock import Clock

FIRST_SCRAPE_S = 5.0  # how long a sweep waits for the first scrape
BASELINE_S = 5.0  # and, with live traffic, until its level is known
SAME_S = 1e-6  # a stage that ended at the time of a scrape ended before it was evaluated


@dataclass(frozen=True, slots=True)
class LoadChange:
    """The organic load changed by `requests` at some time between `since_s` and `seen_s`.

    With `gauges` they were wrong all along, and all earlier estimates are invalid.
    """

    since_s: float
    seen_s: float
    requests: float
    gauges: bool = False


@dataclass(slots=True)
class LiveTraffic:
    """One for each sweep."""

    clock: Clock
    organic: OrganicEstimate = field(default_factory=OrganicEstimate)
    changes: deque[LoadChange] = field(default_factory=deque)
    most: float = 0.0
    _scraped: asyncio.Event = field(default_factory=asyncio.Event)

    async def begin(self) -> None:
        """Wait until the organic load is known, or cannot be."""
        try:
            async with asyncio.timeout(FIRST_SCRAPE_S):
                await self._scraped.wait()
        except TimeoutError:
            return
        if self.organic.estimate:
            await self.clock.sleep(BASELINE_S)

    def scraped(self, asked_s: float, answered_s: float, load: ServerLoad | None) -> None:
        """One scrape; None: it failed."""
        self._scraped.set()
        if load is None or load.in_flight_requests is None:
            return
        organic = self.organic
        organic.scraped(asked_s, answered_s, load.in_flight_requests)
        self.most = max(self.most, organic.estimate or 0.0)
        if organic.change > 0.0:
            change = LoadChange(organic.suspect_since_s, self.clock.monotonic(), organic.change, organic.is_blind)
            self.changes.append(change)
        while self.changes and self.changes[0].seen_s < answered_s - MEMORY_S:
            self.changes.popleft()

    def invalidated(self, stages: Sequence[Stage], origin_s: float) -> tuple[Stage, ...]:
        """The stages, with those marked invalid at whose end the organic load had changed before it was noticed."""
        return tuple(self._invalidated(stage, stage.ended_at_s + origin_s) for stage in stages)

    def _invalidated(self, stage: Stage, ended_s: float) -> Stage:
        for change in self.changes:
            if not change.since_s < ended_s <= change.seen_s + SAME_S:
                continue
            if change.gauges and is_suspect(stage.level, stage.organic or 0.0):
                words = f"{self.organic.scale.fault}: probes made room for live requests that may not exist"
                return replace(stage, level_lost=words)
            if not change.gauges and is_suspect(stage.level, change.requests):
                return replace(stage, level_lost=f"live traffic changed by {change.requests:.0f} requests at its end")
        return stage

    def left(self, stage: Stage) -> Stage:
        """The stage, marked invalid if live traffic left no room to measure its level."""
        floor = self.organic.floor
        has_evidence = stage.ramp_failed or min(part.n for part in stage.evidence) > 0
        if stage.level > floor or has_evidence:
            return stage
        words = f"live traffic alone holds about {floor} in flight, so {stage.level} could not be held"
        return replace(stage, level_lost=words)

    def warnings(self, problem: str) -> tuple[str, ...]:
        """Codes, causes and remedies. `problem`: of the telemetry's last scrape."""
        scale = self.organic.scale
        if scale.fault is not None:
            cause = f"the engine's gauges do not count each of our requests once ({scale.words})"
            remedy = "Set metrics_url to the engine's own page; if it already is, please report that page."
            return (f"{scale.fault}: live traffic is not visible: {cause}. {remedy}",)
        if self.organic.scrapes == 0:
            why = problem or "The engine has no metrics page with running requests."
            return (f"live_traffic_unknown: live traffic is not visible. {why}",)
        return ()
