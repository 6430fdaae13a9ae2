"""What every store promises (port `Store`), run over every implementation: add one to `STORES`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.memory_store import MemoryStore
from support.records import recommendation, running, sweep

from calibrator.core.shares import HeldShare
from calibrator.core.snapshot import Override
from calibrator.core.sweep_record import SweepOutcome
from calibrator.errors import StoreError
from calibrator.ports import Store
from calibrator.stores.database import SqliteStore

Reopen = Callable[[], Store]  # each call: the same stored content, as a restarted service would see it


def _memory(_folder: Path, keep_sweeps: int) -> Reopen:
    store = MemoryStore(keep_sweeps)
    return lambda: store


def _sqlite(folder: Path, keep_sweeps: int) -> Reopen:
    return lambda: SqliteStore(folder / "store.db", keep_sweeps)


STORES = {"memory": _memory, "sqlite": _sqlite}
KEEP = 3


@pytest.fixture(params=STORES)
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Reopen:
    make: Callable[[Path, int], Reopen] = STORES[request.param]
    return make(tmp_path, KEEP)


def _use(reopen: Reopen, work: Callable[[Store], Awaitable[None]]) -> None:
    async def opened() -> None:
        store = reopen()
        await store.open()
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(opened())


def test_an_empty_store_knows_nothing(reopen: Reopen) -> None:
    async def work(store: Store) -> None:
        assert list(await store.latest_recommendations()) == []
        assert list(await store.sweeps("chat", 10)) == []
        assert await store.sweep("s1") is None
        assert await store.interrupt_running_sweeps(1.0) == 0

    _use(reopen, work)


def test_everything_written_is_read_back_equal_after_a_restart(reopen: Reopen) -> None:
    async def write(store: Store) -> None:
        await store.add_recommendation(recommendation())
        await store.save_sweep(sweep())

    async def read(store: Store) -> None:
        assert list(await store.latest_recommendations()) == [recommendation()]
        assert await store.sweep("s1") == sweep()
        assert list(await store.sweeps("chat", 1)) == [sweep()]

    _use(reopen, write)
    _use(reopen, read)


def test_the_newest_version_of_each_backend_is_the_latest(reopen: Reopen) -> None:
    async def work(store: Store) -> None:
        for backend, version in (("chat", 9), ("chat", 10), ("chat", 2), ("embed", 1)):
            await store.add_recommendation(recommendation(backend, version))
        latest = {(one.backend, one.version) for one in await store.latest_recommendations()}
        assert latest == {("chat", 10), ("embed", 1)}

    _use(reopen, work)


def test_a_version_that_exists_is_refused_and_the_first_one_stays(reopen: Reopen) -> None:
    async def work(store: Store) -> None:
        await store.add_recommendation(recommendation(version=1, cap=32))
        with pytest.raises(StoreError, match=r"Version 1 of 'chat' exists already"):
            await store.add_recommendation(recommendation(version=1, cap=64))
        assert [one.cap for one in await store.latest_recommendations()] == [32]

    _use(reopen, work)


def test_saving_a_sweep_again_replaces_it(reopen: Reopen) -> None:
    async def work(store: Store) -> None:
        await store.save_sweep(running("s1"))
        await store.save_sweep(sweep("s1"))
        assert await store.sweep("s1") == sweep("s1")
        assert len(await store.sweeps("chat", 10)) == 1

    _use(reopen, work)


def test_sweeps_come_newest_first_of_one_backend_and_at_most_the_limit(reopen: Reopen) -> None:
    async def work(store: Store) -> None:
        for number, backend in ((1, "chat"), (3, "chat"), (2, "chat"), (4, "embed")):
            await store.save_sweep(running(f"s{number}", backend, 100.0 * number))
        assert [one.sweep_id for one in await store.sweeps("chat", 2)] == ["s3", "s2"]
        assert [one.sweep_id for one in await store.sweeps("chat", 10)] == ["s3", "s2", "s1"]

    _use(reopen, work)


def test_running_sweeps_become_interrupted_once_and_keep_their_evidence(reopen: Reopen) -> None:
    async def work(store: Store) -> None:
        await store.save_sweep(running("s1"))
        await store.save_sweep(running("s2", "embed"))
        await store.save_sweep(sweep("s3", started_at=50.0))
        assert await store.interrupt_running_sweeps(500.0) == 2
        assert await store.interrupt_running_sweeps(900.0) == 0
        found = await store.sweep("s1")
        assert found is not None
        assert (found.outcome, found.ended_at) == (SweepOutcome.INTERRUPTED, 500.0)
        assert found == replace(running("s1"), outcome=found.outcome, ended_at=500.0, reason=found.reason)
        assert await store.sweep("s3") == sweep("s3", started_at=50.0)

    _use(reopen, work)


def test_old_sweeps_go_and_failures_are_kept_twice_as_long(reopen: Reopen) -> None:
    """Keep 3: the newest 3 good ones and 6 failed ones stay; a row of failures never pushes out a good one."""

    async def work(store: Store) -> None:
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


def test_shares_are_replaced_as_a_whole_per_backend_and_kind_of_cap(reopen: Reopen) -> None:
    first = (HeldShare("envoy-1", 16, 2.5), HeldShare("envoy-2", 15, 0.0))

    async def write(store: Store) -> None:
        assert list(await store.shares("chat", per_replica=False)) == []
        await store.save_shares("chat", first, per_replica=False)
        await store.save_shares("chat", [HeldShare("haproxy", 9, 1.0)], per_replica=True)
        await store.save_shares("embed", first, per_replica=False)
        await store.save_shares("chat", [HeldShare("envoy-3", 31, 3.0), first[0]], per_replica=False)
        await store.save_shares("embed", [], per_replica=False)

    async def read(store: Store) -> None:
        assert list(await store.shares("chat", per_replica=False)) == [first[0], HeldShare("envoy-3", 31, 3.0)]
        assert list(await store.shares("chat", per_replica=True)) == [HeldShare("haproxy", 9, 1.0)]
        assert list(await store.shares("embed", per_replica=False)) == []

    _use(reopen, write)
    _use(reopen, read)


def test_one_override_a_backend_is_remembered_until_it_is_removed(reopen: Reopen) -> None:
    older, newer = Override(20, "incident 7", "ada", 100.0, 4000.5), Override(12, "still", "bob", 200.0, 5000.0)

    async def write(store: Store) -> None:
        assert dict(await store.overrides()) == {}
        await store.save_override("chat", older)
        await store.save_override("chat", newer)
        await store.save_override("embed", older)
        await store.save_override("embed", None)
        await store.save_override("embed", None)

    async def read(store: Store) -> None:
        assert dict(await store.overrides()) == {"chat": newer}

    _use(reopen, write)
    _use(reopen, read)


def test_writers_at_the_same_time_all_succeed(reopen: Reopen) -> None:
    async def work(store: Store) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(store.add_recommendation(recommendation(f"b{number}")))
                group.create_task(store.save_sweep(running(f"s{number}", f"b{number}")))
                group.create_task(store.latest_recommendations())
        assert len(await store.latest_recommendations()) == 20
        assert await store.interrupt_running_sweeps(1.0) == 20

    _use(reopen, work)
