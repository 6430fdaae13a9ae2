"""Who has which share of which cap: one book for each backend's `cap` and one for its `replica_cap`.

Shares are held in memory and written behind, as the publisher does it: a poll never waits for the database, and a lost
one keeps the shares served. What is written is always the whole newest state of a book, so nothing piles up while the
database fails. After a kill the store may lack what was told in the last moments before it: until such clients have
polled again, the sum may exceed the cap by so much, as it may while a response that lowers a share is lost on its way.

Where several instances share a database, `service.publishing.joint_shares` stands in its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

import structlog

from calibrator.core.publish.snapshot import BackendView
from calibrator.core.sharing.allocator import FairShareAllocator
from calibrator.errors import StoreError
from calibrator.ports.clock import Clock
from calibrator.ports.sharing import Poll, Poller, Share
from calibrator.ports.store import Store
from calibrator.service.publishing.notifier import ChangeNotifier

WRITE_EVERY_S = 1.0
RETRY_S = 5.0
JOIN_RETRY_S = 1.0  # how soon a joiner may ask again; the others are asked to poll every few seconds
CLOSE_LIMIT_S = 1.0
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
    """Owns the books of all backends."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._books: dict[Key, FairShareAllocator] = {}
        self._written: dict[Key, int] = {}  # revision of the book that the store has
        self._notifier = ChangeNotifier()
        self._warned: set[Key] = set()
        self._writing: asyncio.Task[None] | None = None
        self._not_before_s = 0.0
        self._log = structlog.get_logger()

    async def restore(self, views: Iterable[BackendView]) -> None:
        """Raises StoreError."""
        for view in views:
            for per_replica in (False, True):
                held = await self._store.shares(view.name, per_replica=per_replica)
                if held:
                    key = (view.name, per_replica)
                    self._books[key] = FairShareAllocator(cap_of(view, per_replica=per_replica))
                    self._books[key].restore(held, self._clock.monotonic())
                    self._written[key] = self._books[key].revision

    def poll(self, view: BackendView, poll: Poll) -> Share:
        key = (view.name, poll.per_replica)
        cap, version = cap_of(view, per_replica=poll.per_replica), view.advertised.version
        book = self._books.get(key)
        if not poll.client:
            return Share(cap, 0 if book is None else book.clients, version * VERSION_STEP + cap)
        now_s = self._clock.monotonic()
        if book is None:
            book = self._books[key] = FairShareAllocator(cap)
        book.set_cap(cap, now_s)
        if poll.is_waiting:
            share = book.wait_on(poll.client, now_s)
        else:
            share = book.poll(poll.client, now_s, poll.in_flight, poll.rejected)
        if share is None:
            return Share(None, book.clients, version * VERSION_STEP, JOIN_RETRY_S)
        return Share(share, book.clients, version * VERSION_STEP + share)

    def clients(self, backend: str) -> tuple[int, int]:
        """How many live clients there are, and how many of them beyond the cap."""
        books = self._both(backend)
        return sum(book.clients for book in books), sum(book.over_cap for book in books)

    def pollers(self, backend: str) -> list[Poller]:
        """Live clients of both books, by name."""
        now_s, found = self._clock.monotonic(), []
        for per_replica in (False, True):
            book = self._books.get((backend, per_replica))
            for name, client in () if book is None else book.live():
                age_s = max(0.0, now_s - client.seen_s)
                found.append(Poller(name, per_replica, client.advertised, client.target, age_s, client.gap_s))
        return found

    async def changed(self, backend: str, limit_s: float) -> None:
        await self._notifier.wait(backend, limit_s)

    # ----------------------------------------------------------------------------------------------------- tick
    @property
    def is_idle(self) -> bool:
        """Nobody ever asked: a tick has nothing to do."""
        return not self._books and not self._notifier

    def tick(self, views: Iterable[BackendView]) -> None:
        """Follow the caps, let the silent expire, wake who waits, warn, write behind."""
        now_s, now = self._clock.monotonic(), self._clock.wall()
        for view in views:
            for per_replica in (False, True):
                book = self._books.get((view.name, per_replica))
                if book is not None:
                    book.set_cap(cap_of(view, per_replica=per_replica), now_s)
                    book.tend(now_s)
                    self._warn(view.name, book, per_replica=per_replica)
            self._notifier.notify(view.name, (*told_of(view, now), *(book.revision for book in self._both(view.name))))
        is_writing = self._writing is not None and not self._writing.done()
        if not is_writing and now_s >= self._not_before_s and self._unwritten():
            self._writing = asyncio.create_task(self._write())

    def notify_all(self) -> None:
        self._notifier.notify_all()

    async def close(self) -> None:
        """Write what the store lacks, as far as the database lets us."""
        self.notify_all()
        tasks = [] if self._writing is None else [self._writing]
        tasks.append(asyncio.create_task(self._write()))
        await asyncio.wait(tasks, timeout=CLOSE_LIMIT_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _warn(self, backend: str, book: FairShareAllocator, *, per_replica: bool) -> None:
        key = (backend, per_replica)
        if book.over_cap and key not in self._warned:
            self._warned.add(key)
            self._log.warning(
                "more gateways than the cap: each has 1, together more than the cap",
                backend=backend, clients=book.clients, cap=book.cap, per_replica=per_replica,
            )  # fmt: skip
        elif not book.over_cap:
            self._warned.discard(key)

    def _both(self, backend: str) -> list[FairShareAllocator]:
        found = (self._books.get((backend, per_replica)) for per_replica in (False, True))
        return [book for book in found if book is not None]

    # -------------------------------------------------------------------------------------------------- writing
    def _unwritten(self) -> list[Key]:
        return [key for key, book in self._books.items() if self._written.get(key) != book.revision]

    async def _write(self) -> None:
        self._not_before_s = self._clock.monotonic() + WRITE_EVERY_S
        for key in self._unwritten():
            backend, per_replica = key
            revision, held = self._books[key].revision, self._books[key].held()
            try:
                await self._store.save_shares(backend, held, per_replica=per_replica)
            except StoreError as error:
                self._not_before_s = self._clock.monotonic() + RETRY_S
                self._log.warning("shares not stored yet", backend=backend, error=str(error))
                return
            self._written[key] = revision


def told_of(view: BackendView, now: float) -> tuple[object, ...]:
    """What long polls are answered from, besides the shares."""
    published = view.advertised
    return (
        published.version, published.valid_until, view.served_cap, view.served_replica_cap,
        view.advertised_state_at(now)
    )  # fmt: skip


def cap_of(view: BackendView, *, per_replica: bool) -> int:
    return view.served_replica_cap if per_replica else view.served_cap
