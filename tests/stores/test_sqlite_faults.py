"""A file on a full or read-only disk, or damaged: one sentence with the setting to change, and nothing lost."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import event
from structlog.testing import capture_logs
from support.records import recommendation, running, sweep
from support.small_disk import small_disk

from calibrator.core.records.sweep import SweepRecord
from calibrator.errors import StoreError
from calibrator.ports.store import Lease, Retention
from calibrator.stores.sql_store import SqlStore
from calibrator.stores.sqlite import SqliteDatabase

FULL = r"is on a full disk \(.*\)\. Free some space, or set store\.path to another place\.$"


def new_store(path: Path, *, moves_damaged: bool = False) -> SqlStore:
    return SqlStore(SqliteDatabase(path, moves_damaged=moves_damaged), Retention())


async def take(store: SqlStore) -> Lease:
    lease = await store.leases.acquire("chat", "a", 60.0)
    assert lease is not None
    return lease


def large(number: int) -> SweepRecord:
    """Some 40 KB when stored."""
    return running(f"s{number}", "x" * 20_000)


async def fill(store: SqlStore, sweeps: int = 200) -> None:
    for number in range(sweeps):
        await store.save_sweep(large(number))


async def _with_sweeps(path: Path) -> None:
    store = new_store(path)
    await store.open()
    await fill(store, 5)
    await store.close()


# -------------------------------------------------------------------------------------------------------- full disks
def test_a_full_disk_is_named_and_the_store_goes_on_once_there_is_space(tmp_path: Path) -> None:
    async def work(disk: Path) -> None:
        store = new_store(disk / "store.db")
        await store.open()
        try:
            lease = await take(store)
            await store.add_recommendation(recommendation(version=1), lease)
            ballast = disk / "ballast"
            ballast.write_bytes(bytes(200 * 1024))
            with pytest.raises(StoreError, match=FULL):
                await fill(store)
            assert [one.version for one in await store.latest_recommendations()] == [1]
            ballast.unlink()
            await store.add_recommendation(recommendation(version=2), lease)
            assert [one.version for one in await store.latest_recommendations()] == [2]
        finally:
            await store.close()

    with small_disk(tmp_path, kib=700) as disk:
        asyncio.run(work(disk))


def test_a_start_on_a_full_disk_is_refused(tmp_path: Path) -> None:
    with small_disk(tmp_path, kib=100) as disk:
        (disk / "ballast").write_bytes(bytes(96 * 1024))
        with pytest.raises(StoreError, match=FULL):
            asyncio.run(new_store(disk / "store.db").open())
        (disk / "ballast").unlink()


def test_a_file_that_may_not_grow_is_a_full_disk(tmp_path: Path) -> None:
    async def work() -> None:
        store = new_store(tmp_path / "store.db")
        await store.open()
        try:
            event.listen(store._database._engine.sync_engine, "connect", limit)  # type: ignore[attr-defined]  # SQLite's
            with pytest.raises(StoreError, match=FULL):
                await fill(store)
        finally:
            await store.close()

    def limit(connection: object, _record: object) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]  # of the driver
        cursor.execute("PRAGMA max_page_count=60")
        cursor.close()

    asyncio.run(work())


# --------------------------------------------------------------------------------------------------- read-only disks
def test_a_read_only_disk_is_refused(tmp_path: Path) -> None:
    with small_disk(tmp_path, kib=700) as disk:
        asyncio.run(_with_sweeps(disk / "store.db"))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(
            StoreError, match=r"lock file .*\(Read-only file system\)\. .*or set store\.path to another\.$"
        ):
            asyncio.run(new_store(disk / "store.db").open())


# ----------------------------------------------------------------------------------------------------- damaged files
def damage(path: Path, offset: int) -> bytes:
    asyncio.run(_with_sweeps(path))
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 8192)
    return path.read_bytes()


@pytest.mark.parametrize("offset", [0, 4096, 100_000], ids=["header", "schema", "a sweep's document"])
def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "store.db"
    content = damage(path, offset)
    with pytest.raises(StoreError, match=r"(damaged|not a SQLite database).*store\.on_corrupt: move_aside\.$"):
        asyncio.run(new_store(path).open())
    assert path.read_bytes() == content


def test_a_damaged_file_is_moved_aside_if_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "store.db"

    async def start_afresh() -> None:
        store = new_store(path, moves_damaged=True)
        await store.open()
        try:
            assert list(await store.sweeps("chat", 10)) == []
            await store.save_sweep(sweep())
        finally:
            await store.close()

    for number in (1, 2):
        content = damage(path, 0)
        with capture_logs() as lines:
            asyncio.run(start_afresh())
        aside = tmp_path / f"store.db.damaged-{number}"
        assert aside.read_bytes() == content
        assert [line["to"] for line in lines] == [str(aside)]
        path.unlink()


def test_what_another_release_wrote_is_never_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    asyncio.run(_with_sweeps(path))
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StoreError, match="newer release"):
        asyncio.run(new_store(path, moves_damaged=True).open())
    assert [one.name for one in tmp_path.iterdir() if "damaged" in one.name] == []
