"""Stores and leases in memory: the ports' contracts without a file, a thread or a wait (usable on virtual time).

Several instances share one `MemoryDatabase`, as several calibrators share one server. Each has a `MemoryStore` of its
own, whose `failure` is a network cut between this instance alone and the database.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from calibrator.core.publish.snapshot import Override, Recommendation
from calibrator.core.records.sweep import SweepOutcome, SweepRecord
from calibrator.core.sharing.allocator import HeldShare
from calibrator.core.sharing.share_cache import InstanceReport, ShareTable
from calibrator.errors import StaleLeaseError, StoreError
from calibrator.ports.store import ForwardedCommand, Lease, Retention, SweepStatus
from calibrator.stores.retention import FAILED_FACTOR, interrupted


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class LeaseRow:
    """A row of the table of leases."""

    holder: str
    epoch: int
    expires_at: float


@dataclass
class MemoryDatabase:
    """What all instances see. `clock` is the database's own, by default the event loop's."""

    clock: Callable[[], float] = _loop_time
    leases: dict[str, LeaseRow] = field(default_factory=dict)
    recommendations: dict[tuple[str, int], Recommendation] = field(default_factory=dict)
    epochs: dict[tuple[str, int], int] = field(default_factory=dict)  # behind each recommendation
    sweeps: dict[str, SweepRecord] = field(default_factory=dict)
    samples: dict[str, bytes] = field(default_factory=dict)
    shares: dict[tuple[str, bool], tuple[HeldShare, ...]] = field(default_factory=dict)
    share_reports: dict[str, tuple[float, InstanceReport]] = field(default_factory=dict)
    share_tables: dict[tuple[str, bool], ShareTable] = field(default_factory=dict)
    overrides: dict[str, Override] = field(default_factory=dict)
    sweep_statuses: dict[str, SweepStatus] = field(default_factory=dict)
    commands: list[ForwardedCommand] = field(default_factory=list)
    checkpoints: dict[tuple[str, str], str] = field(default_factory=dict)
    listeners: dict[str, asyncio.Event] = field(default_factory=dict)  # by name of the store

    def is_in_force(self, lease: Lease) -> bool:
        row = self.leases.get(lease.group)
        return row is not None and (row.holder, row.epoch) == (lease.holder, lease.epoch)


class MemoryStore:
    """Implements `ports.Store`. Set `failure` and every method raises it, as a broken database would; the same for
    its `leases`.

    What was stored survives `close` and `open`, like a file: pass the same object to a "restarted" service.
    """

    def __init__(self, keep: Retention | None = None, database: MemoryDatabase | None = None) -> None:
        self.failure: StoreError | None = None
        self.is_open = False
        self.database = database or MemoryDatabase()
        self.leases = MemoryLeases(self)
        self._name = f"store {len(self.database.listeners)}"
        self._listen()
        self._keep = keep or Retention()

    async def open(self) -> None:
        self.check()
        self._listen()  # in this event loop
        self.is_open = True

    async def close(self) -> None:
        self.is_open = False

    async def add_recommendation(self, recommendation: Recommendation, lease: Lease) -> None:
        self.check()
        key = (recommendation.backend, recommendation.version)
        if self.database.recommendations.get(key) == recommendation:
            return
        if not self.database.is_in_force(lease):
            raise StaleLeaseError(f"The lease of '{lease.group}' was taken over.")
        if key in self.database.recommendations:
            raise StoreError(f"Version {recommendation.version} of '{recommendation.backend}' exists already.")
        self.database.recommendations[key] = recommendation
        self.database.epochs[key] = lease.epoch
        for backend, version in list(self.database.recommendations):
            if backend == recommendation.backend and version <= recommendation.version - self._keep.recommendations:
                del self.database.recommendations[backend, version]
        self.tell()

    async def latest_recommendations(self) -> Sequence[Recommendation]:
        self.check()
        known = self.database.recommendations
        newest = {backend: known[backend, version] for backend, version in sorted(known)}
        return tuple(newest.values())

    async def recommendations(self, backend: str, limit: int) -> Sequence[Recommendation]:
        self.check()
        known = self.database.recommendations
        return [known[key] for key in sorted(known, reverse=True) if key[0] == backend][:limit]

    async def save_sweep(self, record: SweepRecord) -> None:
        self.check()
        known = self.database.sweeps.get(record.sweep_id)
        if record.outcome is None and known is not None and known.outcome is not None:
            return
        self.database.sweeps[record.sweep_id] = replace(record, samples=b"")
        if record.samples and self._keep.samples:
            self.database.samples[record.sweep_id] = record.samples
        if record.outcome is not None:
            self._forget(record.backend)
        self.tell()

    async def sweep(self, sweep_id: str) -> SweepRecord | None:
        self.check()
        return self.database.sweeps.get(sweep_id)

    async def samples(self, sweep_id: str) -> bytes | None:
        self.check()
        return self.database.samples.get(sweep_id)

    async def sweeps(self, backend: str, limit: int) -> Sequence[SweepRecord]:
        self.check()
        return tuple(self._newest_first(backend)[:limit])

    async def interrupt_running_sweeps(self, backends: Collection[str], now: float) -> int:
        self.check()
        sweeps = self.database.sweeps
        running = [one for one in sweeps.values() if one.outcome is None and one.backend in backends]
        for record in running:
            sweeps[record.sweep_id] = interrupted(record, now)
        self.tell()
        return len(running)

    async def save_shares(self, backend: str, held: Sequence[HeldShare], *, per_replica: bool) -> None:
        self.check()
        self.database.shares[backend, per_replica] = tuple(sorted(held, key=lambda share: share.client))
        self.tell()

    async def shares(self, backend: str, *, per_replica: bool) -> Sequence[HeldShare]:
        self.check()
        return self.database.shares.get((backend, per_replica), ())

    async def save_share_report(self, instance: str, report: InstanceReport | None) -> None:
        self.check()
        known = self.database.share_reports.get(instance)
        if report is None:
            self.database.share_reports.pop(instance, None)
        elif known is None or known[1].number < report.number:
            self.database.share_reports[instance] = (self.database.clock(), report)

    async def share_reports(self) -> Mapping[str, tuple[float, InstanceReport]]:
        self.check()
        now = self.database.clock()
        return {name: (now - saved_at, report) for name, (saved_at, report) in self.database.share_reports.items()}

    async def save_share_table(self, backend: str, table: ShareTable, lease: Lease, *, per_replica: bool) -> None:
        self.check()
        if not self.database.is_in_force(lease):
            raise StaleLeaseError(f"The lease of '{lease.group}' was taken over.")
        known = self.database.share_tables.get((backend, per_replica))
        if known is not None and known.version != table.version - 1:
            raise StoreError(f"Version {table.version} of the shares of '{backend}' does not follow.")
        self.database.share_tables[backend, per_replica] = table

    async def share_tables(self) -> Mapping[tuple[str, bool], ShareTable]:
        self.check()
        return dict(self.database.share_tables)

    async def save_override(self, backend: str, override: Override | None) -> None:
        self.check()
        self.database.overrides.pop(backend, None)
        if override is not None:
            self.database.overrides[backend] = override
        self.tell()

    async def overrides(self) -> Mapping[str, Override]:
        self.check()
        return dict(self.database.overrides)

    async def save_sweep_status(self, backend: str, status: SweepStatus | None) -> None:
        self.check()
        self.database.sweep_statuses.pop(backend, None)
        if status is not None:
            self.database.sweep_statuses[backend] = status
        self.tell()

    async def sweep_statuses(self) -> Mapping[str, SweepStatus]:
        self.check()
        return dict(self.database.sweep_statuses)

    async def add_command(self, command: ForwardedCommand) -> None:
        self.check()
        self.database.commands.append(command)
        self.tell()

    async def take_commands(self, backends: Collection[str]) -> Sequence[ForwardedCommand]:
        self.check()
        taken = tuple(command for command in self.database.commands if command.backend in backends)
        self.database.commands = [command for command in self.database.commands if command.backend not in backends]
        return taken

    async def save_checkpoint(self, backend: str, kind: str, document: str) -> None:
        self.check()
        self.database.checkpoints[backend, kind] = document

    async def checkpoints(self, backend: str) -> Mapping[str, str]:
        self.check()
        return {kind: text for (name, kind), text in self.database.checkpoints.items() if name == backend}

    async def changed(self, limit_s: float) -> None:
        """News that came while the database was out of reach are heard of when it is back."""
        if self.failure is not None:
            await asyncio.sleep(limit_s)
            return
        news = self.database.listeners[self._name]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await news.wait()
        news.clear()

    def tell(self) -> None:
        """The other instances hear of a change."""
        for listener, news in self.database.listeners.items():
            if listener != self._name:
                news.set()

    def _listen(self) -> None:
        self.database.listeners[self._name] = asyncio.Event()

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _newest_first(self, backend: str) -> list[SweepRecord]:
        own = [record for record in self.database.sweeps.values() if record.backend == backend]
        return sorted(own, key=lambda record: (record.started_at, record.sweep_id), reverse=True)

    def _forget(self, backend: str) -> None:
        ended = [record for record in self._newest_first(backend) if record.outcome is not None]
        good = [record for record in ended if record.outcome is SweepOutcome.CALIBRATED]
        failed = [record for record in ended if record.outcome is not SweepOutcome.CALIBRATED]
        for record in good[self._keep.sweeps :] + failed[FAILED_FACTOR * self._keep.sweeps :]:
            del self.database.sweeps[record.sweep_id]
            self.database.samples.pop(record.sweep_id, None)
        kept = [record.sweep_id for record in self._newest_first(backend) if record.sweep_id in self.database.samples]
        for sweep_id in kept[self._keep.samples :]:
            del self.database.samples[sweep_id]


class MemoryLeases:
    """Implements `ports.Leases` for one instance: it fails when its store does."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def acquire(self, group: str, holder: str, lease_s: float) -> Lease | None:
        rows, now = self._rows(), self._store.database.clock()
        known = rows.get(group)
        if known is not None and known.holder not in ("", holder) and known.expires_at >= now:
            return None
        epoch = 1 if known is None else known.epoch + 1
        rows[group] = LeaseRow(holder, epoch, now + lease_s)
        self._store.tell()
        return Lease(group, holder, epoch)

    async def renew(self, lease: Lease, lease_s: float) -> bool:
        row = self._rows().get(lease.group)
        if row is None or not self._store.database.is_in_force(lease):
            return False
        row.expires_at = self._store.database.clock() + lease_s
        return True

    async def release(self, lease: Lease) -> None:
        row = self._rows().get(lease.group)
        if row is not None and self._store.database.is_in_force(lease):
            row.holder, row.expires_at = "", 0.0
            self._store.tell()

    async def holders(self) -> Mapping[str, str]:
        now = self._store.database.clock()
        return {group: row.holder for group, row in self._rows().items() if row.holder and row.expires_at >= now}

    def _rows(self) -> dict[str, LeaseRow]:
        self._store.check()
        return self._store.database.leases


async def take_lease(store: MemoryStore, group: str = "chat", holder: str = "test") -> Lease:
    """Take the lease, which is free or that holder's already."""
    lease = await store.leases.acquire(group, holder, 3600.0)
    assert lease is not None
    return lease
