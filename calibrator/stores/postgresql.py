"""PostgreSQL: several services share one state.

READ COMMITTED, whatever the server's default: the fence of `sql_store` and the steps of `sql_leases` lock the lease's
row and then read it as it is after the lock.

Every step ends in seconds, whatever the server does. It bounds itself (`statement_timeout`, `lock_timeout`), and we
bound it as well, because a stopped server does not even time out. Leases have connections of their own: a renewal
never waits behind a sweep's record. What is written under a limit that passed may be committed or not; the caller
tries again, and every write of `sql_store` may be repeated (but a command added twice is carried out twice).

A server that turned read-only was demoted: its connections are dropped, so that new ones find the new primary.
The URL is read again for each connection: a rotated password is followed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cached_property, partial
from typing import Any

import asyncpg
from asyncpg.exceptions import ClientConfigurationError
from sqlalchemy import ColumnElement, Connection, Float, Table, cast, event, func, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from calibrator.errors import ConfigurationError, StoreError
from calibrator.stores.database import Insert
from calibrator.stores.listening import CHANNEL, Listener
from calibrator.stores.migrate import MIGRATION_LIMIT_S, is_current, migrate, revision
from calibrator.stores.postgresql_errors import READ_ONLY, sqlstate, translated
from calibrator.stores.postgresql_url import Address, parse_url

STEP_LIMIT_S = 5.0
URGENT_LIMIT_S = 3.0  # of leases: a renewal that failed must leave time for another
STATEMENT_SHARE = 0.8  # of the step's limit: the server's own limit comes before ours
LOCK_SHARE = 0.5
CLOSE_LIMIT_S = 0.5  # of a connection that is given up
IDLE_LIMIT_S = 10.0  # in a transaction: we never think in one, so whoever is idle there is stopped or gone
POOL = 8  # connections of one instance, beside one for leases and one for notifications
MIGRATION_KEY = 0x63616C69  # "cali": one instance migrates at a time
ELSEWHERE = "give the URL that store.postgresql refers to a database or a schema (options=-csearch_path=...) of its own"


class PostgresDatabase:
    """`stores.database.Database` over one server. `url` is asked for each new connection."""

    now_s: ColumnElement[float] = cast(func.extract("epoch", func.clock_timestamp()), Float)

    def __init__(self, url: Callable[[], str], ca_file: str | None = None) -> None:
        self._url = url
        self._ca_file = ca_file
        self._own = secrets.token_hex(8)
        self._engines: tuple[AsyncEngine, AsyncEngine] | None = None  # for all, and for what may not wait
        self._listener = Listener(partial(self._connect, STEP_LIMIT_S), self._own)

    @cached_property
    def name(self) -> str:
        return self._address().name

    async def revision(self) -> str | None:
        engine = self._engine(1, STEP_LIMIT_S)
        try:
            with translated(self.name):
                async with asyncio.timeout(STEP_LIMIT_S), engine.connect() as connection:
                    return await connection.run_sync(revision)
        finally:
            await engine.dispose()

    async def open(self) -> None:
        """Migrate if need be. Raises ConfigurationError for a bad URL, else StoreError."""
        if self._engines is not None:
            return
        engines = self._engine(POOL, STEP_LIMIT_S), self._engine(1, URGENT_LIMIT_S)
        try:
            await self._prepare(engines[0])
        except BaseException:
            await self._dispose(engines)
            raise
        self._engines = engines
        self._listener.start()

    async def close(self) -> None:
        engines, self._engines = self._engines, None
        await self._listener.stop()
        if engines is not None:
            await self._dispose(engines)

    async def changed(self, limit_s: float) -> None:
        await self._listener.wait(limit_s)

    def insert(self, table: Table) -> Insert:
        return postgresql.insert(table)

    @asynccontextmanager
    async def writing(self, *, is_news: bool = True, is_urgent: bool = False) -> AsyncIterator[AsyncConnection]:
        async with self._step(is_urgent=is_urgent) as connection:
            yield connection
            if is_news:
                await connection.execute(select(func.pg_notify(CHANNEL, self._own)))

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        async with self._step() as connection:
            yield connection

    @asynccontextmanager
    async def _step(self, *, is_urgent: bool = False) -> AsyncIterator[AsyncConnection]:
        if self._engines is None:
            raise StoreError("The database is not open.", "It opens when the service starts.")
        with translated(self.name):
            limit_s = URGENT_LIMIT_S if is_urgent else STEP_LIMIT_S
            async with asyncio.timeout(limit_s), self._engines[is_urgent].begin() as connection:
                yield connection

    # ------------------------------------------------------------------------------------------------- connections
    def _address(self) -> Address:
        return parse_url(self._url(), self._ca_file)

    async def _connect(self, limit_s: float) -> asyncpg.Connection[Any]:
        settings = {
            "application_name": "calibrator",
            "default_transaction_isolation": "read committed",
            "statement_timeout": _milliseconds(STATEMENT_SHARE * limit_s),
            "lock_timeout": _milliseconds(LOCK_SHARE * limit_s),
            "idle_in_transaction_session_timeout": _milliseconds(IDLE_LIMIT_S),
        }
        try:
            to = self._address()
            return await asyncpg.connect(
                to.dsn, timeout=to.connect_limit_s, connection_class=_Connection, server_settings=settings
            )
        except ConfigurationError as error:  # the secret is gone, or no URL any more: as bad as a database that is gone
            raise StoreError(error.cause, error.remedy) from None
        except OSError:  # a certificate's error is one, and a ValueError
            raise
        except ValueError as error:  # asyncpg's parser
            raise ClientConfigurationError("cannot be parsed") from error

    def _engine(self, connections: int, limit_s: float) -> AsyncEngine:
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=partial(self._connect, limit_s),
            pool_size=connections,
            max_overflow=0,
            pool_timeout=limit_s,
            pool_pre_ping=True,  # after a restart of the server the first step does not fail
            hide_parameters=True,
        )
        event.listen(engine.sync_engine, "handle_error", _drop_demoted)
        return engine

    async def _prepare(self, engine: AsyncEngine) -> None:
        with translated(self.name):
            async with asyncio.timeout(STEP_LIMIT_S), engine.begin() as connection:
                if await connection.run_sync(is_current, self.name, ELSEWHERE):
                    return
            async with asyncio.timeout(MIGRATION_LIMIT_S), engine.begin() as connection:
                await connection.run_sync(self._migrate)

    def _migrate(self, connection: Connection) -> None:
        for setting in ("statement_timeout", "lock_timeout"):
            connection.execute(select(func.set_config(setting, f"{int(MIGRATION_LIMIT_S)}s", True)))
        connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_KEY)))
        migrate(connection, self.name, ELSEWHERE)

    async def _dispose(self, engines: tuple[AsyncEngine, AsyncEngine]) -> None:
        for engine in engines:
            await engine.dispose()


class _Connection(asyncpg.Connection):
    """Says goodbye briefly: SQLAlchemy would wait two seconds for a server that does not answer."""

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's signature
        await super().close(timeout=CLOSE_LIMIT_S if timeout is None else min(timeout, CLOSE_LIMIT_S))


def _milliseconds(seconds: float) -> str:
    return str(round(1000 * seconds))


def _drop_demoted(context: ExceptionContext) -> None:
    if sqlstate(context.original_exception) == READ_ONLY:
        context.is_disconnect = True
