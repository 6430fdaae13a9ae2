"""What every store promises (port `Store`), run over every implementation: add one to `STORES`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest
from support.memory_store import MemoryStore
from support.postgres_process import PostgresProcess
from support.records import recommendation, running, sweep

from calibrator.core.publish.snapshot import Override, Progress
from calibrator.core.records.sweep import SweepOutcome
from calibrator.core.sharing.allocator import HeldShare
from calibrator.core.sharing.share_cache import CacheReport, CapReport, ClientReport, Grant, InstanceReport, ShareTable
from calibrator.errors import StaleLeaseError, StoreError
from calibrator.ports.store import ForwardedCommand, Lease, Leases, Retention, Store, SweepStatus
from calibrator.stores.postgresql import PostgresDatabase
from calibrator.stores.sql_store import SqlStore
from calibrator.stores.sqlite import SqliteDatabase


class Keeper(Store, Protocol):
    """What both halves of the state's port promise, over one database."""

    leases: Leases


Reopen = Callable[[], Keeper]  # each call: the same stored content, as a restarted service would see it


def _memory(_request: pytest.FixtureRequest) -> Reopen:
    store = MemoryStore(KEEP)
    return lambda: store


def _sqlite(request: pytest.FixtureRequest) -> Reopen:
    folder: Path = request.getfixturevalue("tmp_path")
    return lambda: SqlStore(SqliteDatabase(folder / "store.db"), KEEP)


def _postgresql(request: pytest.FixtureRequest) -> Reopen:
    server: PostgresProcess = request.getfixturevalue("postgres_server")
    url = server.new_schema()
    return lambda: SqlStore(PostgresDatabase(lambda: url), KEEP)


STORES = {"memory": _memory, "sqlite": _sqlite, "postgresql": _postgresql}
KEEP = Retention(sweeps=3, recommendations=4, samples=2)


@pytest.fixture(params=STORES)
def reopen(request: pytest.FixtureRequest) -> Reopen:
    make: Callable[[pytest.FixtureRequest], Reopen] = STORES[request.param]
    return make(request)


def _use(reopen: Reopen, work: Callable[[Keeper], Awaitable[None]]) -> None:
    async def opened() -> None:
        store = reopen()
        await store.open()
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(opened())


async def hold(store: Keeper, group: str = "chat", holder: str = "a", lease_s: float = 60.0) -> Lease:
    lease = await store.leases.acquire(group, holder, lease_s)
    assert lease is not None
    return lease


def test_an_empty_store_knows_nothing(reopen: Reopen) -> None:
    async def work(store: Keeper) -> None:
        assert list(await store.latest_recommendations()) == []
        assert list(await store.sweeps("chat", 10)) == []
        assert await store.sweep("s1") is None
        assert await store.interrupt_running_sweeps(["chat"], 1.0) == 0

    _use(reopen, work)


def test_everything_written_is_read_back_equal_after_a_restart(reopen: Reopen) -> None:
    async def write(store: Keeper) -> None:
        await store.add_recommendation(recommendation(), await hold(store))
        await store.save_sweep(sweep())

    async def read(store: Keeper) -> None:
        assert list(await store.latest_recommendations()) == [recommendation()]
        assert await store.sweep("s1") == sweep()
        assert list(await store.sweeps("chat", 1)) == [sweep()]

    _use(reopen, write)
    _use(reopen, read)


def test_the_newest_version_of_each_backend_is_the_latest(reopen: Reopen) -> None:
    async def work(store: Keeper) -> None:
        lease = await hold(store)
        for backend, version in (("chat", 9), ("chat", 10), ("chat", 2), ("embed", 1)):
            await store.add_recommendation(recommendation(backend, version), lease)
        latest = {(one.backend, one.version) for one in await store.latest_recommendations()}
        assert latest == {("chat", 10), ("embed", 1)}

    _use(reopen, work)


def test_a_version_that_exists_is_refused_and_the_first_one_stays(reopen: Reopen) -> None:
    async def work(store: Keeper) -> None:
        lease = await hold(store)
        await store.add_recommendation(recommendation(version=1, cap=32), lease)
        with pytest.raises(StoreError, match=r"Version 1 of 'chat' exists already"):
            await store.add_recommendation(recommendation(version=1, cap=64), lease)
        assert [one.cap for one in await store.latest_recommendations()] == [32]

    _use(reopen, work)


def test_the_same_recommendation_again_is_stored_once_whoever_holds_the_lease_now(reopen: Reopen) -> None:
    """A commit whose answer was lost is tried again, and then says yes."""

    async def work(store: Keeper) -> None:
        lease = await hold(store, lease_s=-1.0)
        await store.add_recommendation(recommendation(), lease)
        await store.add_recommendation(recommendation(), lease)
        await hold(store, holder="b")
        await store.add_recommendation(recommendation(), lease)
        assert list(await store.latest_recommendations()) == [recommendation()]

    _use(reopen, work)


def test_old_recommendations_go(reopen: Reopen) -> None:
    """Keep 4: of versions 1 to 6, those from 3 on are there, and refuse another of their number."""

    async def work(store: Keeper) -> None:
        lease = await hold(store)
        await store.add_recommendation(recommendation("embed", 1), lease)
        for version in range(1, 7):
            await store.add_recommendation(recommendation(version=version), lease)
        await store.add_recommendation(recommendation(version=2, cap=99), lease)
        for backend, version in (("chat", 3), ("chat", 6), ("embed", 1)):
            with pytest.raises(StoreError, match="exists already"):
                await store.add_recommendation(recommendation(backend, version, cap=99), lease)

    _use(reopen, work)


def test_saving_a_sweep_again_replaces_it(reopen: Reopen) -> None:
    async def work(store: Keeper) -> None:
        await store.save_sweep(running("s1"))
        await store.save_sweep(sweep("s1"))
        assert await store.sweep("s1") == sweep("s1")
        assert len(await store.sweeps("chat", 10)) == 1

    _use(reopen, work)


def test_what_a_running_sweep_says_never_replaces_how_it_ended(reopen: Reopen) -> None:
    """A stopped instance that wakes up must not call running what its successor has called interrupted."""

    async def work(store: Keeper) -> None:
        await store.save_sweep(sweep("s1"))
        await store.save_sweep(running("s1"))
        assert await store.sweep("s1") == sweep("s1")

    _use(reopen, work)


def test_sweeps_come_newest_first_of_one_backend_and_at_most_the_limit(reopen: Reopen) -> None:
    async def work(store: Keeper) -> None:
        for number, backend in ((1, "chat"), (3, "chat"), (2, "chat"), (4, "embed")):
            await store.save_sweep(running(f"s{number}", backend, 100.0 * number))
        assert [one.sweep_id for one in await store.sweeps("chat", 2)] == ["s3", "s2"]
        assert [one.sweep_id for one in await store.sweeps("chat", 10)] == ["s3", "s2", "s1"]

    _use(reopen, work)


def test_running_sweeps_become_interrupted_once_and_keep_their_evidence(reopen: Reopen) -> None:
    async def work(store: Keeper) -> None:
        await store.save_sweep(running("s1"))
        await store.save_sweep(running("s2", "embed"))
        await store.save_sweep(sweep("s3", started_at=50.0))
        assert await store.interrupt_running_sweeps(["chat"], 500.0) == 1
        assert await store.interrupt_running_sweeps(["chat", "embed"], 600.0) == 1
        assert await store.interrupt_running_sweeps(["chat", "embed"], 900.0) == 0
        found = await store.sweep("s1")
        assert found is not None
        assert (found.outcome, found.ended_at) == (SweepOutcome.INTERRUPTED, 500.0)
        assert found == replace(running("s1"), outcome=found.outcome, ended_at=500.0, reason=found.reason)
        assert await store.sweep("s3") == sweep("s3", started_at=50.0)

    _use(reopen, work)


def test_old_sweeps_go_and_failures_are_kept_twice_as_long(reopen: Reopen) -> None:
    """Keep 3: the newest 3 good ones and 6 failed ones stay; a row of failures never pushes out a good one."""

    async def work(store: Keeper) -> None:
        await store.save_sweep(running("r", started_at=0.0))
        await store.save_sweep(sweep("other", "embed", 0.0))
        for number in range(1, 6):
            await store.save_sweep(sweep(f"good{number}", started_at=float(number)))
        for number in range(1, 9):
            outcome = SweepOutcome.ERROR if number % 2 else SweepOutcome.INCONCLUSIVE
            await store.save_sweep(sweep(f"bad{number}", started_at=10.0 + number, outcome=outcome))
        left = [one.sweep_id for one in await store.sweeps("chat", 100)]
        assert left == ["bad8", "bad7", "bad6", "bad5", "bad4", "bad3", "good5", "good4", "good3", "r"]
        assert await store.sweep("good1") is None
        assert await store.sweep("other") is not None

    _use(reopen, work)


def test_a_share_report_is_replaced_by_a_later_one_alone_and_knows_its_age(reopen: Reopen) -> None:
    client = ClientReport("envoy-1", 16, 20, has_polled=True, in_flight=12, rejected=None)
    caps = (CapReport("chat", per_replica=False, report=CacheReport(3, (client,), is_last=True)),)

    async def scenario() -> None:
        store = reopen()
        await store.open()
        await store.save_share_report("x", InstanceReport(2, caps, is_troubled=True))
        await store.save_share_report("x", InstanceReport(1, ()))  # it was on its way for long
        await store.save_share_report("y", InstanceReport(1, ()))
        await asyncio.sleep(0.05)
        found = await store.share_reports()
        assert {name: report for name, (_, report) in found.items()} == {
            "x": InstanceReport(2, caps, is_troubled=True), "y": InstanceReport(1, ()),
        }  # fmt: skip
        assert 0.04 <= found["x"][0] < 5.0
        await store.save_share_report("x", None)
        assert list(await store.share_reports()) == ["y"]
        await store.close()

    asyncio.run(scenario())


def test_a_share_table_is_written_under_the_lease_and_on_top_of_the_one_before(reopen: Reopen) -> None:
    def table(version: int, share: int) -> ShareTable:
        return ShareTable(version, 1, 0, (Grant("envoy-1", share, share, version, 2),))

    async def scenario() -> None:
        store = reopen()
        await store.open()
        lease = await hold(store)
        assert await store.share_tables() == {}
        await store.save_share_table("chat", table(1, 31), lease, per_replica=False)
        await store.save_share_table("chat", table(1, 9), lease, per_replica=True)
        await store.save_share_table("chat", table(2, 30), lease, per_replica=False)
        for late in (table(2, 99), table(1, 99), table(4, 99)):
            with pytest.raises(StoreError, match="does not follow"):
                await store.save_share_table("chat", late, lease, per_replica=False)
        later = await hold(store)  # the same holder, another epoch
        with pytest.raises(StaleLeaseError):
            await store.save_share_table("chat", table(3, 99), lease, per_replica=False)
        await store.save_share_table("chat", table(3, 12), later, per_replica=False)
        assert await store.share_tables() == {("chat", False): table(3, 12), ("chat", True): table(1, 9)}
        await store.close()

    asyncio.run(scenario())


def test_samples_are_kept_apart_and_of_the_newest_sweeps_only(reopen: Reopen) -> None:
    """Keep 2: sweeps without samples count for nothing, other backends have their own."""

    async def work(store: Keeper) -> None:
        for number in (1, 3, 2):
            await store.save_sweep(
                replace(sweep(f"s{number}", started_at=float(number)), samples=bytes([number, 0, 255]))
            )
        await store.save_sweep(replace(sweep("other", "embed", 0.0), samples=b"other"))
        await store.save_sweep(sweep("s4", started_at=4.0, outcome=SweepOutcome.ERROR))
        assert [await store.samples(f"s{number}") for number in range(1, 5)] == [None, b"\2\0\xff", b"\3\0\xff", None]
        assert await store.samples("other") == b"other"
        assert await store.sweep("s3") == sweep("s3", started_at=3.0)
        for number in range(5, 8):  # three newer ones: keep 3
            await store.save_sweep(sweep(f"s{number}", started_at=float(number)))
        assert await store.samples("s3") is None, "samples go with their sweep"

    _use(reopen, work)


def test_shares_are_replaced_as_a_whole_per_backend_and_kind_of_cap(reopen: Reopen) -> None:
    first = (HeldShare("envoy-1", 16, 2.5), HeldShare("envoy-2", 15, 0.0))

    async def write(store: Keeper) -> None:
        assert list(await store.shares("chat", per_replica=False)) == []
        await store.save_shares("chat", first, per_replica=False)
        await store.save_shares("chat", [HeldShare("haproxy", 9, 1.0)], per_replica=True)
        await store.save_shares("embed", first, per_replica=False)
        await store.save_shares("chat", [HeldShare("envoy-3", 31, 3.0), first[0]], per_replica=False)
        await store.save_shares("embed", [], per_replica=False)

    async def read(store: Keeper) -> None:
        assert list(await store.shares("chat", per_replica=False)) == [first[0], HeldShare("envoy-3", 31, 3.0)]
        assert list(await store.shares("chat", per_replica=True)) == [HeldShare("haproxy", 9, 1.0)]
        assert list(await store.shares("embed", per_replica=False)) == []

    _use(reopen, write)
    _use(reopen, read)


def test_one_override_a_backend_is_remembered_until_it_is_removed(reopen: Reopen) -> None:
    older, newer = Override(20, "incident 7", "ada", 100.0, 4000.5), Override(12, "still", "bob", 200.0, 5000.0)

    async def write(store: Keeper) -> None:
        assert dict(await store.overrides()) == {}
        await store.save_override("chat", older)
        await store.save_override("chat", newer)
        await store.save_override("embed", older)
        await store.save_override("embed", None)
        await store.save_override("embed", None)

    async def read(store: Keeper) -> None:
        assert dict(await store.overrides()) == {"chat": newer}

    _use(reopen, write)
    _use(reopen, read)


def test_writers_at_the_same_time_all_succeed(reopen: Reopen) -> None:
    async def work(store: Keeper) -> None:
        lease = await hold(store)
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(store.add_recommendation(recommendation(f"b{number}"), lease))
                group.create_task(store.save_sweep(running(f"s{number}", f"b{number}")))
                group.create_task(store.latest_recommendations())
        assert len(await store.latest_recommendations()) == 20
        assert await store.interrupt_running_sweeps([f"b{number}" for number in range(20)], 1.0) == 20

    _use(reopen, work)


# ---------------------------------------------------------------------------------------------- leases and the fence
def test_one_holder_at_a_time_and_each_take_over_has_a_new_epoch(reopen: Reopen) -> None:
    async def work(store: Keeper) -> None:
        first = await hold(store, holder="a")
        assert await store.leases.acquire("chat", "b", 60.0) is None
        assert (await hold(store, "embed", "b")).epoch == 1, "groups are independent"
        again = await hold(store, holder="a")
        await store.leases.release(again)
        second = await hold(store, holder="b")
        assert first.epoch < again.epoch < second.epoch
        assert dict(await store.leases.holders()) == {"chat": "b", "embed": "b"}

    _use(reopen, work)


def test_a_lease_that_ran_out_is_anybodys_and_until_then_its_holders(reopen: Reopen) -> None:
    async def work(store: Keeper) -> None:
        lapsed = await hold(store, holder="a", lease_s=-1.0)
        assert dict(await store.leases.holders()) == {}
        assert await store.leases.renew(lapsed, 60.0), "nobody was quicker"
        assert await store.leases.acquire("chat", "b", 60.0) is None
        assert await store.leases.renew(lapsed, -1.0)
        await hold(store, holder="b")
        assert not await store.leases.renew(lapsed, 60.0)
        await store.leases.release(lapsed)
        assert dict(await store.leases.holders()) == {"chat": "b"}, "releasing what is another's does nothing"

    _use(reopen, work)


def test_a_stale_epoch_publishes_nothing(reopen: Reopen) -> None:
    async def work(store: Keeper) -> None:
        lease = await hold(store, holder="a", lease_s=-1.0)
        await store.add_recommendation(recommendation(version=1), lease)  # late, but nobody has taken over
        newer = await hold(store, holder="b")
        forged = [lease, replace(newer, holder="a"), replace(newer, epoch=newer.epoch + 1), replace(newer, group="x")]
        for stale in forged:
            with pytest.raises(StaleLeaseError):
                await store.add_recommendation(recommendation(version=2, cap=99), stale)
        await store.add_recommendation(recommendation(version=2), newer)
        await store.leases.release(newer)
        with pytest.raises(StaleLeaseError):
            await store.add_recommendation(recommendation(version=3, cap=99), newer)
        assert list(await store.latest_recommendations()) == [recommendation(version=2)]

    _use(reopen, work)


def test_of_many_that_ask_for_a_lease_one_gets_it(reopen: Reopen) -> None:
    async def work(store: Keeper) -> None:
        asked = await asyncio.gather(*(store.leases.acquire("chat", f"i{number}", 60.0) for number in range(8)))
        assert len([lease for lease in asked if lease is not None]) == 1

    _use(reopen, work)


# -------------------------------------------------------------------------------------- what instances tell each other
def test_statuses_of_sweeps_are_replaced_and_removed(reopen: Reopen) -> None:
    progress = Progress("s1", 8, "verdict", 10, 1, "inconclusive", 0.1, None, 40, 1800, 3.5, 1200.0, 8)

    async def work(store: Keeper) -> None:
        await store.save_sweep_status("chat", SweepStatus("s0", 4))
        await store.save_sweep_status("chat", SweepStatus("s1", 8, progress))
        await store.save_sweep_status("embed", SweepStatus("s2", 1))
        await store.save_sweep_status("embed", None)
        assert dict(await store.sweep_statuses()) == {"chat": SweepStatus("s1", 8, progress)}

    _use(reopen, work)


def test_a_command_is_taken_once_in_the_order_of_asking(reopen: Reopen) -> None:
    commands = [ForwardedCommand("chat", f"s{number}", "a person", 10.0 + number) for number in range(12)]

    async def work(store: Keeper) -> None:
        for command in commands:
            await store.add_command(command)
        await store.add_command(ForwardedCommand("embed", "", "cancel", 5.0))
        assert list(await store.take_commands(["chat", "other"])) == commands
        assert list(await store.take_commands(["chat"])) == []
        assert list(await store.take_commands(["embed"])) == [ForwardedCommand("embed", "", "cancel", 5.0)]

    _use(reopen, work)


def test_the_last_checkpoint_of_each_kind_survives_a_restart(reopen: Reopen) -> None:
    async def write(store: Keeper) -> None:
        await store.save_checkpoint("chat", "triggers", "old")
        await store.save_checkpoint("chat", "triggers", "new")
        await store.save_checkpoint("chat", "guard", "{}")
        await store.save_checkpoint("embed", "guard", "other")

    async def read(store: Keeper) -> None:
        assert dict(await store.checkpoints("chat")) == {"triggers": "new", "guard": "{}"}

    _use(reopen, write)
    _use(reopen, read)


def test_waiting_for_news_ends_at_its_limit(reopen: Reopen) -> None:
    async def work(store: Keeper) -> None:
        async with asyncio.timeout(10.0):
            await store.changed(0.01)

    _use(reopen, work)


def test_what_was_published_is_read_newest_first_up_to_the_limit(reopen: Reopen) -> None:
    async def work(store: Keeper) -> None:
        lease = await hold(store)
        for version in (1, 2, 3):
            await store.add_recommendation(recommendation(version=version), lease)
        await store.add_recommendation(recommendation("embed"), lease)
        assert list(await store.recommendations("chat", 2)) == [recommendation(version=3), recommendation(version=2)]
        assert list(await store.recommendations("nobody", 2)) == []

    _use(reopen, work)
