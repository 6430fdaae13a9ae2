"""The leases of all engine groups: taken, renewed and let go beside the tick, each step bounded.

What may be believed is `core.publish.lease`; this file asks the database and remembers the answers. A lease alone does
not make a holder: first `take_over` reads what the one before left behind. Until that is done nobody leads the group,
and no gateway misses anything, because every instance serves what is stored.

    round:  renew ours, all at once ─▶ who holds the others? ─▶ acquire the free ones ─▶ take over, each in its own task

Any exception is an answer that did not come. A round takes at most three answer limits, so that one bad step does not
cost the leases that could have been renewed after it.

Called by `service.supervisor`; `leads` by everybody who is about to probe or to publish.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from calibrator.core.publish.lease import Ask, LeasePolicy, LeaseState
from calibrator.errors import StoreError
from calibrator.ports.clock import Clock
from calibrator.ports.store import Lease, Leases
from calibrator.service.publishing.store_health import StoreHealth

MAX_AT_ONCE = 8  # questions under way; pools of connections are small
LONGEST_WAIT_S = 1.0  # between two rounds: a take-over that failed is tried again
SHORTEST_WAIT_S = 0.05
RELEASE_LIMIT_S = 0.4

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Answer(Generic[T]):
    given: T


class LeaseManager:
    """Owns what this instance knows of its leases."""

    def __init__(
        self,
        groups: Collection[str],
        leases: Leases,
        holder: str,
        *,
        policy: LeasePolicy,
        clock: Clock,
        health: StoreHealth,
        take_over: Callable[[str], Awaitable[None]],
    ) -> None:
        self._leases = leases
        self._holder = holder
        self._policy = policy
        self._clock = clock
        self._health = health
        self._take_over = take_over
        self._states = dict.fromkeys(groups, LeaseState())
        self._entered: dict[str, int] = {}  # epoch whose predecessor's state was read
        self._entering: dict[str, asyncio.Task[None]] = {}
        self._gate = asyncio.Semaphore(MAX_AT_ONCE)
        self._hurry = asyncio.Event()
        self._log = structlog.get_logger()

    # -------------------------------------------------------------------------------------------------- questions
    @property
    def is_sole(self) -> bool:
        return self._policy.is_sole

    def holds_lease(self, group: str) -> bool:
        """Whether this instance may probe and publish at this moment."""
        state = self._states[group]
        return state.is_leading(self._clock.monotonic()) and self._entered.get(group) == state.epoch

    def until_s(self, group: str) -> float:
        """Until when it may, by the monotonic clock, as far as is known now."""
        return self._states[group].until_s

    def epoch(self, group: str) -> int:
        """0: the lease is not ours. One that only ran out here still is."""
        return self._states[group].epoch

    def lease(self, group: str) -> Lease | None:
        """None while this instance does not lead."""
        return Lease(group, self._holder, self.epoch(group)) if self.holds_lease(group) else None

    # ------------------------------------------------------------------------------------------------- life cycle
    async def begin(self) -> None:
        """Take what is free, and take over, before anything is served. Raises StoreError."""
        for group in self._states:
            asked_s = self._clock.monotonic()
            lease = await self._leases.acquire(group, self._holder, self._policy.lease_s)
            self._answered(group, lease, asked_s)
        for group, state in self._states.items():
            if state.epoch:
                await self._take_over(group)
                self._entered[group] = state.epoch

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            next_s = min(state.due_s for state in self._states.values()) - self._clock.monotonic()
            self._hurry.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(LONGEST_WAIT_S, max(SHORTEST_WAIT_S, next_s))):
                    await self._hurry.wait()

    async def release(self) -> None:
        """Let go of everything, so that others need not wait; what fails expires by itself."""
        for task in self._entering.values():
            task.cancel()
        await asyncio.gather(*self._entering.values(), return_exceptions=True)
        held = [Lease(group, self._holder, one.epoch) for group, one in self._states.items() if one.epoch]
        self._states = dict.fromkeys(self._states, LeaseState())
        try:
            async with asyncio.timeout(RELEASE_LIMIT_S):
                await asyncio.gather(*(self._leases.release(lease) for lease in held))
        except (StoreError, TimeoutError) as error:
            self._log.warning("leases not released: they expire by themselves", error=repr(error))

    def lost(self, group: str) -> None:
        """The database says that another instance took it."""
        self._note(group, self._states[group].refused(self._clock.monotonic(), self._policy))

    def wake(self) -> None:
        """Something happened in the database: perhaps a lease was let go."""
        self._states = {group: one.due_now() for group, one in self._states.items()}
        if not all(one.epoch for one in self._states.values()):
            self._hurry.set()

    # ------------------------------------------------------------------------------------------------------- round
    async def look(self) -> None:
        """One round over all that is due; never raises."""
        now_s = self._clock.monotonic()
        asks = {group: state.ask(now_s) for group, state in self._states.items()}
        ours = [group for group, ask in asks.items() if ask is Ask.RENEW]
        await self._all(self._renew(group) for group in ours)
        if missing := [group for group, ask in asks.items() if ask is Ask.ACQUIRE]:
            await self._acquire_free(missing)
        self._enter()

    async def _renew(self, group: str) -> None:
        before, asked_s = self._states[group], self._clock.monotonic()
        lease = Lease(group, self._holder, before.epoch)
        answer = await self._answer([group], lambda: self._leases.renew(lease, self._policy.lease_s))
        if answer is None or self._states[group].epoch != before.epoch:
            return
        if answer.given:
            self._states[group] = before.renewed(asked_s, self._policy)
        else:
            self.lost(group)

    async def _acquire_free(self, groups: list[str]) -> None:
        answer = await self._answer(groups, self._leases.holders)
        if answer is None:
            return
        now_s = self._clock.monotonic()
        taken = [group for group in groups if answer.given.get(group, self._holder) != self._holder]
        for group in taken:
            self._states[group] = self._states[group].refused(now_s, self._policy)
        await self._all(self._acquire(group) for group in groups if group not in taken)

    async def _acquire(self, group: str) -> None:
        asked_s = self._clock.monotonic()
        answer = await self._answer(
            [group], lambda: self._leases.acquire(group, self._holder, self._policy.lease_s)
        )  # fmt: skip
        if answer is not None:
            self._answered(group, answer.given, asked_s)

    def _answered(self, group: str, lease: Lease | None, asked_s: float) -> None:
        known = self._states[group]
        if lease is None:
            self._note(group, known.refused(self._clock.monotonic(), self._policy))
        else:
            self._note(group, known.acquired(lease.epoch, asked_s, self._policy))

    def _note(self, group: str, state: LeaseState) -> None:
        before, self._states[group] = self._states[group].epoch, state
        if not state.epoch:
            self._health.works("take-over")  # it is another's matter now
        if state.epoch != before and not self.is_sole:
            words = "lease taken" if state.epoch else "lease lost: another instance holds it"
            self._log.info(words, group=group, epoch=state.epoch or before)

    # --------------------------------------------------------------------------------------------------- take-over
    def _enter(self) -> None:
        now_s = self._clock.monotonic()
        for group, state in self._states.items():
            is_over = group not in self._entering or self._entering[group].done()
            if is_over and state.is_leading(now_s) and self._entered.get(group) != state.epoch:
                self._entering[group] = asyncio.create_task(self._enter_one(group, state.epoch))

    async def _enter_one(self, group: str, epoch: int) -> None:
        try:
            async with asyncio.timeout(self._policy.lease_s):
                await self._take_over(group)
        except Exception as error:  # noqa: BLE001 - whatever one group's state does, the others are taken over
            self._health.fails("take-over", error)
            self._log.warning("not taken over yet", group=group, error=repr(error))
            await self._clock.sleep(self._policy.retry_s)
        else:
            self._health.works("take-over")
            self._entered[group] = epoch

    # ----------------------------------------------------------------------------------------------------- answers
    async def _answer(self, groups: Iterable[str], question: Callable[[], Awaitable[T]]) -> _Answer[T] | None:
        """None: there was none in time."""
        try:
            async with asyncio.timeout(self._policy.answer_limit_s), self._gate:
                given = await question()
        except Exception as error:  # noqa: BLE001 - any exception means: not renewed
            self._health.fails("leases", error)
            now_s = self._clock.monotonic()
            for group in groups:
                self._states[group] = self._states[group].failed(now_s, self._policy)
            return None
        self._health.works("leases")
        return _Answer(given)

    @staticmethod
    async def _all(steps: Iterable[Awaitable[None]]) -> None:
        await asyncio.gather(*steps)
