"""The file behind the store: schema, refusals, durability, one instance at a time (real processes)."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text
from support.records import recommendation, running, sweep

from calibrator.errors import ExitCode, StoreError, StoreLockedError
from calibrator.ports.store import Lease, Retention
from calibrator.stores.documents import RECOMMENDATION
from calibrator.stores.migrate import alembic_config, migrate
from calibrator.stores.schema import metadata
from calibrator.stores.sql_store import SqlStore
from calibrator.stores.sqlite import BUSY_TIMEOUT_MS, SqliteDatabase

HOLDER = """
import asyncio, sys
from pathlib import Path
from calibrator.stores.sqlite import SqliteDatabase

async def hold():
    await SqliteDatabase(Path(sys.argv[1])).open()
    print("open", flush=True)
    await asyncio.Event().wait()

asyncio.run(hold())
"""


def new_store(path: Path, busy_timeout_ms: int = BUSY_TIMEOUT_MS) -> SqlStore:
    return SqlStore(SqliteDatabase(path, busy_timeout_ms), Retention())


@contextmanager
def another_instance(path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "open\n"
            yield holder
        finally:
            holder.kill()


def open_and_close(path: Path) -> None:
    async def both() -> None:
        store = new_store(path)
        await store.open()
        await store.close()

    asyncio.run(both())


# -------------------------------------------------------------------------------------------------------- one instance
def test_a_second_instance_is_refused_with_the_owner_and_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with another_instance(path) as owner, pytest.raises(StoreLockedError) as refusal:
        open_and_close(path)
    assert f"process {owner.pid}" in refusal.value.cause
    assert "store.path" in refusal.value.remedy
    assert refusal.value.exit_code is ExitCode.CONFIGURATION


def test_another_name_of_the_same_file_is_the_same_store(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    (tmp_path / "alias.db").symlink_to(path)
    with another_instance(path), pytest.raises(StoreLockedError):
        open_and_close(tmp_path / "alias.db")


def test_kill_9_of_the_owner_leaves_no_lock_behind(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with another_instance(path) as owner:
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
        open_and_close(path)


def test_a_refused_or_failed_opening_gives_the_lock_back(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"not a database, and long enough for SQLite to look at its header" * 10)
    with pytest.raises(StoreError, match="not a SQLite database"):
        open_and_close(path)
    path.unlink()
    open_and_close(path)


def test_opening_twice_is_opening_once(tmp_path: Path) -> None:
    async def twice() -> None:
        store = new_store(tmp_path / "store.db")
        await store.open()
        await store.open()
        await store.close()
        await store.close()

    asyncio.run(twice())


# ------------------------------------------------------------------------------------------------------------- schema
def test_the_migrated_schema_is_the_schema_of_the_program(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    open_and_close(path)
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert set(inspect(connection).get_table_names()) == {"alembic_version", *metadata.tables}
    engine.dispose()


def test_a_migration_that_is_cut_off_leaves_an_empty_file(tmp_path: Path) -> None:
    """Schema changes run inside the caller's transaction: what is rolled back never happened."""
    engine = create_engine(f"sqlite:///{tmp_path / 'store.db'}", isolation_level=None)
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        migrate(connection, "the store", "move it")
        assert inspect(connection).has_table("sweeps")
        connection.exec_driver_sql("ROLLBACK")
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == []
    engine.dispose()


def test_a_file_of_an_older_release_is_brought_up_to_date_with_all_that_it_knew(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config = alembic_config(connection)
        command.upgrade(config, "0002")
        document = RECOMMENDATION.write(recommendation())
        row = {"backend": "chat", "version": 1, "published_at": 1001.0, "document": document}
        connection.execute(
            text("INSERT INTO recommendations VALUES (:backend, :version, :published_at, :document)"), row
        )
    engine.dispose()

    async def work() -> None:
        store = new_store(path)
        await store.open()
        try:
            assert list(await store.latest_recommendations()) == [recommendation()]
            await store.add_recommendation(recommendation(version=2), await hold(store))
        finally:
            await store.close()

    asyncio.run(work())
    assert ask(path, "SELECT group_concat(epoch) FROM recommendations") == "0,1"


def test_a_file_of_a_newer_release_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    open_and_close(path)
    change(path, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"newer release .*9999.* Run that release"):
        open_and_close(path)
    assert ask(path, "SELECT version_num FROM alembic_version") == "9999"


def test_the_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    change(path, "CREATE TABLE orders (id INTEGER)")
    with pytest.raises(StoreError, match="another program"):
        open_and_close(path)
    assert ask(path, "SELECT group_concat(name) FROM sqlite_master") == "orders"


def test_every_connection_waits_for_locks_and_syncs_what_it_commits(tmp_path: Path) -> None:
    async def pragmas() -> list[object]:
        store = SqliteDatabase(tmp_path / "store.db")
        await store.open()
        async with store.reading() as connection:
            names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            found = [(await connection.exec_driver_sql(f"PRAGMA {name}")).scalar() for name in names]
        await store.close()
        return found

    assert asyncio.run(pragmas()) == ["wal", 2, 1, 10_000]  # 2: FULL


# ----------------------------------------------------------------------------------------------------------- bad files
def test_what_cannot_be_a_store_is_refused_with_the_key_to_change(tmp_path: Path) -> None:
    no_folder = tmp_path / "missing" / "store.db"
    unwritable = Path("/proc/store.db")  # not even root may write there
    for path, cause in ((no_folder, "No such file"), (unwritable, "cannot be written"), (tmp_path, "is a directory")):
        with pytest.raises(StoreError, match=cause) as refusal:
            open_and_close(path)
        assert "store.path" in refusal.value.remedy


def test_a_read_only_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    open_and_close(path)
    path.chmod(0o444)
    if os.access(path, os.W_OK, effective_ids=True):
        pytest.skip("this user may write everything; the case above covers it")
    with pytest.raises(StoreError, match="read-only"):
        open_and_close(path)


def test_a_file_that_is_damaged_behind_its_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    open_and_close(path)
    with path.open("r+b") as file:  # the first page, with header and schema, stays
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    with pytest.raises(StoreError, match="damaged"):
        open_and_close(path)


def test_a_document_of_another_release_is_refused_not_guessed_at(tmp_path: Path) -> None:
    path = tmp_path / "store.db"

    async def save() -> None:
        store = new_store(path)
        await store.open()
        await store.save_sweep(sweep())
        await store.close()

    async def load() -> None:
        store = new_store(path)
        await store.open()
        try:
            with pytest.raises(StoreError, match=r"SweepRecord cannot be read .* Run the release that wrote it"):
                await store.sweep("s1")
        finally:
            await store.close()

    asyncio.run(save())
    change(path, """UPDATE sweeps SET document = replace(document, '"version":2', '"version":99')""")
    asyncio.run(load())
    change(path, "UPDATE sweeps SET document = '{}'")
    asyncio.run(load())


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not open"):
        asyncio.run(new_store(tmp_path / "store.db").save_sweep(running("s1")))


def test_a_failed_transaction_changes_nothing_and_the_store_goes_on(tmp_path: Path) -> None:
    async def work() -> None:
        store = new_store(tmp_path / "store.db")
        await store.open()
        try:
            lease = await hold(store)
            await store.add_recommendation(recommendation(), lease)
            with pytest.raises(StoreError):
                await store.add_recommendation(recommendation(cap=64), lease)
            await store.add_recommendation(recommendation(version=2), lease)
            assert [one.version for one in await store.latest_recommendations()] == [2]
        finally:
            await store.close()

    asyncio.run(work())


def test_a_database_kept_locked_by_another_program_is_waited_for_then_named(tmp_path: Path) -> None:
    path = tmp_path / "store.db"

    async def work() -> None:
        store = new_store(path, busy_timeout_ms=50)
        await store.open()
        lease = await hold(store)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            assert list(await store.latest_recommendations()) == []  # readers go on
            with pytest.raises(StoreError, match="locked by another program"):
                await store.add_recommendation(recommendation(), lease)
        finally:
            other.close()
            await store.close()

    asyncio.run(work())


def test_a_restart_takes_the_leases_of_the_dead_at_once(tmp_path: Path) -> None:
    """The instance lock says that they are dead; epochs go on."""

    async def take(holder: str) -> int:
        store = new_store(tmp_path / "store.db")
        await store.open()
        try:
            return (await hold(store, holder)).epoch
        finally:
            await store.close()

    assert asyncio.run(take("a")) < asyncio.run(take("b"))


async def hold(store: SqlStore, holder: str = "a") -> Lease:
    lease = await store.leases.acquire("chat", holder, 60.0)
    assert lease is not None
    return lease


def change(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement)
    connection.close()


def ask(path: Path, query: str) -> object:
    connection = sqlite3.connect(path)
    answer = connection.execute(query).fetchone()[0]
    connection.close()
    return answer
