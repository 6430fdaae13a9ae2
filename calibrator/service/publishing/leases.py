"""The leases of all engine groups: taken, renewed and released beside the tick, each step bounded.

What may be believed is `core.publish.lease`; this file asks the database and keeps the answers. A lease alone does not
make a holder: first the `Successor` reads what the holder before left behind. Until that is done `holds_lease` is
false everywhere, and no gateway misses anything, because every instance serves what is stored.

    round:  renew ours, all at once ─▶ who holds the others? ─▶ acquire the free ones ─▶ take over, each in its own task

Any exception is an answer that did not come. A round takes at most three answer limits, so that one bad step does not
cost the leases that could have been renewed after it.

Run by `service.replication`; `holds_lease` is asked by everybody who is about to probe or to publish.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

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


class HeldLeases(Protocol):
    """What whoever writes under a lease asks of them."""

    def lease_of(self, backend: str) -> Lease | None:
        """None while this instance does not hold it."""
        ...

    def lost(self, backend: str) -> None:
        """The database says that another instance took it."""
        ...


class Successor(Protocol):
    """Reads what the holder before left behind."""

    async def take_over(self, group: str) -> None:
        """Raises StoreError; then it is tried again."""
        ...


class LeaseManager:
    """Owns what this instance knows of its leases. `groups`: the engine group of each backend."""

    def __init__(
        self,
        groups: Mapping[str, str],
        leases: Leases,
        holder: str,
        *,
        policy: LeasePolicy,
        clock: Clock,
        health: StoreHealth,
    ) -> None:
        self._groups = groups
        self._leases = leases
        self._holder = holder
        self._policy = policy
        self._clock = clock
        self._health = health
        self._states = dict.fromkeys(groups.values(), LeaseState())
        self._entered: dict[str, int] = {}  # epoch whose predecessor's state was read
        self._entering: dict[str, asyncio.Task[None]] = {}
        self._gate = asyncio.Semaphore(MAX_AT_ONCE)
        self._woken = asyncio.Event()
        self._log = structlog.get_logger()

    # -------------------------------------------------------------------------------------------------- questions
    @property
    def is_sole(self) -> bool:
        return self._policy.is_sole

    def holds_lease(self, backend: str) -> bool:
        """Whether this instance may probe its engine group and publish for it at this moment."""
        group = self._groups[backend]
        state = self._states[group]
        return state.is_leading(self._clock.monotonic()) and self._entered.get(group) == state.epoch

    def until_s(self, backend: str) -> float:
        """Until when it may, by the monotonic clock, as far as is known now."""
        return self._states[self._groups[backend]].until_s

    def epoch(self, backend: str) -> int:
        """0: the lease is not ours. One that only ran out here still is."""
        return self._states[self._groups[backend]].epoch

    def lease_of(self, backend: str) -> Lease | None:
        """None while this instance does not hold it."""
        return Lease(self._groups[backend], self._holder, self.epoch(backend)) if self.holds_lease(backend) else None

    # ------------------------------------------------------------------------------------------------- life cycle
    async def begin(self, successor: Successor) -> None:
        """Take what is free, and take over, before anything is served. Raises StoreError."""
        for group in self._states:
            asked_s = self._clock.monotonic()
            lease = await self._leases.acquire(group, self._holder, self._policy.lease_s)
            self._answered(group, lease, asked_s)
        for group, state in self._states.items():
            if state.epoch:
                await successor.take_over(group)
                self._entered[group] = state.epoch

    async def run(self, successor: Successor) -> None:
        """Until cancelled."""
        while True:
            await self._round(successor)
            next_s = min(state.due_s for state in self._states.values()) - self._clock.monotonic()
            self._woken.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(LONGEST_WAIT_S, max(SHORTEST_WAIT_S, next_s))):
                    await self._woken.wait()

    async def release(self) -> None:
        """Release everything, so that others need not wait; what fails expires by itself."""
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

    def lost(self, backend: str) -> None:
        """The database says that another instance took it."""
        self._refused(self._groups[backend])

    def _refused(self, group: str) -> None:
        self._note(group, self._states[group].refused(self._clock.monotonic(), self._policy))

    def wake(self) -> None:
        """Something happened in the database: perhaps a lease was released."""
        self._states = {group: one.due_now() for group, one in self._states.items()}
        if not all(one.epoch for one in self._states.values()):
            self._woken.set()

    # ------------------------------------------------------------------------------------------------------- round
    async def _round(self, successor: Successor) -> None:
        """Over all that is due; never raises."""
        now_s = self._clock.monotonic()
        asks = {group: state.ask(now_s) for group, state in self._states.items()}
        ours = [group for group, ask in asks.items() if ask is Ask.RENEW]
        await self._all(self._renew(group) for group in ours)
        if missing := [group for group, ask in asks.items() if ask is Ask.ACQUIRE]:
            await self._acquire_free(missing)
        self._enter(successor)

    async def _renew(self, group: str) -> None:
        before, asked_s = self._states[group], self._clock.monotonic()
        lease = Lease(group, self._holder, before.epoch)
        answer = await self._answer([group], lambda: self._leases.renew(lease, self._policy.lease_s))
        if answer is None or self._states[group].epoch != before.epoch:
            return
        if answer.given:
            self._states[group] = before.renewed(asked_s, self._policy)
        else:
            self._refused(group)

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
        if lease is None:
            self._refused(group)
        else:
            self._note(group, self._states[group].acquired(lease.epoch, asked_s, self._policy))

    def _note(self, group: str, state: LeaseState) -> None:
        before, self._states[group] = self._states[group].epoch, state
        if not state.epoch:
            self._health.works("take-over")  # another instance does it
        if state.epoch != before and not self.is_sole:
            words = "lease taken" if state.epoch else "lease lost: another instance holds it"
            self._log.info(words, group=group, epoch=state.epoch or before)

    # --------------------------------------------------------------------------------------------------- take-over
    def _enter(self, successor: Successor) -> None:
        now_s = self._clock.monotonic()
        for group, state in self._states.items():
            is_over = group not in self._entering or self._entering[group].done()
            if is_over and state.is_leading(now_s) and self._entered.get(group) != state.epoch:
                self._entering[group] = asyncio.create_task(self._enter_one(group, state.epoch, successor))

    async def _enter_one(self, group: str, epoch: int, successor: Successor) -> None:
        try:
            async with asyncio.timeout(self._policy.lease_s):
                await successor.take_over(group)
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
