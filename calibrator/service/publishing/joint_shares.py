"""One cap over several instances: what `service.publishing.shares` is for one.

Every second this instance stores who polls it and reads how the caps are divided; for the backends whose lease
it holds, it also reads what all have stored, and divides. A poll waits for none of this. What may be believed for how
long is in `core.sharing.share_cache`, what may be given to whom in `core.sharing.leader`.

A new client is answered after some three of those seconds. On the way down from a share it gets the lesser of the
table's and of the cap as this instance knows it, which may be a moment old.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import structlog

from calibrator.core.publish.snapshot import BackendView
from calibrator.core.sharing.leader import PAST_S, ShareLeader
from calibrator.core.sharing.share_cache import CapReport, InstanceReport, ShareCache, ShareTable, StoredReport
from calibrator.errors import StaleLeaseError
from calibrator.ports.clock import Clock
from calibrator.ports.sharing import Poll, Poller, Share
from calibrator.ports.store import JointShareStore, Lease
from calibrator.service.publishing.leases import HeldLeases
from calibrator.service.publishing.notifier import ChangeNotifier
from calibrator.service.publishing.shares import JOIN_RETRY_S, VERSION_STEP, Key, answered_from, cap_of
from calibrator.service.publishing.store_health import StoreHealth
from calibrator.service.publishing.write_behind import WriteBehind

EXCHANGE_S = 1.0
EXCHANGE_LIMIT_S = 5.0
NO_TABLE = ShareTable()


class JointShares:
    """Owns this instance's caps, and the division of those whose lease it holds."""

    def __init__(
        self, store: JointShareStore, clock: Clock, instance: str, leases: HeldLeases, health: StoreHealth
    ) -> None:
        self._store = store
        self._clock = clock
        self._instance = instance
        self._leases = leases
        self._notifier = ChangeNotifier()
        self._caches: dict[Key, ShareCache] = {}
        self._divisions: dict[Key, tuple[Lease, ShareLeader]] = {}
        self._tables: Mapping[Key, ShareTable] = {}
        self._views: dict[str, BackendView] = {}
        self._number = 0
        self._is_troubled = False
        self._exchanges = WriteBehind(
            "shares", self._exchange, clock, health,
            every_s=EXCHANGE_S, retry_s=EXCHANGE_S, limit_s=EXCHANGE_LIMIT_S,
        )  # fmt: skip
        self._warned: set[Key] = set()

    @property
    def is_idle(self) -> bool:
        return False

    async def restore(self, views: Iterable[BackendView]) -> None:
        """What is stored is read with the first exchange; until then everybody waits."""
        self._views = {view.name: view for view in views}

    def poll(self, view: BackendView, poll: Poll) -> Share:
        key = (view.name, poll.per_replica)
        cap, version = cap_of(view, per_replica=poll.per_replica), view.advertised.version
        clients = self._tables.get(key, NO_TABLE).clients
        if not poll.client:
            return Share(cap, clients, version * VERSION_STEP + cap)
        cache, now_s = self._caches.setdefault(key, ShareCache()), self._clock.monotonic()
        if poll.is_waiting:
            share = cache.look(poll.client, now_s)
        else:
            share = cache.poll(poll.client, now_s, poll.in_flight, poll.rejected)
        if share is None:
            return Share(None, max(1, clients), version * VERSION_STEP, JOIN_RETRY_S)
        advertised = min(share, cap)
        return Share(advertised, max(1, clients), version * VERSION_STEP + advertised)

    def clients(self, backend: str) -> tuple[int, int]:
        tables = [self._tables.get((backend, per_replica), NO_TABLE) for per_replica in (False, True)]
        return sum(table.clients for table in tables), sum(table.over_cap for table in tables)

    def pollers(self, backend: str) -> list[Poller]:
        """All of them where this instance holds the lease, else those that poll here."""
        now_s, found = self._clock.monotonic(), []
        for per_replica in (False, True):
            ours = self._divisions.get((backend, per_replica))
            cache = self._caches.get((backend, per_replica))
            if ours is not None:
                for name, client in ours[1].live():
                    age_s = max(0.0, now_s - client.seen_s)
                    found.append(Poller(name, per_replica, client.advertised, client.target, age_s, client.gap_s))
            elif cache is not None:
                for name, advertised, share, age_s, gap_s in cache.callers(now_s):
                    found.append(Poller(name, per_replica, advertised, share, age_s, gap_s))
        return found

    async def changed(self, backend: str, limit_s: float) -> None:
        await self._notifier.wait(backend, limit_s)

    # ----------------------------------------------------------------------------------------------------- tick
    def tick(self, views: Iterable[BackendView]) -> None:
        now = self._clock.wall()
        self._views = {view.name: view for view in views}
        for view in self._views.values():
            versions = (self._tables.get((view.name, kind), NO_TABLE).version for kind in (False, True))
            self._notifier.notify(view.name, (*answered_from(view, now), *versions))
        self._exchanges.put(self._instance, self._views)
        self._exchanges.tick()

    def notify_all(self) -> None:
        self._notifier.notify_all()

    async def close(self) -> None:
        """Say good-bye, as far as the database lets us: then nobody waits for this instance."""
        self.notify_all()
        for cache in self._caches.values():
            cache.close()
        self._exchanges.put(self._instance, self._views)
        await self._exchanges.close()

    # ------------------------------------------------------------------------------------------------- exchange
    async def _exchange(self, _instance: str, _views: Mapping[str, BackendView]) -> None:
        try:
            await self._report_and_read()
            await self._divide()
        except StaleLeaseError:
            self._divisions.clear()  # made anew, of what is stored, while this instance holds the lease

    async def _report_and_read(self) -> None:
        begun_s = self._clock.monotonic()
        reports = {key: cache.report(begun_s) for key, cache in self._caches.items()}
        self._number += 1
        whole = tuple(CapReport(*key, report) for key, report in reports.items())
        is_troubled, self._is_troubled = self._is_troubled, True
        await self._store.save_share_report(self._instance, InstanceReport(self._number, whole, is_troubled))
        self._tables = await self._store.share_tables()
        for key, report in reports.items():
            self._caches[key].exchanged(report, self._tables.get(key, ShareTable()), begun_s)
        self._is_troubled = False

    async def _divide(self) -> None:
        leases = {name: lease for name in self._views if (lease := self._leases.lease_of(name)) is not None}
        self._divisions = {
            key: (lease, division) for key, (lease, division) in self._divisions.items() if leases.get(key[0]) == lease
        }
        if not leases:
            return
        asked_s = self._clock.monotonic()
        stored = await self._store.share_reports()
        now_s = self._clock.monotonic()
        reports = dict[Key, dict[str, StoredReport]]()
        for instance, (age_s, report) in stored.items():
            if age_s >= PAST_S:
                await self._store.save_share_report(instance, None)
                continue
            for cache in report.caps:
                one = StoredReport(report.number, age_s, cache.report, report.is_troubled)
                reports.setdefault((cache.backend, cache.per_replica), {})[instance] = one
        for key in {**reports, **self._tables}:
            if key[0] in leases:
                await self._divide_one(key, leases[key[0]], reports.get(key, {}), asked_s, now_s)

    async def _divide_one(
        self, key: Key, lease: Lease, reports: Mapping[str, StoredReport], asked_s: float, now_s: float
    ) -> None:
        backend, per_replica = key
        cap, table = cap_of(self._views[backend], per_replica=per_replica), self._tables.get(key, ShareTable())
        ours = self._divisions.get(key)
        division = ShareLeader(cap, table, now_s) if ours is None else ours[1]
        self._divisions[key] = (lease, division)
        division.sync(table)
        division.hear(reports, asked_s, now_s)
        made = division.next(cap, now_s)
        if made is not None:
            await self._store.save_share_table(backend, made, lease, per_replica=per_replica)
            division.sync(made)
            self._tables = {**self._tables, key: made}
            if key in self._caches:
                self._caches[key].adopt(made)
            self._warn(key, made, cap)

    def _warn(self, key: Key, table: ShareTable, cap: int) -> None:
        if table.over_cap and key not in self._warned:
            self._warned.add(key)
            structlog.get_logger().warning(
                "more gateways than the cap: each has 1, together more than the cap",
                backend=key[0], clients=table.clients, cap=cap, per_replica=key[1],
            )  # fmt: skip
        elif not table.over_cap:
            self._warned.discard(key)
