"""The store as SQL (port `Store`), the same statements for every dialect: see `stores.database` for what differs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from sqlalchemy import delete, func, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from calibrator.core.publish.snapshot import Override, Recommendation
from calibrator.core.records.sweep import SweepOutcome, SweepRecord
from calibrator.core.sharing.allocator import HeldShare
from calibrator.core.sharing.share_cache import InstanceReport, ShareTable
from calibrator.errors import StaleLeaseError, StoreError
from calibrator.ports.store import ForwardedCommand, Lease, Leases, Retention, SweepStatus
from calibrator.stores.database import Database
from calibrator.stores.documents import (
    COMMAND,
    OVERRIDE,
    RECOMMENDATION,
    SHARE_REPORT,
    SHARE_TABLE,
    SWEEP,
    SWEEP_STATUS,
)
from calibrator.stores.retention import FAILED_FACTOR, interrupted
from calibrator.stores.schema import (
    checkpoints,
    commands,
    leases,
    overrides,
    recommendations,
    samples,
    share_reports,
    share_tables,
    shares,
    sweep_statuses,
    sweeps,
)
from calibrator.stores.sql_leases import SqlLeases, in_force


class SqlStore:
    """Port `Store`, and in `leases` the port `Leases`."""

    def __init__(self, database: Database, keep: Retention) -> None:
        self._database = database
        self._keep = keep
        self.leases: Leases = SqlLeases(database)

    async def open(self) -> None:
        await self._database.open()

    async def close(self) -> None:
        await self._database.close()

    async def changed(self, limit_s: float) -> None:
        await self._database.changed(limit_s)

    # ------------------------------------------------------------------------------------------- recommendations
    async def add_recommendation(self, recommendation: Recommendation, lease: Lease) -> None:
        """One statement: the row comes from the lease, locked against a take-over under way; no lease, no row.

        What is there already, word for word, was committed before, and only the answer was lost.
        """
        backend, version, document = (
            recommendation.backend,
            recommendation.version,
            RECOMMENDATION.write(recommendation),
        )
        row = {
            "backend": backend,
            "version": version,
            "published_at": recommendation.published_at,
            "document": document,
        }
        columns = [literal(value, recommendations.c[name].type) for name, value in row.items()]
        ours = select(*columns, leases.c.epoch).where(in_force(lease)).with_for_update(read=True)
        statement = self._database.insert(recommendations).from_select([*row, "epoch"], ours).on_conflict_do_nothing()
        of_backend = recommendations.c.backend == backend
        async with self._database.writing() as connection:
            if (await connection.execute(statement)).rowcount == 1:
                old = recommendations.c.version <= version - self._keep.recommendations
                await connection.execute(delete(recommendations).where(of_backend, old))
                return
            stored = select(recommendations.c.document).where(of_backend, recommendations.c.version == version)
            if await connection.scalar(stored) == document:
                return
            is_ours = await connection.scalar(select(leases.c.epoch).where(in_force(lease))) is not None
        if is_ours:
            raise StoreError(
                f"Version {version} of '{backend}' exists already.", "Two writers use this store; stop one."
            )
        raise StaleLeaseError(
            f"The lease of '{lease.group}' was taken over by another instance, so version {version} of '{backend}' is "
            "not published.",
            "Nothing is to be done: the other instance publishes.",
        )

    async def latest_recommendations(self) -> Sequence[Recommendation]:
        """From name to name along the primary key: a step a backend, however many versions of each are kept."""
        every, other = recommendations.c, recommendations.alias().c
        names = select(func.min(every.backend).label("backend")).cte("names", recursive=True)
        following = select(func.min(other.backend)).where(other.backend > names.c.backend).scalar_subquery()
        names = names.union_all(select(following).where(names.c.backend.is_not(None)))
        newest = select(func.max(other.version)).where(other.backend == names.c.backend).scalar_subquery()
        own_key = (every.backend == names.c.backend) & (every.version == newest)
        statement = select(every.document).select_from(names).join(recommendations, own_key).order_by(every.backend)
        async with self._database.reading() as connection:
            documents = (await connection.execute(statement)).scalars().all()
        return tuple(RECOMMENDATION.read(document) for document in documents)

    async def recommendations(self, backend: str, limit: int) -> Sequence[Recommendation]:
        statement = (
            select(recommendations.c.document)
            .where(recommendations.c.backend == backend)
            .order_by(recommendations.c.version.desc())
            .limit(limit)
        )
        async with self._database.reading() as connection:
            documents = (await connection.execute(statement)).scalars().all()
        return tuple(RECOMMENDATION.read(document) for document in documents)

    # ---------------------------------------------------------------------------------------------------- sweeps
    async def save_sweep(self, record: SweepRecord) -> None:
        async with self._database.writing() as connection:
            await self._put(connection, replace(record, samples=b""))
            if record.samples and self._keep.samples:
                packed = {"packed": record.samples}
                insert = self._database.insert(samples).values(sweep_id=record.sweep_id, **packed)
                await connection.execute(insert.on_conflict_do_update(index_elements=["sweep_id"], set_=packed))
            if record.outcome is not None:
                await self._forget(connection, record.backend)

    async def sweep(self, sweep_id: str) -> SweepRecord | None:
        async with self._database.reading() as connection:
            document = await connection.scalar(select(sweeps.c.document).where(sweeps.c.sweep_id == sweep_id))
        return None if document is None else SWEEP.read(document)

    async def samples(self, sweep_id: str) -> bytes | None:
        async with self._database.reading() as connection:
            found: bytes | None = await connection.scalar(
                select(samples.c.packed).where(samples.c.sweep_id == sweep_id)
            )
        return found

    async def sweeps(self, backend: str, limit: int) -> Sequence[SweepRecord]:
        statement = (
            select(sweeps.c.document)
            .where(sweeps.c.backend == backend)
            .order_by(sweeps.c.started_at.desc(), sweeps.c.sweep_id.desc())
            .limit(limit)
        )
        async with self._database.reading() as connection:
            documents = (await connection.execute(statement)).scalars().all()
        return tuple(SWEEP.read(document) for document in documents)

    async def interrupt_running_sweeps(self, backends: Collection[str], now: float) -> int:
        running = select(sweeps.c.document).where(sweeps.c.outcome.is_(None), sweeps.c.backend.in_(backends))
        async with self._database.writing() as connection:
            documents = (await connection.execute(running)).scalars().all()
            for document in documents:
                await self._put(connection, interrupted(SWEEP.read(document), now))
        return len(documents)

    async def _put(self, connection: AsyncConnection, record: SweepRecord) -> None:
        row = {
            "backend": record.backend,
            "started_at": record.started_at,
            "outcome": None if record.outcome is None else record.outcome.value,
            "document": SWEEP.write(record),
        }
        statement = self._database.insert(sweeps).values(sweep_id=record.sweep_id, **row)
        may_replace = sweeps.c.outcome.is_(None) if record.outcome is None else None
        await connection.execute(
            statement.on_conflict_do_update(index_elements=["sweep_id"], set_=row, where=may_replace)
        )

    async def _forget(self, connection: AsyncConnection, backend: str) -> None:
        calibrated = sweeps.c.outcome == SweepOutcome.CALIBRATED.value
        for kind, keep in ((calibrated, self._keep.sweeps), (~calibrated, FAILED_FACTOR * self._keep.sweeps)):
            old = (
                select(sweeps.c.sweep_id)
                .where(sweeps.c.backend == backend, sweeps.c.outcome.is_not(None), kind)
                .order_by(sweeps.c.started_at.desc(), sweeps.c.sweep_id.desc())
                .offset(keep)
            )
            await connection.execute(delete(samples).where(samples.c.sweep_id.in_(old)))
            await connection.execute(delete(sweeps).where(sweeps.c.sweep_id.in_(old)))

        older = (
            select(samples.c.sweep_id)
            .join(sweeps, sweeps.c.sweep_id == samples.c.sweep_id)
            .where(sweeps.c.backend == backend)
            .order_by(sweeps.c.started_at.desc(), sweeps.c.sweep_id.desc())
            .offset(self._keep.samples)
        )
        await connection.execute(delete(samples).where(samples.c.sweep_id.in_(older)))

    # ------------------------------------------------------------------------------------------ shares and pins
    async def save_shares(self, backend: str, held: Sequence[HeldShare], *, per_replica: bool) -> None:
        book = {"backend": backend, "per_replica": per_replica}
        rows = [{**book, "client": one.client, "requests": one.requests, "gap_s": one.gap_s} for one in held]
        async with self._database.writing() as connection:
            await connection.execute(delete(shares).filter_by(**book))
            if rows:
                await connection.execute(shares.insert(), rows)

    async def shares(self, backend: str, *, per_replica: bool) -> Sequence[HeldShare]:
        statement = select(shares.c.client, shares.c.requests, shares.c.gap_s).where(
            shares.c.backend == backend, shares.c.per_replica == per_replica
        )
        async with self._database.reading() as connection:
            held = (HeldShare(*row) for row in await connection.execute(statement))
            return sorted(held, key=lambda share: share.client)  # a database's order is its locale's

    async def save_share_report(self, instance: str, report: InstanceReport | None) -> None:
        async with self._database.writing(is_news=False) as connection:
            if report is None:
                await connection.execute(delete(share_reports).where(share_reports.c.instance == instance))
                return
            row = {"number": report.number, "saved_at": self._database.now_s, "document": SHARE_REPORT.write(report)}
            insert = self._database.insert(share_reports).values(instance=instance, **row)
            is_newer = share_reports.c.number < report.number
            await connection.execute(
                insert.on_conflict_do_update(index_elements=["instance"], set_=row, where=is_newer)
            )

    async def share_reports(self) -> Mapping[str, tuple[float, InstanceReport]]:
        age_s = self._database.now_s - share_reports.c.saved_at
        async with self._database.reading() as connection:
            rows = (await connection.execute(select(share_reports.c.instance, age_s, share_reports.c.document))).all()
        return {instance: (max(0.0, age_s), SHARE_REPORT.read(document)) for instance, age_s, document in rows}

    async def save_share_table(self, backend: str, table: ShareTable, lease: Lease, *, per_replica: bool) -> None:
        """One statement, as for a recommendation: the row comes from the lease."""
        row = {
            "backend": backend,
            "per_replica": per_replica,
            "version": table.version,
            "document": SHARE_TABLE.write(table),
        }
        columns = [literal(value, share_tables.c[name].type) for name, value in row.items()]
        ours = select(*columns).where(in_force(lease)).with_for_update(read=True, of=leases)
        statement = (
            self._database.insert(share_tables)
            .from_select(list(row), ours)
            .on_conflict_do_update(
                index_elements=["backend", "per_replica"],
                set_={"version": table.version, "document": row["document"]},
                where=share_tables.c.version == table.version - 1,
            )
        )
        async with self._database.writing(is_news=False) as connection:
            if (await connection.execute(statement)).rowcount == 1:
                return
            is_ours = await connection.scalar(select(leases.c.epoch).where(in_force(lease))) is not None
        if is_ours:
            raise StoreError(f"Version {table.version} of the shares of '{backend}' does not follow on what is stored.")
        raise StaleLeaseError(f"The lease of '{lease.group}' was taken over; its holder divides '{backend}'.")

    async def share_tables(self) -> Mapping[tuple[str, bool], ShareTable]:
        columns = (share_tables.c.backend, share_tables.c.per_replica, share_tables.c.document)
        async with self._database.reading() as connection:
            rows = (await connection.execute(select(*columns))).all()
        return {(backend, per_replica): SHARE_TABLE.read(document) for backend, per_replica, document in rows}

    async def save_override(self, backend: str, override: Override | None) -> None:
        async with self._database.writing() as connection:
            await connection.execute(delete(overrides).where(overrides.c.backend == backend))
            if override is not None:
                document = OVERRIDE.write(override)
                await connection.execute(overrides.insert().values(backend=backend, document=document))

    async def overrides(self) -> Mapping[str, Override]:
        async with self._database.reading() as connection:
            rows = (await connection.execute(select(overrides.c.backend, overrides.c.document))).all()
        return {backend: OVERRIDE.read(document) for backend, document in rows}

    # ---------------------------------------------------------------------------------------- between instances
    async def save_sweep_status(self, backend: str, status: SweepStatus | None) -> None:
        async with self._database.writing() as connection:
            if status is None:
                await connection.execute(delete(sweep_statuses).where(sweep_statuses.c.backend == backend))
                return
            row = {"document": SWEEP_STATUS.write(status)}
            insert = self._database.insert(sweep_statuses).values(backend=backend, **row)
            await connection.execute(insert.on_conflict_do_update(index_elements=["backend"], set_=row))

    async def sweep_statuses(self) -> Mapping[str, SweepStatus]:
        async with self._database.reading() as connection:
            rows = (await connection.execute(select(sweep_statuses.c.backend, sweep_statuses.c.document))).all()
        return {backend: SWEEP_STATUS.read(document) for backend, document in rows}

    async def add_command(self, command: ForwardedCommand) -> None:
        async with self._database.writing() as connection:
            await connection.execute(commands.insert().values(backend=command.backend, document=COMMAND.write(command)))

    async def take_commands(self, backends: Collection[str]) -> Sequence[ForwardedCommand]:
        taken = (
            delete(commands)
            .where(commands.c.backend.in_(backends))
            .returning(commands.c.command_id, commands.c.document)
        )
        async with self._database.writing(is_news=False) as connection:
            rows = (await connection.execute(taken)).all()
        return tuple(COMMAND.read(document) for _, document in sorted((number, text) for number, text in rows))

    async def save_checkpoint(self, backend: str, kind: str, document: str) -> None:
        row = {"document": document}
        insert = self._database.insert(checkpoints).values(backend=backend, kind=kind, **row)
        async with self._database.writing(is_news=False) as connection:
            await connection.execute(insert.on_conflict_do_update(index_elements=["backend", "kind"], set_=row))

    async def checkpoints(self, backend: str) -> Mapping[str, str]:
        statement = select(checkpoints.c.kind, checkpoints.c.document).where(checkpoints.c.backend == backend)
        async with self._database.reading() as connection:
            return dict((await connection.execute(statement)).all())
