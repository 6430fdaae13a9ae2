"""What is served when the store works, fails, hangs, or answers late; `flush` called by hand."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import pytest
from support import records
from support.fakes import SlowStore
from support.memory_store import MemoryStore, take_lease
from support.virtual_time import run_virtual

from calibrator.clock import LoopClock
from calibrator.core.publish.snapshot import Recommendation
from calibrator.core.records.sweep import SweepRecord
from calibrator.errors import StoreError
from calibrator.ports.store import Lease
from calibrator.service.publishing.publisher import MAX_WAITING, Publisher
from calibrator.service.publishing.store_health import StoreHealth
from calibrator.service.publishing.write_behind import CLOSE_LIMIT_S, RETRY_S

BROKEN = StoreError("The disk is full.", "Free some space.")


def cap(value: int, version: int = 1, backend: str = "chat") -> Recommendation:
    return records.recommendation(backend, version, value)


@dataclass
class Held:
    """`HeldLeases` over a dictionary."""

    leases: dict[str, Lease]

    def lease_of(self, backend: str) -> Lease | None:
        return self.leases.get(backend)

    def lost(self, backend: str) -> None:
        del self.leases[backend]


async def leases_of(store: MemoryStore) -> Held:
    return Held({backend: await take_lease(store, backend) for backend in ("chat", "a", "b")})


async def serving(store: MemoryStore, value: int = 10) -> Publisher:
    publisher = Publisher(store, LoopClock(), await leases_of(store), StoreHealth())
    publisher.publish(cap(value))
    await publisher.flush()
    assert publisher.served["chat"].cap == value
    return publisher


async def stored(store: MemoryStore) -> dict[str, int]:
    return {known.backend: known.cap for known in await store.latest_recommendations()}


@pytest.mark.parametrize(("value", "at_once"), [(9, 9), (10, 10), (11, 10)])
def test_a_lower_cap_is_served_before_it_is_stored_a_higher_one_after(value: int, at_once: int) -> None:
    async def scenario() -> None:
        store = MemoryStore()
        publisher = await serving(store)
        publisher.publish(cap(value, 2))
        assert publisher.served["chat"].cap == at_once
        assert publisher.served["chat"].version == (2 if value < 10 else 1)
        await publisher.flush()
        assert (publisher.served["chat"].cap, publisher.served["chat"].version) == (value, 2)
        assert await stored(store) == {"chat": value}

    run_virtual(scenario())


def test_a_failing_store_holds_raises_back_and_nothing_else() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        publisher = await serving(store)
        store.failure = BROKEN
        publisher.publish(cap(20, 2))
        await publisher.flush()
        assert publisher.served["chat"].cap == 10
        publisher.publish(cap(7, 2))  # decided from what is served: the same version again
        await publisher.flush()
        assert (publisher.served["chat"].cap, publisher.served["chat"].version) == (7, 3)
        store.failure = None
        await publisher.flush()
        assert publisher.served["chat"].cap == 7
        assert [known.version for known in await store.latest_recommendations()] == [3], "the lost raise is not stored"

    run_virtual(scenario())


def test_a_raise_that_is_stored_late_does_not_undo_a_lowering() -> None:
    """The raise is being written while users begin to suffer and the cap is lowered."""

    async def scenario() -> None:
        store = SlowStore()
        publisher = await serving(store)
        store.takes_s = 10.0
        publisher.publish(cap(20, 2))
        publisher.tick()
        await asyncio.sleep(5.0)
        publisher.publish(cap(7, 2))
        await asyncio.sleep(10.0)
        assert publisher.served["chat"].cap == 7
        await publisher.flush()
        assert await stored(store) == {"chat": 7}

    run_virtual(scenario())


def test_one_bad_write_does_not_block_the_others() -> None:
    """A row that can never be written, such as a version that exists, is passed by."""

    async def scenario() -> None:
        store = MemoryStore()
        await store.add_recommendation(cap(5, 2, "a"), await take_lease(store, "a"))
        publisher = Publisher(store, LoopClock(), await leases_of(store), StoreHealth())
        publisher.publish(cap(4, 2, "a"))
        publisher.publish(cap(6, 1, "b"))
        publisher.keep(records.sweep("s9"))
        for _ in range(2):
            await publisher.flush()
        assert await stored(store) == {"a": 5, "b": 6}
        assert await store.sweep("s9") is not None

    run_virtual(scenario())


def test_an_exception_of_no_known_kind_is_survived() -> None:
    class Odd(MemoryStore):
        async def save_sweep(self, record: SweepRecord) -> None:
            raise ValueError("cannot be serialised")

    async def scenario() -> None:
        publisher = Publisher(Odd(), LoopClock(), Held({}), StoreHealth())
        publisher.keep(records.sweep())
        await publisher.flush()
        assert await publisher.sweep("s1") is not None

    run_virtual(scenario())


def test_a_failing_store_is_not_asked_at_every_tick() -> None:
    class Counting(MemoryStore):
        asked = 0

        async def save_sweep(self, record: SweepRecord) -> None:
            self.asked += 1
            raise BROKEN

    async def scenario() -> None:
        store = Counting()
        publisher = Publisher(store, LoopClock(), await leases_of(store), StoreHealth())
        publisher.keep(records.sweep())
        for _ in range(240):  # a minute of ticks
            publisher.tick()
            await asyncio.sleep(0.25)
        assert store.asked == pytest.approx(60 / RETRY_S, abs=1)

    run_virtual(scenario())


def test_what_waits_is_readable_as_if_it_were_stored() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        publisher = Publisher(store, LoopClock(), await leases_of(store), StoreHealth())
        await store.save_sweep(records.sweep("s1", started_at=1.0))
        await store.save_sweep(records.running("s2", started_at=2.0))
        publisher.keep(records.sweep("s2", started_at=2.0))
        publisher.keep(records.sweep("s3", started_at=3.0))
        publisher.keep(records.sweep("other", backend="b", started_at=4.0))
        assert [one.sweep_id for one in await publisher.sweeps("chat", 2)] == ["s3", "s2"]
        assert all(one.outcome is not None for one in await publisher.sweeps("chat", 9))
        assert await publisher.sweep("s3") is not None
        store.failure = BROKEN
        assert await publisher.sweep("s3") is not None, "known without the database"
        with pytest.raises(StoreError):
            await publisher.sweep("s1")

    run_virtual(scenario())


def test_memory_is_bounded_while_the_store_fails() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        publisher = Publisher(store, LoopClock(), await leases_of(store), StoreHealth())
        store.failure = BROKEN
        for number in range(MAX_WAITING + 50):
            publisher.keep(records.running(f"s{number}"))
            publisher.keep(records.sweep(f"s{number}"))
        await publisher.flush()
        store.failure = None
        assert await publisher.sweep("s49") is None
        assert await publisher.sweep("s50") is not None
        await publisher.flush()
        assert len(await store.sweeps("chat", 1000)) == MAX_WAITING

    run_virtual(scenario())


def test_closing_waits_for_a_locked_database_only_so_long() -> None:
    async def scenario() -> None:
        store = SlowStore()
        store.takes_s = 1000.0
        publisher = Publisher(store, LoopClock(), await leases_of(store), StoreHealth())
        publisher.keep(replace(records.sweep(), outcome=None))
        publisher.tick()
        await publisher.close()
        assert asyncio.get_running_loop().time() <= CLOSE_LIMIT_S + 1.0
        assert len(asyncio.all_tasks()) == 1, "nothing is left running"

    run_virtual(scenario())
