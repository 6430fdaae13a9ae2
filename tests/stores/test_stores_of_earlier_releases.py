"""A store that an earlier release wrote opens, tells what changed in it, and means what it meant.

`fixtures/stores` holds dumps (SQL text) of SQLite files, each written by the code of its revision. PostgreSQL begins
with the same rows.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import alembic.command
import pytest
import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import create_async_engine
from support.postgres_process import PostgresProcess
from support.postgres_stores import store_at
from support.records import recommendation, sweep

from calibrator.core.publish.snapshot import CapBeforeCut, Override, State
from calibrator.core.records.history import HISTORY_VERSION
from calibrator.core.sharing.allocator import HeldShare
from calibrator.ports.store import ForwardedCommand, Retention, SweepStatus
from calibrator.stores.migrate import alembic_config
from calibrator.stores.sql_store import SqlStore
from calibrator.stores.sqlite import BUSY_TIMEOUT_MS, SqliteDatabase

T = TypeVar("T")
Open = Callable[[], SqlStore]
DUMP = Path(__file__).parents[1] / "fixtures" / "stores" / "revision_0005.sql"


@pytest.fixture(params=["sqlite", "postgresql"])
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    path = tmp_path / "calibrator.db"
    connection = sqlite3.connect(path)
    connection.executescript(DUMP.read_text())
    connection.close()
    if request.param == "sqlite":
        return lambda: SqlStore(SqliteDatabase(path, BUSY_TIMEOUT_MS), Retention())
    server: PostgresProcess = request.getfixturevalue("postgres_server")
    url = server.url(server.new_database())
    asyncio.run(copy_to_postgresql(path, url))
    return lambda: store_at(url)


async def copy_to_postgresql(path: Path, url: str) -> None:
    """The same rows in the tables that revision 0005 makes there."""
    source = sa.create_engine(f"sqlite:///{path}")
    target = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))

    def copy(connection: sa.Connection) -> None:
        alembic.command.upgrade(alembic_config(connection), "0005")
        tables = sa.MetaData()
        tables.reflect(connection)
        with source.connect() as earlier_rows:
            for table in tables.sorted_tables:
                rows = earlier_rows.execute(sa.select(table)).mappings().all()
                if rows and table.name != "alembic_version":
                    connection.execute(table.insert(), [dict(row) for row in rows])

    async with target.begin() as connection:
        await connection.run_sync(copy)
    await target.dispose()
    source.dispose()


def with_store(earlier: Open, ask: Callable[[SqlStore], Awaitable[T]]) -> T:
    async def run() -> T:
        store = earlier()
        await store.open()
        try:
            return await ask(store)
        finally:
            await store.close()

    return asyncio.run(run())


def test_the_cap_that_was_served_is_served_again_with_the_one_before_its_cut(earlier: Open) -> None:
    (newest,) = with_store(earlier, lambda store: store.latest_recommendations())
    assert (newest.cap, newest.state, newest.version) == (24, State.GUARDED, 2)
    assert newest.before_cut == CapBeforeCut(32, 32, State.CALIBRATED, 1500.0)
    assert newest.rates == recommendation().rates


def test_a_sweep_keeps_its_stages_and_what_it_began_with(earlier: Open) -> None:
    kept = with_store(earlier, lambda store: store.sweep("s1"))
    assert kept is not None
    assert kept.levels == sweep().levels
    assert kept.history.version == HISTORY_VERSION
    first, second = kept.history.stages
    assert first == sweep().history.stages[0]
    assert second.level_lost == "live traffic changed by 6 requests at its end"
    assert kept.history.warm is not None
    assert kept.history.warm.sweeps_since_upward_probe == 2
    assert kept.history.warm.stages == (second,)


def test_shares_pins_checkpoints_and_commands_are_still_there(earlier: Open) -> None:
    assert with_store(earlier, lambda store: store.shares("chat", per_replica=False)) == [
        HeldShare("envoy-0", 16, 5.0),
        HeldShare("envoy-1", 16, 7.5),
    ]
    assert with_store(earlier, lambda store: store.overrides()) == {
        "chat": Override(20, "maintenance", "ops", 1000.0, 99_000.0)
    }
    assert with_store(earlier, lambda store: store.checkpoints("chat")) == {
        "triggers": '{"cooling":{"restart":1200.0}}'
    }
    later = ForwardedCommand("chat", "s9", "asked for now", 3000.0)

    async def ask(store: SqlStore) -> Sequence[ForwardedCommand]:
        await store.add_command(later)
        return await store.take_commands(["chat"])

    first, second = with_store(earlier, ask)
    assert first.lowered is not None
    assert first.lowered.before_cut is not None
    assert second == later


def test_the_status_of_a_sweep_that_ran_is_still_there(earlier: Open) -> None:
    assert with_store(earlier, lambda store: store.sweep_statuses()) == {
        "chat": SweepStatus("s2", 4, url="http://engine/v1")
    }


def test_it_is_told_which_words_changed_in_how_many_documents(earlier: Open) -> None:
    with structlog.testing.capture_logs() as logs:
        with_store(earlier, lambda store: store.overrides())
    (told,) = [entry for entry in logs if entry["event"] == "stored documents renamed"]
    assert told["names"]["visits"] == "stages"
    assert told["documents"] == {"recommendations": 2, "sweeps": 2, "commands": 1, "share_reports": 1}


def test_a_second_start_changes_nothing_more(earlier: Open) -> None:
    first = with_store(earlier, lambda store: store.sweep("s1"))
    with structlog.testing.capture_logs() as logs:
        assert with_store(earlier, lambda store: store.sweep("s1")) == first
    assert [entry for entry in logs if entry["event"] == "stored documents renamed"] == []
