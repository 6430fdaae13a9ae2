"""Two calibrators on a real PostgreSQL: the fence, the news, the schema."""

from __future__ import annotations

import asyncio
import contextlib
import time

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect
from support.postgres_process import PostgresProcess
from support.postgres_stores import SECONDS, instances, store_at, take
from support.quiet_machine import real_time
from support.records import recommendation, sweep

from calibrator.errors import StaleLeaseError, StoreError
from calibrator.ports.store import Lease
from calibrator.stores.schema import metadata
from calibrator.stores.sql_store import SqlStore

TURNS = 3  # of each instance


# -------------------------------------------------------------------------------------------------------- the fence
def test_an_insert_under_the_old_epoch_waits_for_a_take_over_under_way_and_then_inserts_nothing(
    postgres_server: PostgresProcess,
) -> None:
    name = postgres_server.new_database()

    async def work() -> None:
        async with instances(postgres_server, name) as (old, _new):
            lease = await take(old, "a")
            other = await asyncpg.connect(postgres_server.url(name))
            takeover = other.transaction()
            await takeover.start()
            await other.execute("UPDATE leases SET holder = 'b', epoch = epoch + 1")
            late = asyncio.create_task(old.add_recommendation(recommendation(), lease))
            await _until_somebody_waits(other)
            await takeover.commit()
            await other.close()
            with pytest.raises(StaleLeaseError, match="taken over by another instance"):
                await late
            assert list(await old.latest_recommendations()) == []

    asyncio.run(work())


def test_a_take_over_waits_for_an_insert_under_way(postgres_server: PostgresProcess) -> None:
    """The other order: what the old holder has begun to publish is there before the new holder can look."""
    name = postgres_server.new_database()

    async def work() -> None:
        async with instances(postgres_server, name) as (_old, new):
            await take(new, "a", -1.0)
            other = await asyncpg.connect(postgres_server.url(name))
            insert = other.transaction()
            await insert.start()
            await other.execute("SELECT 1 FROM leases WHERE holder = 'a' FOR SHARE")
            taking = asyncio.create_task(new.leases.acquire("chat", "b", 60.0))
            await _until_somebody_waits(other)
            await insert.commit()
            await other.close()
            assert await taking == Lease("chat", "b", 2)

    asyncio.run(work())


async def _until_somebody_waits(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    async with asyncio.timeout(SECONDS):
        while not await connection.fetchval(waiting):  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.01)


def test_instances_that_take_over_from_each_other_publish_in_turn(postgres_server: PostgresProcess) -> None:
    """Each takes a lapsed lease and publishes at once, against all others: epochs never fall with the versions."""
    name = postgres_server.new_database()

    async def work() -> None:
        async with instances(postgres_server, name, 3) as stores:
            await asyncio.gather(*(rival(store, str(number)) for number, store in enumerate(stores)))

    async def rival(store: SqlStore, holder: str) -> None:
        published = 0
        while published < TURNS:  # against all others most attempts come too late
            lease = await store.leases.acquire("chat", holder, -1.0)
            assert lease is not None
            known = await store.latest_recommendations()
            version = known[0].version + 1 if known else 1
            with contextlib.suppress(StoreError):  # somebody was quicker
                await store.add_recommendation(recommendation(version=version, cap=int(holder) + 1), lease)
                published += 1

    asyncio.run(work())
    rows = postgres_server.execute("SELECT epoch FROM recommendations ORDER BY version", name)
    epochs = [epoch for (epoch,) in rows]
    assert len(epochs) == 3 * TURNS
    assert epochs == sorted(set(epochs)), "a stale holder never publishes after its successor"


# ---------------------------------------------------------------------------------------------------------- the news
@real_time
def test_the_others_hear_of_a_change_and_whoever_made_it_does_not(postgres_server: PostgresProcess) -> None:
    name = postgres_server.new_database()

    async def work() -> None:
        async with instances(postgres_server, name, 3) as (writer, *others):
            await asyncio.gather(*(one.changed(SECONDS) for one in (writer, *others)))  # the connections themselves
            heard = [asyncio.create_task(other.changed(SECONDS)) for other in others]
            own = asyncio.create_task(writer.changed(0.3))
            started_s = time.monotonic()
            await writer.save_sweep(sweep())
            await asyncio.gather(*heard)
            assert time.monotonic() - started_s < SECONDS / 2
            assert not own.done() or time.monotonic() - started_s >= 0.3
            await own

    asyncio.run(work())


# -------------------------------------------------------------------------------------------------------- the schema
def test_instances_that_start_at_once_make_the_schema_once(postgres_server: PostgresProcess) -> None:
    name = postgres_server.new_database()

    def difference(connection: Connection) -> list[object]:
        assert set(inspect(connection).get_table_names()) == {"alembic_version", *metadata.tables}
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async def work() -> None:
        async with instances(postgres_server, name, 5) as (first, *_rest), first._database.reading() as connection:
            assert await connection.run_sync(difference) == []

    asyncio.run(work())


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (
            "UPDATE alembic_version SET version_num = '9999'",
            r"newer release \(its schema is 9999.* Run that release, or give",
        ),
        ("DROP TABLE alembic_version", r"belongs to another program\. Give the URL .*store\.postgresql"),
    ],
    ids=["newer", "foreign"],
)
def test_a_schema_that_is_not_ours_is_refused_and_left_alone(
    postgres_server: PostgresProcess, statement: str, words: str
) -> None:
    name = postgres_server.new_database()

    async def opened() -> None:
        async with instances(postgres_server, name, 1):
            pass

    asyncio.run(opened())
    postgres_server.execute(statement, name)
    before = tables(postgres_server, name)
    with pytest.raises(StoreError, match=words):
        asyncio.run(opened())
    assert tables(postgres_server, name) == before


def test_a_schema_of_its_own_in_a_shared_database_will_do(postgres_server: PostgresProcess) -> None:
    name = postgres_server.new_database()
    postgres_server.execute("CREATE TABLE orders (id int)", name)
    postgres_server.execute("CREATE SCHEMA ours", name)

    async def work() -> None:
        store = store_at(postgres_server.url(name, options="-csearch_path%3Dours"))
        await store.open()
        await store.save_sweep(sweep())
        await store.close()

    asyncio.run(work())
    assert ("ours", "sweeps") in tables(postgres_server, name)
    assert {table for schema, table in tables(postgres_server, name) if schema == "public"} == {"orders"}


def tables(server: PostgresProcess, name: str) -> list[tuple[str, str]]:
    listed = "SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('public', 'ours') ORDER BY 1, 2"
    return server.execute(listed, name)
