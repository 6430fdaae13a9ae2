"""The door through which every sweep of a backend passes: what was spent in the last day, and the decision of now.

Spending is remembered from the store after a restart, interrupted sweeps with what they had sent by their last visit.
The decision itself is `core.admission.admit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from calibrator.core.admission import DAY_S, Admitted, HeldBack, Situation, Spending, admit
from calibrator.core.cost import SweepCost, sweep_cost
from calibrator.core.render import timestamp
from calibrator.core.sweep_record import SweepRecord
from calibrator.ports import BackendPlan, Store

TRY_AGAIN_S = 5.0  # where nobody knows when it will be possible
READ_AT_ONCE, READ_MOST = 50, 800  # sweeps; so many in one day there are not


@dataclass(slots=True)
class Door:
    """One for each backend; owned by the supervisor."""

    plan: BackendPlan
    held: HeldBack | None = None  # the latest decision about a sweep that was due
    _spent: list[Spending] = field(default_factory=list)
    _cost: SweepCost = field(init=False)

    def __post_init__(self) -> None:
        self._cost = sweep_cost(self.plan.bounds, self.plan.objectives, self.plan.workload)

    async def restore(self, store: Store, now: float) -> None:
        """Raises StoreError."""
        self._spent = []
        if self.plan.care.has_day_budget:
            for record in await _sweeps_of_a_day(store, self.plan.name, now):
                self.spend(record)

    def spend(self, record: SweepRecord) -> None:
        ended_at = record.started_at + record.duration_s if record.ended_at is None else record.ended_at
        tokens = record.prompt_tokens + record.output_tokens
        self._spent.append(Spending(ended_at, record.requests, tokens, record.overload_s))
        self._spent = [one for one in self._spent if one.at > ended_at - DAY_S]

    def ask(
        self, now: float, *, is_asked: bool, organic: float | None, cap: int, capacity: int | None, replicas: int
    ) -> Admitted | HeldBack:
        """May a sweep start now?"""
        moment = Situation(now, is_asked, organic, cap, capacity, replicas, self._spent)
        plan = self.plan
        return admit(plan.care, plan.schedule, plan.bounds, self._cost, moment)

    def knows(self, held: HeldBack) -> bool:
        """Whether the same rule held the sweep back before: said once is enough."""
        known, self.held = self.held, held
        return known is not None and known.reason is held.reason


def when(held: HeldBack) -> str:
    """The remedy, for who asked."""
    if held.until is not None:
        return f"Possible again at {timestamp(held.until)}."
    return "Change mode or care of this backend in the configuration."


async def _sweeps_of_a_day(store: Store, backend: str, now: float) -> Sequence[SweepRecord]:
    count = READ_AT_ONCE
    while True:
        records = await store.sweeps(backend, count)
        if len(records) < count or records[-1].started_at < now - DAY_S or count >= READ_MOST:
            return [record for record in records if record.started_at + record.duration_s > now - DAY_S]
        count *= 2
