"""Who has which share of which cap: one allocator for each backend's `cap` and one for its `replica_cap`.

Shares are held in memory and written behind: a poll never waits for the database, and a lost one keeps the shares
served. What is written is always the whole newest state of an allocator, so nothing piles up while the database fails.
After a kill the store may lack what was advertised in the last moments before it: until such clients have polled again,
the sum may exceed the cap by so much, as it may while a response that lowers a share is lost on its way.

Where several instances share a database, `service.publishing.joint_shares` stands in its place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import structlog

from calibrator.core.publish.snapshot import BackendView
from calibrator.core.sharing.allocator import FairShareAllocator
from calibrator.ports.clock import Clock
from calibrator.ports.sharing import Poll, Poller, Share
from calibrator.ports.store import ShareStore
from calibrator.service.publishing.notifier import ChangeNotifier
from calibrator.service.publishing.store_health import StoreHealth
from calibrator.service.publishing.write_behind import WriteBehind

WRITE_EVERY_S = 1.0
JOIN_RETRY_S = 1.0  # how soon a joiner may ask again; the others are asked to poll every few seconds
VERSION_STEP = 2**20  # above any cap

Key = tuple[str, bool]  # backend, per replica


class Shares(Protocol):
    """What the supervisor knows of them, however many instances there are."""

    @property
    def is_idle(self) -> bool:
        """A tick has nothing to do."""
        ...

    async def restore(self, views: Iterable[BackendView]) -> None: ...
    def poll(self, view: BackendView, poll: Poll) -> Share: ...
    def clients(self, backend: str) -> tuple[int, int]: ...
    def pollers(self, backend: str) -> list[Poller]: ...
    async def changed(self, backend: str, limit_s: float) -> None: ...
    def tick(self, views: Iterable[BackendView]) -> None: ...
    def notify_all(self) -> None: ...
    async def close(self) -> None: ...


class ShareKeeper:
    """Owns the allocators of all backends."""

    def __init__(self, store: ShareStore, clock: Clock, health: StoreHealth) -> None:
        self._store = store
        self._clock = clock
        self._allocators: dict[Key, FairShareAllocator] = {}
        self._written: dict[Key, int] = {}  # revision of the allocator that the store has
        self._notifier = ChangeNotifier()
        self._warned: set[Key] = set()
        self._unwritten = WriteBehind("shares", self._write, clock, health, every_s=WRITE_EVERY_S)
        self._log = structlog.get_logger()

    async def restore(self, views: Iterable[BackendView]) -> None:
        """Raises StoreError."""
        for view in views:
            for per_replica in (False, True):
                held = await self._store.shares(view.name, per_replica=per_replica)
                if held:
                    key = (view.name, per_replica)
                    self._allocators[key] = FairShareAllocator(cap_of(view, per_replica=per_replica))
                    self._allocators[key].restore(held, self._clock.monotonic())
                    self._written[key] = self._allocators[key].revision

    def poll(self, view: BackendView, poll: Poll) -> Share:
        key = (view.name, poll.per_replica)
        cap, version = cap_of(view, per_replica=poll.per_replica), view.advertised.version
        allocator = self._allocators.get(key)
        if not poll.client:
            return Share(cap, 0 if allocator is None else allocator.clients, version * VERSION_STEP + cap)
        now_s = self._clock.monotonic()
        if allocator is None:
            allocator = self._allocators[key] = FairShareAllocator(cap)
        allocator.set_cap(cap, now_s)
        if poll.is_waiting:
            share = allocator.look(poll.client, now_s)
        else:
            share = allocator.poll(poll.client, now_s, poll.in_flight, poll.rejected)
        if share is None:
            return Share(None, allocator.clients, version * VERSION_STEP, JOIN_RETRY_S)
        return Share(share, allocator.clients, version * VERSION_STEP + share)

    def clients(self, backend: str) -> tuple[int, int]:
        """How many live clients there are, and how many of them beyond the cap."""
        allocators = self._both(backend)
        return sum(allocator.clients for allocator in allocators), sum(allocator.over_cap for allocator in allocators)

    def pollers(self, backend: str) -> list[Poller]:
        """Live clients of both allocators, by name."""
        now_s, found = self._clock.monotonic(), []
        for per_replica in (False, True):
            allocator = self._allocators.get((backend, per_replica))
            for name, client in () if allocator is None else allocator.live():
                age_s = max(0.0, now_s - client.seen_s)
                found.append(Poller(name, per_replica, client.advertised, client.target, age_s, client.gap_s))
        return found

    async def changed(self, backend: str, limit_s: float) -> None:
        await self._notifier.wait(backend, limit_s)

    # ----------------------------------------------------------------------------------------------------- tick
    @property
    def is_idle(self) -> bool:
        """Nobody ever asked: a tick has nothing to do."""
        return not self._allocators and not self._notifier

    def tick(self, views: Iterable[BackendView]) -> None:
        """Follow the caps, let silent clients expire, wake long polls, warn, write behind."""
        now_s, now = self._clock.monotonic(), self._clock.wall()
        for view in views:
            for per_replica in (False, True):
                allocator = self._allocators.get((view.name, per_replica))
                if allocator is not None:
                    allocator.set_cap(cap_of(view, per_replica=per_replica), now_s)
                    allocator.tend(now_s)
                    self._warn(view.name, allocator, per_replica=per_replica)
            self._notifier.notify(
                view.name, (*answered_from(view, now), *(allocator.revision for allocator in self._both(view.name)))
            )
        self._put_changed()
        self._unwritten.tick()

    def notify_all(self) -> None:
        self._notifier.notify_all()

    async def close(self) -> None:
        """Write what the store lacks, as far as the database lets us."""
        self.notify_all()
        self._put_changed()
        await self._unwritten.close()

    def _warn(self, backend: str, allocator: FairShareAllocator, *, per_replica: bool) -> None:
        key = (backend, per_replica)
        if allocator.over_cap and key not in self._warned:
            self._warned.add(key)
            self._log.warning(
                "more gateways than the cap: each has 1, together more than the cap",
                backend=backend, clients=allocator.clients, cap=allocator.cap, per_replica=per_replica,
            )  # fmt: skip
        elif not allocator.over_cap:
            self._warned.discard(key)

    def _both(self, backend: str) -> list[FairShareAllocator]:
        found = (self._allocators.get((backend, per_replica)) for per_replica in (False, True))
        return [allocator for allocator in found if allocator is not None]

    # -------------------------------------------------------------------------------------------------- writing
    def _put_changed(self) -> None:
        for key, allocator in self._allocators.items():
            if self._written.get(key) != allocator.revision:
                self._unwritten.put(key, allocator.revision)

    async def _write(self, key: Key, _revision: int) -> None:
        """The newest state there is."""
        backend, per_replica = key
        revision, held = self._allocators[key].revision, self._allocators[key].held()
        await self._store.save_shares(backend, held, per_replica=per_replica)
        self._written[key] = revision


def answered_from(view: BackendView, now: float) -> tuple[object, ...]:
    """What long polls are answered from, besides the shares."""
    published = view.advertised
    return (
        published.version, published.valid_until, view.served_cap, view.served_replica_cap,
        view.advertised_state_at(now)
    )  # fmt: skip


def cap_of(view: BackendView, *, per_replica: bool) -> int:
    return view.served_replica_cap if per_replica else view.served_cap
