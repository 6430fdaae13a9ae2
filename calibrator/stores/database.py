"""The store in one SQLite file (port `Store`).

WAL lets readers go on while one writes; `synchronous=FULL` makes a published recommendation survive a power cut;
`BEGIN IMMEDIATE` takes the write lock at the start of a writing transaction, so that two writers wait for each other
(`busy_timeout`) instead of failing half-way. Python's own transaction handling is off: it would begin too late.

Each connection works in a thread of aiosqlite's; opening (lock, file checks, migration) runs in one of asyncio's.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, delete, event, func, select, tuple_
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from calibrator.core.shares import HeldShare
from calibrator.core.snapshot import Override, Recommendation
from calibrator.core.sweep_record import SweepOutcome, SweepRecord
from calibrator.errors import StoreError
from calibrator.stores.documents import OVERRIDE, RECOMMENDATION, SWEEP
from calibrator.stores.lock import InstanceLock
from calibrator.stores.migrate import migrate
from calibrator.stores.retention import FAILED_FACTOR, interrupted
from calibrator.stores.schema import overrides, recommendations, shares, sweeps

BUSY_TIMEOUT_MS = 10_000  # longer than any transaction of ours; a foreign reader's checkpoint may hold the file
_READ_ONLY = {"begin": "BEGIN"}  # execution option: a snapshot, no write lock


class SqliteStore:
    """One file, one process. `keep_sweeps`: see `stores.retention`."""

    def __init__(self, path: Path, keep_sweeps: int = 200, busy_timeout_ms: int = BUSY_TIMEOUT_MS) -> None:
        self._path = path.absolute()
        self._busy_timeout_ms = busy_timeout_ms
        self._keep_sweeps = keep_sweeps
        self._lock = InstanceLock(self._path.resolve())  # two names of one file are one store
        self._engine: AsyncEngine | None = None

    async def open(self) -> None:
        if self._engine is not None:
            return
        await asyncio.to_thread(self._prepare)
        engine = create_async_engine(_url("sqlite+aiosqlite", self._path))
        _configure(engine.sync_engine, self._busy_timeout_ms)
        self._engine = engine

    async def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.dispose()
        await asyncio.to_thread(self._lock.release)

    async def add_recommendation(self, recommendation: Recommendation) -> None:
        statement = recommendations.insert().values(
            backend=recommendation.backend,
            version=recommendation.version,
            published_at=recommendation.published_at,
            document=RECOMMENDATION.write(recommendation),
        )
        async with self._writing() as connection:
            try:
                await connection.execute(statement)
            except IntegrityError as error:
                raise StoreError(
                    f"Version {recommendation.version} of '{recommendation.backend}' exists already.",
                    "Two writers use this store; stop one of them.",
                ) from error

    async def latest_recommendations(self) -> Sequence[Recommendation]:
        newest = select(recommendations.c.backend, func.max(recommendations.c.version)).group_by(
            recommendations.c.backend
        )
        own_key = tuple_(recommendations.c.backend, recommendations.c.version)
        statement = select(recommendations.c.document).where(own_key.in_(newest)).order_by(recommendations.c.backend)
        async with self._reading() as connection:
            documents = (await connection.execute(statement)).scalars().all()
        return tuple(RECOMMENDATION.read(document) for document in documents)

    async def save_sweep(self, record: SweepRecord) -> None:
        async with self._writing() as connection:
            await _put(connection, record)
            if record.outcome is not None:
                await self._forget(connection, record.backend)

    async def sweep(self, sweep_id: str) -> SweepRecord | None:
        async with self._reading() as connection:
            document = await connection.scalar(select(sweeps.c.document).where(sweeps.c.sweep_id == sweep_id))
        return None if document is None else SWEEP.read(document)

    async def sweeps(self, backend: str, limit: int) -> Sequence[SweepRecord]:
        statement = (
            select(sweeps.c.document)
            .where(sweeps.c.backend == backend)
            .order_by(sweeps.c.started_at.desc(), sweeps.c.sweep_id.desc())
            .limit(limit)
        )
        async with self._reading() as connection:
            documents = (await connection.execute(statement)).scalars().all()
        return tuple(SWEEP.read(document) for document in documents)

    async def interrupt_running_sweeps(self, now: float) -> int:
        async with self._writing() as connection:
            running = (await connection.execute(select(sweeps.c.document).where(sweeps.c.outcome.is_(None)))).scalars()
            records = [interrupted(SWEEP.read(document), now) for document in running.all()]
            for record in records:
                await _put(connection, record)
        return len(records)

    async def save_shares(self, backend: str, held: Sequence[HeldShare], *, per_replica: bool) -> None:
        book = {"backend": backend, "per_replica": per_replica}
        rows = [{**book, "client": one.client, "requests": one.requests, "gap_s": one.gap_s} for one in held]
        async with self._writing() as connection:
            await connection.execute(delete(shares).filter_by(**book))
            if rows:
                await connection.execute(shares.insert(), rows)

    async def shares(self, backend: str, *, per_replica: bool) -> Sequence[HeldShare]:
        statement = (
            select(shares.c.client, shares.c.requests, shares.c.gap_s)
            .where(shares.c.backend == backend, shares.c.per_replica == per_replica)
            .order_by(shares.c.client)
        )
        async with self._reading() as connection:
            return tuple(HeldShare(*row) for row in await connection.execute(statement))

    async def save_override(self, backend: str, override: Override | None) -> None:
        async with self._writing() as connection:
            await connection.execute(delete(overrides).where(overrides.c.backend == backend))
            if override is not None:
                document = OVERRIDE.write(override)
                await connection.execute(overrides.insert().values(backend=backend, document=document))

    async def overrides(self) -> Mapping[str, Override]:
        async with self._reading() as connection:
            rows = (await connection.execute(select(overrides.c.backend, overrides.c.document))).all()
        return {backend: OVERRIDE.read(document) for backend, document in rows}

    async def _forget(self, connection: AsyncConnection, backend: str) -> None:
        calibrated = sweeps.c.outcome == SweepOutcome.CALIBRATED.value
        for kind, keep in ((calibrated, self._keep_sweeps), (~calibrated, FAILED_FACTOR * self._keep_sweeps)):
            old = (
                select(sweeps.c.sweep_id)
                .where(sweeps.c.backend == backend, sweeps.c.outcome.is_not(None), kind)
                .order_by(sweeps.c.started_at.desc(), sweeps.c.sweep_id.desc())
                .limit(-1)  # SQLite wants a limit before an offset; -1 is none
                .offset(keep)
            )
            await connection.execute(delete(sweeps).where(sweeps.c.sweep_id.in_(old)))

    def _prepare(self) -> None:
        """Lock, then migrate; the lock goes back if anything fails."""
        if self._path.is_dir():
            raise StoreError(f"The store's path {self._path} is a directory.", "Set store.path to a file in it.")
        self._lock.acquire()
        try:
            engine = create_engine(_url("sqlite", self._path))
            _configure(engine, self._busy_timeout_ms)
            try:
                with _translated(self._path), engine.begin() as connection:
                    migrate(connection, self._path)
            finally:
                engine.dispose()
        except BaseException:
            self._lock.release()
            raise

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncConnection]:
        with _translated(self._path):
            async with self._opened().begin() as connection:
                yield connection

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        with _translated(self._path):
            async with self._opened().execution_options(**_READ_ONLY).begin() as connection:
                yield connection

    def _opened(self) -> AsyncEngine:
        if self._engine is None:
            raise StoreError(f"The store {self._path} is not open.", "It opens when the service starts.")
        return self._engine


async def _put(connection: AsyncConnection, record: SweepRecord) -> None:
    row = {
        "backend": record.backend,
        "started_at": record.started_at,
        "outcome": None if record.outcome is None else record.outcome.value,
        "document": SWEEP.write(record),
    }
    statement = insert(sweeps).values(sweep_id=record.sweep_id, **row)
    await connection.execute(statement.on_conflict_do_update(index_elements=["sweep_id"], set_=row))


def _url(driver: str, path: Path) -> URL:
    return URL.create(driver, database=str(path))


def _configure(engine: Engine, busy_timeout_ms: int) -> None:
    pragmas = (f"busy_timeout={busy_timeout_ms}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")

    def on_connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", _on_begin)


def _on_begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN IMMEDIATE"))


_CAUSES = {  # by the start of SQLite's own error name: (cause, remedy)
    "SQLITE_NOTADB": ("is not a SQLite database", "Move it away, or set store.path to another file."),
    "SQLITE_CORRUPT": ("is damaged", "Restore a copy, or move it away to start afresh."),
    "SQLITE_READONLY": ("is read-only", "Make the file and its directory writable for this user."),
    "SQLITE_CANTOPEN": ("cannot be opened", "Its directory must exist and be writable for this user."),
    "SQLITE_BUSY": ("is kept locked by another program", "Stop that program."),
    "SQLITE_FULL": ("is on a full disk", "Free some space."),
    "SQLITE_IOERR": ("cannot be read or written by the operating system", "Look at its disk."),
}
_OTHER = ("failed", "Look at the database's message.")


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """The database's exceptions become StoreError."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        original = getattr(error, "orig", None) or error
        name = getattr(original, "sqlite_errorname", "")
        cause, remedy = next((words for start, words in _CAUSES.items() if name.startswith(start)), _OTHER)
        raise StoreError(f"The store {path} {cause} ({original}).", remedy) from error
