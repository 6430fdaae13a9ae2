"""SQLite: one file, one process.

WAL lets readers go on while one writes; `synchronous=FULL` makes a published recommendation survive a power cut;
`BEGIN IMMEDIATE` takes the write lock at the start of a writing transaction, so that two writers wait for each other
(`busy_timeout`) instead of failing half-way. Python's own transaction handling is off: it would begin too late.

The instance lock says that whoever held leases is dead, or has closed this file: opening frees them, and a restart
sweeps at once. There are no other instances.

Each connection works in a thread of aiosqlite's; opening (lock, file checks, migration) runs in one of asyncio's.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import URL, ColumnElement, Connection, Engine, Table, create_engine, event, func
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from calibrator.errors import StoreError
from calibrator.stores.database import Insert
from calibrator.stores.lock import InstanceLock
from calibrator.stores.migrate import migrate, revision
from calibrator.stores.schema import leases

BUSY_TIMEOUT_MS = 10_000  # longer than any transaction of ours; a foreign reader's checkpoint may hold the file
JULIAN_DAY_OF_UNIX_EPOCH = 2_440_587.5
ELSEWHERE = "set store.path to another file"
_READ_ONLY = {"begin": "BEGIN"}  # execution option: a snapshot, no write lock


class SqliteDatabase:
    """`stores.database.Database` over one file."""

    now_s: ColumnElement[float] = (func.julianday("now") - JULIAN_DAY_OF_UNIX_EPOCH) * 86_400.0

    def __init__(self, path: Path, busy_timeout_ms: int = BUSY_TIMEOUT_MS, *, moves_damaged: bool = False) -> None:
        """`moves_damaged`: a damaged file is renamed, and a new one begun; else it is refused."""
        self._path = path.absolute()
        self._moves_damaged = moves_damaged
        self._busy_timeout_ms = busy_timeout_ms
        self._lock = InstanceLock(self._path.resolve())  # two names of one file are one store
        self._engine: AsyncEngine | None = None

    @property
    def name(self) -> str:
        return f"the store {self._path}"

    async def revision(self) -> str | None:
        return await asyncio.to_thread(self._revision) if self._path.exists() else None

    async def open(self) -> None:
        """Migrate, take the instance lock, free the leases of the dead. Raises StoreError."""
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

    async def changed(self, limit_s: float) -> None:
        await asyncio.sleep(limit_s)

    def insert(self, table: Table) -> Insert:
        return sqlite.insert(table)

    @asynccontextmanager
    async def writing(self, *, is_news: bool = True, is_urgent: bool = False) -> AsyncIterator[AsyncConnection]:
        del is_news, is_urgent  # there is no other instance to notify, and nobody to wait for
        with _translated(self._path):
            async with self._opened().begin() as connection:
                yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        with _translated(self._path):
            async with self._opened().execution_options(**_READ_ONLY).begin() as connection:
                yield connection

    def _prepare(self) -> None:
        """Lock, check for damage, migrate; the lock goes back if anything fails."""
        if self._path.is_dir():
            raise StoreError(f"The store's path {self._path} is a directory.", "Set store.path to a file in it.")
        self._lock.acquire()
        try:
            try:
                self._bring_up()
            except _DamagedError:
                if not self._moves_damaged:
                    raise
                self._move_aside()
                self._bring_up()
        except BaseException:
            self._lock.release()
            raise

    def _bring_up(self) -> None:
        engine = create_engine(_url("sqlite", self._path))
        _configure(engine, self._busy_timeout_ms)
        try:
            with _translated(self._path), engine.begin() as connection:
                if (found := connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()) != "ok":
                    what = str(found).splitlines()[-1]
                    raise _DamagedError(f"The store {self._path} is damaged ({what}).", _DAMAGED_REMEDY)
                migrate(connection, self.name, ELSEWHERE)
                connection.execute(leases.update().values(holder=""))
        finally:
            engine.dispose()

    def _revision(self) -> str | None:
        engine = create_engine("sqlite://", creator=lambda: sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True))
        try:
            with _translated(self._path), engine.connect() as connection:
                return revision(connection)
        finally:
            engine.dispose()

    def _move_aside(self) -> None:
        names = (self._path.with_name(f"{self._path.name}.damaged-{number}") for number in count(1))
        aside = next(name for name in names if not name.exists())
        structlog.get_logger().error("store is damaged and was moved aside; starting afresh", to=str(aside))
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self._path.with_name(self._path.name + suffix).rename(aside.with_name(aside.name + suffix))

    def _opened(self) -> AsyncEngine:
        if self._engine is None:
            raise StoreError(f"The store {self._path} is not open.", "It opens when the service starts.")
        return self._engine


def _url(driver: str, path: Path) -> URL:
    return URL.create(driver, database=str(path))


def _configure(engine: Engine, busy_timeout_ms: int) -> None:
    pragmas = (f"busy_timeout={busy_timeout_ms}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")

    def on_connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        cursor = connection.cursor()
        try:
            for pragma in pragmas:
                cursor.execute(f"PRAGMA {pragma}")
        except BaseException:
            cursor.close()
            connection.close()  # nobody else knows it yet
            raise
        cursor.close()

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", _on_begin)


def _on_begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN IMMEDIATE"))


class _DamagedError(StoreError):
    """The file is there, and cannot be trusted."""


_DAMAGED_REMEDY = "Restore a copy, move it away, or set store.on_corrupt: move_aside."
_ELSEWHERE = "or set store.path to another place"
_CAUSES: dict[str, tuple[str, str, type[StoreError]]] = {  # by the start of SQLite's own error name
    "SQLITE_NOTADB": ("is not a SQLite database", f"Set store.path to another file. {_DAMAGED_REMEDY}", _DamagedError),
    "SQLITE_CORRUPT": ("is damaged", _DAMAGED_REMEDY, _DamagedError),
    "SQLITE_READONLY": ("is read-only", f"Make file and directory writable for this user, {_ELSEWHERE}.", StoreError),
    "SQLITE_CANTOPEN": ("cannot be opened", f"Make its directory exist and be writable, {_ELSEWHERE}.", StoreError),
    "SQLITE_BUSY": ("is kept locked by another program", f"Stop that program, {_ELSEWHERE}.", StoreError),
    "SQLITE_FULL": ("is on a full disk", f"Free some space, {_ELSEWHERE}.", StoreError),
    "SQLITE_IOERR": (
        "cannot be read or written by the operating system",
        f"Check its disk, {_ELSEWHERE}.",
        StoreError,
    ),
}
_OTHER = ("failed", "Check the database's message.", StoreError)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """The database's exceptions become StoreError."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        original = getattr(error, "orig", None) or error
        name = getattr(original, "sqlite_errorname", "")
        cause, remedy, kind = next((words for start, words in _CAUSES.items() if name.startswith(start)), _OTHER)
        raise kind(f"The store {path} {cause} ({original}).", remedy) from error
