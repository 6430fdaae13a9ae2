"""What a PostgreSQL can do to us while we run: each step ends in seconds, with a sentence, and later works again."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator

import pytest
from support.deaf_proxy import deaf_proxy
from support.postgres_process import PostgresProcess, postgres
from support.postgres_stores import SECONDS, instances, store_at, take
from support.quiet_machine import real_time
from support.records import recommendation, running, sweep

from calibrator.errors import ConfigurationError, StoreError
from calibrator.ports.store import Retention
from calibrator.stores.postgresql import PostgresDatabase
from calibrator.stores.sql_store import SqlStore


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresProcess]:
    """One to be stopped, killed and restarted; it runs again after each test."""
    with postgres() as server:
        yield server


def restart(server: PostgresProcess, how: signal.Signals = signal.SIGQUIT) -> None:
    server.stop(how)
    server.start()


def test_a_restart_of_the_server_is_not_noticed_between_two_steps(own_server: PostgresProcess) -> None:
    name = own_server.new_database()

    async def work() -> None:
        async with instances(own_server, name, 1) as (store,):
            lease = await take(store)
            await store.add_recommendation(recommendation(), lease)
            await asyncio.to_thread(restart, own_server)
            assert list(await store.latest_recommendations()) == [recommendation()]
            await store.add_recommendation(recommendation(version=2), lease)
            assert await store.leases.renew(lease, 60.0)

    asyncio.run(work())


def test_a_server_that_is_gone_is_named_at_once(own_server: PostgresProcess) -> None:
    name = own_server.new_database()

    async def work() -> None:
        async with instances(own_server, name, 1) as (store,):
            await asyncio.to_thread(own_server.stop)
            try:
                for step in (store.latest_recommendations(), store.leases.holders(), store.save_sweep(running("s1"))):
                    with pytest.raises(StoreError, match=r"cannot be reached.*store\.postgresql|closed the connection"):
                        await step
            finally:
                await asyncio.to_thread(own_server.start)
            await store.save_sweep(running("s1"))

    asyncio.run(work())


@real_time
def test_a_stopped_server_costs_seconds(own_server: PostgresProcess) -> None:
    """SIGSTOP: it accepts connections and answers nothing, so no timeout of its own helps."""
    name = own_server.new_database()

    async def work() -> None:
        async with instances(own_server, name, 1) as (store,):
            lease = await take(store)
            await store.latest_recommendations()
            own_server.pause()
            try:
                started_s = time.monotonic()
                steps = (store.latest_recommendations(), store.leases.renew(lease, 60.0), store.save_sweep(sweep()))
                answers = await asyncio.gather(*steps, return_exceptions=True)
                assert time.monotonic() - started_s < SECONDS
                assert [type(answer) for answer in answers] == [StoreError] * 3
                assert "does not answer in time" in str(answers[0])
            finally:
                own_server.resume()
            async with asyncio.timeout(SECONDS):
                await store.save_sweep(sweep())
            assert await store.leases.renew(lease, 60.0)

    asyncio.run(work())


@real_time
def test_news_are_heard_again_after_a_restart_of_the_server(own_server: PostgresProcess) -> None:
    name = own_server.new_database()

    async def work() -> None:
        async with instances(own_server, name) as (writer, reader):
            await reader.changed(SECONDS)
            await asyncio.to_thread(restart, own_server)
            async with asyncio.timeout(SECONDS):
                await reader.changed(SECONDS)  # a new connection: something may have been missed
            heard = asyncio.create_task(reader.changed(SECONDS))
            await writer.save_sweep(sweep())
            started_s = time.monotonic()
            await heard
            assert time.monotonic() - started_s < SECONDS / 2

    asyncio.run(work())


def test_kill_9_of_the_server_loses_nothing(own_server: PostgresProcess) -> None:
    name = own_server.new_database()

    async def work() -> None:
        async with instances(own_server, name, 1) as (store,):
            lease = await take(store)
            await store.add_recommendation(recommendation(), lease)
            await asyncio.to_thread(restart, own_server, signal.SIGKILL)
            assert list(await store.latest_recommendations()) == [recommendation()]
            assert await store.leases.renew(lease, 60.0)
            assert await store.leases.acquire("chat", "b", 60.0) is None

    asyncio.run(work())


@real_time
def test_a_connection_cut_in_mid_statement_is_tried_again_and_stored_once(own_server: PostgresProcess) -> None:
    """Not committed: the statement waited for a lock when its connection was terminated."""
    name = own_server.new_database()
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"

    async def work() -> None:
        async with instances(own_server, name) as (store, other):
            lease = await take(store)
            async with other._database.writing() as connection:
                await connection.exec_driver_sql("LOCK recommendations IN ACCESS EXCLUSIVE MODE")
                adding = asyncio.create_task(store.add_recommendation(recommendation(), lease))
                async with asyncio.timeout(SECONDS):
                    while not (await connection.exec_driver_sql(cut)).all():  # noqa: ASYNC110 - the server tells nobody
                        await asyncio.sleep(0.01)
                with pytest.raises(StoreError, match=r"is stopping or starting|closed the connection"):
                    await adding
            assert list(await store.latest_recommendations()) == []
            await store.add_recommendation(recommendation(), lease)
            assert list(await store.latest_recommendations()) == [recommendation()]

    asyncio.run(work())


def test_a_commit_whose_answer_is_lost_is_tried_again_and_stored_once(own_server: PostgresProcess) -> None:
    """Committed: the proxy passes everything to the server and, from some moment on, nothing back."""
    name = own_server.new_database()

    async def work() -> None:
        async with deaf_proxy(own_server.port) as proxy, instances(own_server, name, 1) as (direct,):
            store = store_at(own_server.url(name).replace(str(own_server.port), str(proxy.port)))
            await store.open()
            lease = await take(store)
            proxy.is_deaf_after = b"COMMIT"
            with pytest.raises(StoreError, match="does not answer in time"):
                await store.add_recommendation(recommendation(), lease)
            assert list(await direct.latest_recommendations()) == [recommendation()]
            proxy.hear_again()
            await store.add_recommendation(recommendation(), lease)
            assert list(await store.latest_recommendations()) == [recommendation()]
            await store.close()

    asyncio.run(work())


@real_time
def test_a_secret_that_vanishes_is_a_database_that_is_away(own_server: PostgresProcess) -> None:
    """The URL is read for each new connection, so that its rotation is followed."""
    name = own_server.new_database()
    told: list[str] = [own_server.url(name)]

    def url() -> str:
        if not told:
            raise ConfigurationError("store.postgresql: the file is gone.", "Put it there.")
        return told[0]

    async def work() -> None:
        store = SqlStore(PostgresDatabase(url), Retention())
        await store.open()
        try:
            for _ in range(2):
                known = told.pop()
                cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname <> 'postgres'"
                await asyncio.to_thread(own_server.execute, cut, "postgres")
                with pytest.raises(StoreError, match="the file is gone"):
                    await store.latest_recommendations()
                told.append(known)
                assert list(await store.latest_recommendations()) == []
            async with asyncio.timeout(SECONDS):
                await store.changed(SECONDS)  # it listens again
        finally:
            await store.close()

    asyncio.run(work())


def test_a_lock_held_by_somebody_else_costs_seconds_and_is_named(own_server: PostgresProcess) -> None:
    name = own_server.new_database()

    async def work() -> None:
        async with instances(own_server, name) as (store, other):
            async with other._database.writing() as connection:
                await connection.exec_driver_sql("LOCK sweeps IN ACCESS EXCLUSIVE MODE")
                with pytest.raises(StoreError, match=r"is kept locked by another session .* pg_stat_activity"):
                    await store.save_sweep(sweep())
            await store.save_sweep(sweep())

    asyncio.run(work())


@pytest.mark.parametrize("kind", ["a setting", "a standby"])
def test_a_read_only_database_is_read_and_named_and_written_once_it_is_the_primary(
    own_server: PostgresProcess, kind: str
) -> None:
    name = own_server.new_database()

    async def work() -> None:
        async with instances(own_server, name, 1) as (store,):
            lease = await take(store)
            await store.add_recommendation(recommendation(), lease)
            await asyncio.to_thread(demote, own_server, kind)
            try:
                for write in (
                    store.add_recommendation(recommendation(version=2), lease),
                    store.leases.renew(lease, 60.0),
                    store.save_sweep(running("s1")),
                ):
                    with pytest.raises(StoreError, match=r"is read-only .*target_session_attrs=read-write"):
                        await write
                assert list(await store.latest_recommendations()) == [recommendation()]
            finally:
                await asyncio.to_thread(promote, own_server, kind)
            await store.add_recommendation(recommendation(version=2), lease)

    asyncio.run(work())


def demote(server: PostgresProcess, kind: str) -> None:
    if kind == "a standby":
        server.stop(signal.SIGINT)
        server.be_standby(True)
        server.start()
    else:
        server.execute("ALTER SYSTEM SET default_transaction_read_only = on", "postgres")
        server.execute("SELECT pg_reload_conf()", "postgres")


def promote(server: PostgresProcess, kind: str) -> None:
    if kind == "a standby":
        server.stop(signal.SIGINT)
        server.be_standby(False)
        server.start()
    else:
        server.execute("ALTER SYSTEM RESET default_transaction_read_only", "postgres")
        server.execute("SELECT pg_reload_conf()", "postgres")
