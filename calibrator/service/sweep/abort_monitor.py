"""Monitors what a running sweep does to live users (`core.live.abort`) and what it spends, and says when to stop.

    batches ─▶ record  ─┐
    scrapes ─▶ scraped ─┴▶ must_stop ─▶ the stage ends ─▶ conclusion ─▶ the sweep ends, all connections are closed

A scrape is judged `SETTLE_S` after it was taken: our own events arrive in batches, and a probe that the engine counts
before we do must not be mistaken for a user.
"""

from __future__ import annotations

from calibrator.core.live.abort import AbortRules
from calibrator.core.records.harm import Abort, Harm
from calibrator.core.records.history import History
from calibrator.core.records.server_load import ServerLoad
from calibrator.core.records.sweep import EndReason, SweepOutcome
from calibrator.core.search.policy import aborted, given_up
from calibrator.core.search.steps import Conclusion, Ending
from calibrator.ports.clock import Clock
from calibrator.ports.load import Batch
from calibrator.ports.sweeps import SweepOrder

SETTLE_S = 0.1  # two polls of the generator


class AbortedError(Exception):
    """Unwinds what runs after the search; never leaves the sweep."""


class AbortMonitor:
    """One for each sweep."""

    def __init__(self, order: SweepOrder, clock: Clock) -> None:
        self._order = order
        self._clock = clock
        self._rules = AbortRules(order.objectives, order.abort, order.bounds.overload_s)
        self._in_flight = 0
        self._tokens = 0
        self._completed = 0
        self.abort: Abort | None = None

    def record(self, batch: Batch) -> None:
        for start in batch.started:
            self._rules.started(start.request_id, start.started_s)
        for bit in batch.decided:
            self._rules.decided(bit.request_id, bit.objective, violated=bit.violated)
        for sample in batch.ended:
            self._rules.ended(sample)
            self._tokens += (sample.prompt_tokens or 0) + (sample.completion_tokens or 0)
            self._completed += sample.completed
        self._in_flight = batch.in_flight
        self._rules.ours(self._clock.monotonic(), batch.in_flight)

    async def scraped(self, asked_s: float, load: ServerLoad | None) -> None:
        """One scrape, begun at `asked_s`, or None where none came."""
        await self._clock.sleep(SETTLE_S)
        found = self._rules.scraped(self._clock.monotonic(), load, self._in_flight, asked_s)
        self.abort = self.abort or found

    def must_stop(self, history: History) -> bool:
        return self.abort is not None or self._spent(history) is not None

    def conclusion(self, history: History) -> Conclusion | None:
        """None: the sweep may go on."""
        order = self._order
        if self.abort is not None:
            why = Ending(EndReason.ABORTED, f"aborted: {self.abort.words}")
            return _unless_levels(order, why) or aborted(history, order.bounds, why)
        spent = self._spent(history)
        if spent is None:
            return None
        return _unless_levels(order, spent) or given_up(history, order.bounds, spent)

    def _spent(self, history: History) -> Ending | None:
        """The limit that was reached."""
        limits = self._order.limits
        if limits.requests is not None and history.requests >= limits.requests:
            return Ending(EndReason.DAY_REQUESTS, f"the requests left for today are spent ({history.requests} sent)")
        if limits.tokens is not None and self._tokens + self._open_tokens >= limits.tokens:
            return Ending(EndReason.TOKENS, f"the token budget is spent ({self._tokens:,})")
        if limits.ends_at is not None and self._clock.wall() >= limits.ends_at:
            return Ending(EndReason.WINDOW, "the window closed")
        return None

    @property
    def _open_tokens(self) -> float:
        """What the requests in flight are expected to cost."""
        return self._in_flight * self._tokens / self._completed if self._completed else 0.0

    @property
    def harm(self) -> Harm:
        return self._rules.harm

    def overload(self, origin_s: float) -> list[tuple[float, float]]:
        """Spells in which live requests were above the zone, on the sweep's clock."""
        return [(start_s - origin_s, end_s - origin_s) for start_s, end_s in self._rules.overload]


def _unless_levels(order: SweepOrder, why: Ending) -> Conclusion | None:
    """Explicitly requested levels are not a search: some of them alone support no conclusion."""
    return Conclusion(SweepOutcome.INCONCLUSIVE, None, None, why) if order.levels else None
