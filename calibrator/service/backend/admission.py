"""Decides whether a sweep of a backend may start: what was spent in the last day, and the situation of now.

After a restart spending is read from the store, interrupted sweeps with what they had sent by their last stage. Its
age is counted by the monotonic clock from then on, so that setting the wall clock frees no budget. The decision itself
is `core.admission.admit`.

**Gentler.** A sweep that was ended because users suffered at some level is not repeated up to that level: each one that
follows stays below `core.records.harm.ceiling`, until one was conclusive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from calibrator.core.admission.admission import DAY_S, Admitted, Deferral, Situation, Spending, admit
from calibrator.core.records.harm import ceiling
from calibrator.core.records.sweep import SweepRecord
from calibrator.core.report.documents import timestamp
from calibrator.core.search.cost import SweepCost, sweep_cost
from calibrator.ports.clock import Clock
from calibrator.ports.store import SweepStore
from calibrator.ports.sweeps import BackendPlan
from calibrator.service.backend.outcome import CONCLUSIVE

TRY_AGAIN_S = 5.0  # where nobody knows when it will be possible
READ_AT_ONCE, READ_MOST = 50, 800  # sweeps; so many in one day there are not


@dataclass(slots=True)
class AdmissionController:
    """One for each backend; owned by the supervisor."""

    plan: BackendPlan
    clock: Clock
    deferred: Deferral | None = None  # the latest decision about a sweep that was due; None: admitted
    _spent: list[tuple[float, Spending]] = field(default_factory=list)  # end (monotonic)
    _cost: SweepCost = field(init=False)
    _ceiling: int | None = None  # levels above it hurt users; until a sweep was conclusive

    def __post_init__(self) -> None:
        self._cost = sweep_cost(self.plan.bounds, self.plan.objectives, self.plan.workload)

    async def restore(self, store: SweepStore, now: float) -> None:
        """Raises StoreError."""
        self._spent = []
        if self.plan.limits.has_day_budget:
            for record in await _sweeps_of_a_day(store, self.plan.name, now):
                self._book(record, now - _ended_at(record))

    def spend(self, record: SweepRecord) -> None:
        """It has just ended."""
        self._book(record, 0.0)
        if record.aborted is None:
            self._ceiling = None if record.outcome in CONCLUSIVE else self._ceiling
        elif record.history.stages:
            hurt = ceiling(record.aborted, record.history.stages[-1].level, record.harm.most_organic)
            known = (one for one in (self._ceiling, hurt) if one is not None)
            self._ceiling = min(known, default=None)

    def _book(self, record: SweepRecord, ago_s: float) -> None:
        now_s = self.clock.monotonic()
        tokens = record.prompt_tokens + record.output_tokens
        one = Spending(_ended_at(record), record.requests, tokens, record.overload_s)
        self._spent = [known for known in self._spent if known[0] > now_s - DAY_S]
        self._spent.append((now_s - max(0.0, ago_s), one))

    def ask(
        self, now: float, *, is_asked: bool, organic: float | None, cap: int, capacity: int | None, replicas: int
    ) -> Admitted | Deferral:
        """May a sweep start now?"""
        now_s = self.clock.monotonic()
        spent = [replace(one, at=now - (now_s - ended_s)) for ended_s, one in self._spent]
        moment = Situation(now, is_asked, organic, cap, capacity, replicas, spent)
        plan = self.plan
        answer = admit(plan.limits, plan.schedule, plan.bounds, self._cost, moment)
        if isinstance(answer, Deferral) or self._ceiling is None:
            return answer
        highest = max(answer.bounds.min_level, min(answer.bounds.max_level, self._ceiling))
        return replace(answer, bounds=replace(answer.bounds, max_level=highest))

    def started(self) -> None:
        """A sweep starts: none is deferred any longer."""
        self.deferred = None

    def defer(self, deferral: Deferral) -> bool:
        """A sweep that was due waits. False: the same rule deferred it before, which need not be logged again."""
        known, self.deferred = self.deferred, deferral
        return known is None or known.reason is not deferral.reason


def remedy_of(deferral: Deferral) -> str:
    """For whoever asked for the sweep."""
    if deferral.until is not None:
        return f"Possible again at {timestamp(deferral.until)}."
    return "Change mode or limits of this backend in the configuration."


def _ended_at(record: SweepRecord) -> float:
    return record.started_at + record.duration_s if record.ended_at is None else record.ended_at


async def _sweeps_of_a_day(store: SweepStore, backend: str, now: float) -> Sequence[SweepRecord]:
    count = READ_AT_ONCE
    while True:
        records = await store.sweeps(backend, count)
        if len(records) < count or records[-1].started_at < now - DAY_S or count >= READ_MOST:
            return [record for record in records if record.started_at + record.duration_s > now - DAY_S]
        count *= 2
