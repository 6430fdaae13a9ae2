"""State that outlives the process, and the leases of several instances: a small protocol a topic.

An adapter implements them all (`Store`); each part of the service takes those that it needs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from calibrator.core.publish.snapshot import Override, Progress, Recommendation
from calibrator.core.records.sweep import SweepRecord
from calibrator.core.sharing.allocator import HeldShare
from calibrator.core.sharing.share_cache import InstanceReport, ShareTable


@dataclass(frozen=True, slots=True)
class Retention:
    """What a store keeps of each backend."""

    sweeps: int = 200  # calibrated ones; of the others twice as many
    recommendations: int = 1000  # newest versions
    samples: int = 5  # newest sweeps with their single requests


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as its holder has it. Whoever holds it may probe that engine group, and publish for its backends."""

    group: str
    holder: str  # the instance: its host name and a random suffix
    epoch: int  # grows with each take-over and never repeats: the fence of what is published


@dataclass(frozen=True, slots=True)
class SweepStatus:
    """A running sweep as other instances see it."""

    sweep_id: str
    reserved_for_probes: int  # of the published cap
    progress: Progress | None = None
    url: str = ""  # the replica that it measures


@dataclass(frozen=True, slots=True)
class ForwardedCommand:
    """A sweep to start or to cancel, asked for at another instance; or a cap that one lowered and could not store."""

    backend: str
    sweep_id: str  # of the one to start; empty: cancel the one that runs
    reason: str
    asked_at: float
    lowered: Recommendation | None = None  # served by an instance that lost its lease before it could be stored


class RecommendationStore(Protocol):
    """What was published."""

    async def add_recommendation(self, recommendation: Recommendation, lease: Lease) -> None:
        """Append, in one transaction with the check of the lease; a (backend, version) that exists already is refused
        with StoreError, an epoch that is no longer the lease's with StaleLeaseError: nothing is written then."""
        ...

    async def latest_recommendations(self) -> Sequence[Recommendation]:
        """The newest of each backend."""
        ...

    async def recommendations(self, backend: str, limit: int) -> Sequence[Recommendation]:
        """Newest first."""
        ...


class SweepStore(Protocol):
    """Records of sweeps."""

    async def save_sweep(self, record: SweepRecord) -> None:
        """Insert, or replace the same sweep_id; an ended one is not replaced by a running one. Samples are kept
        apart."""
        ...

    async def sweep(self, sweep_id: str) -> SweepRecord | None: ...

    async def samples(self, sweep_id: str) -> bytes | None:
        """The single requests of a sweep, packed (core.records.sample_log); None: not kept, or not any more."""
        ...

    async def sweeps(self, backend: str, limit: int) -> Sequence[SweepRecord]:
        """Newest first."""
        ...

    async def interrupt_running_sweeps(self, backends: Collection[str], now: float) -> int:
        """Mark sweeps of these backends without outcome as interrupted (after a kill); returns how many."""
        ...


class PublicationStore(RecommendationStore, SweepStore, Protocol):
    """Recommendations and the sweeps behind them."""


class ShareStore(Protocol):
    """Shares of the gateways where there is one instance."""

    async def save_shares(self, backend: str, held: Sequence[HeldShare], *, per_replica: bool) -> None:
        """Replace all that was held of this cap."""
        ...

    async def shares(self, backend: str, *, per_replica: bool) -> Sequence[HeldShare]:
        """By client name."""
        ...


class JointShareStore(Protocol):
    """Shares of the gateways where several instances divide a cap."""

    async def save_share_report(self, instance: str, report: InstanceReport | None) -> None:
        """Replace this instance's of a lower number; None removes it."""
        ...

    async def share_reports(self) -> Mapping[str, tuple[float, InstanceReport]]:
        """By instance: its age by the database's clock, and the report."""
        ...

    async def save_share_table(self, backend: str, table: ShareTable, lease: Lease, *, per_replica: bool) -> None:
        """Replace the one before, in one transaction with the check of the lease. Raises StaleLeaseError if that was
        taken over, StoreError if the stored table is not the version before: nothing is written then."""
        ...

    async def share_tables(self) -> Mapping[tuple[str, bool], ShareTable]:
        """By backend and whether the replica's cap is divided."""
        ...


class CheckpointStore(Protocol):
    """Small documents that outlive a restart."""

    async def save_checkpoint(self, backend: str, kind: str, document: str) -> None:
        """Replaces the last one of its kind."""
        ...

    async def checkpoints(self, backend: str) -> Mapping[str, str]:
        """By kind."""
        ...


class OverrideStore(CheckpointStore, Protocol):
    """The overrides in force; past ones are a checkpoint."""

    async def save_override(self, backend: str, override: Override | None) -> None:
        """Replace the one of this backend; None removes it."""
        ...

    async def overrides(self) -> Mapping[str, Override]:
        """By backend, ended ones included."""
        ...


class CommandStore(Protocol):
    """Commands on their way to the holder of a lease."""

    async def add_command(self, command: ForwardedCommand) -> None: ...

    async def take_commands(self, backends: Collection[str]) -> Sequence[ForwardedCommand]:
        """Oldest first; each is taken by one instance only."""
        ...


class SweepStatusStore(Protocol):
    """Running sweeps, as the other instances see them."""

    async def save_sweep_status(self, backend: str, status: SweepStatus | None) -> None:
        """None: no sweep of this backend runs."""
        ...

    async def sweep_statuses(self) -> Mapping[str, SweepStatus]:
        """By backend."""
        ...


class ReplicatedStore(PublicationStore, OverrideStore, CommandStore, SweepStatusStore, Protocol):
    """All that one instance follows of the others."""

    async def changed(self, limit_s: float) -> None:
        """Return when another instance may have written something, at the latest after `limit_s`. Never raises: a lost
        database only makes it wait the whole time."""
        ...


class Store(ReplicatedStore, ShareStore, JointShareStore, Protocol):
    """Everything that is stored. Every method raises StoreError when the database fails, and ends in seconds."""

    async def open(self) -> None:
        """Migrate and take the single-instance lock. Raises StoreLockedError if another instance has it."""
        ...

    async def close(self) -> None: ...


class Leases(Protocol):
    """One row per engine group, taken and renewed by compare-and-set with the database's own clock.

    Every method raises StoreError when the database fails, and ends within a few seconds whatever the database does.
    """

    async def acquire(self, group: str, holder: str, lease_s: float) -> Lease | None:
        """None: another holds it. The same holder gets it again with a new epoch."""
        ...

    async def renew(self, lease: Lease, lease_s: float) -> bool:
        """False: it is no longer ours."""
        ...

    async def release(self, lease: Lease) -> None:
        """Others may take it at once; nothing happens if it is no longer ours."""
        ...

    async def holders(self) -> Mapping[str, str]:
        """Holder by engine group, of leases in force."""
        ...
