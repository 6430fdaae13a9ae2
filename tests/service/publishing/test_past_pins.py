"""Pins are remembered as they were in force, for whoever asks later why the cap was what it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from structlog.testing import capture_logs
from support.memory_store import MemoryStore
from support.virtual_time import run_virtual

from calibrator.clock import LoopClock
from calibrator.core.publish.snapshot import Override
from calibrator.errors import StoreError
from calibrator.service.publishing.overrides import KEPT, PINS, OverrideKeeper
from calibrator.service.publishing.store_health import StoreHealth


def with_keeper(scenario: Callable[[OverrideKeeper, MemoryStore, LoopClock], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        store, clock = MemoryStore(), LoopClock()
        await store.open()
        with capture_logs():
            await scenario(OverrideKeeper(store, clock, StoreHealth()), store, clock)

    run_virtual(run())


def pin(clock: LoopClock, cap: int, lasts_s: float = 600.0) -> Override:
    now = clock.wall()
    return Override(cap, f"reason {cap}", "Ann", now, now + lasts_s)


def test_a_removed_pin_ended_then_and_an_expired_one_by_itself() -> None:
    async def scenario(keeper: OverrideKeeper, store: MemoryStore, clock: LoopClock) -> None:
        started = clock.wall()
        await keeper.put("chat", pin(clock, 5))
        await asyncio.sleep(60.0)
        await keeper.clear("chat", "Bob")
        await keeper.put("chat", pin(clock, 7, lasts_s=10.0))
        await asyncio.sleep(30.0)
        keeper.tick()
        await asyncio.sleep(1.0)
        newest, oldest = await OverrideKeeper(store, clock, StoreHealth()).past("chat")  # after a restart
        assert (oldest.cap, oldest.expires_at - started) == (5, 60.0)
        assert (newest.cap, newest.expires_at - started) == (7, 70.0)

    with_keeper(scenario)


def test_a_pin_that_takes_anothers_place_ends_it_and_only_the_last_ones_are_kept() -> None:
    async def scenario(keeper: OverrideKeeper, _store: MemoryStore, clock: LoopClock) -> None:
        for cap in range(1, KEPT + 4):
            await keeper.put("chat", pin(clock, cap))
            await asyncio.sleep(1.0)
        past = await keeper.past("chat")
        assert [one.cap for one in past] == list(range(KEPT + 3, 3, -1))
        assert all(one.expires_at - one.set_at == 1.0 for one in past[1:])

    with_keeper(scenario)


def test_a_history_that_is_damaged_or_cannot_be_written_hinders_no_pin() -> None:
    async def scenario(keeper: OverrideKeeper, store: MemoryStore, clock: LoopClock) -> None:
        await store.save_checkpoint("chat", PINS, "not JSON")
        assert list(await keeper.past("chat")) == []
        real = store.save_checkpoint

        async def failing(*_: object) -> None:
            raise StoreError("The disk is full.", "Free some space.")

        store.save_checkpoint = failing  # type: ignore[method-assign] # this one alone
        assert await keeper.put("chat", pin(clock, 5))
        store.save_checkpoint = real  # type: ignore[method-assign] # as before
        assert list(await keeper.past("chat")) == []
        await keeper.put("chat", pin(clock, 6))
        assert [one.cap for one in await keeper.past("chat")] == [6]

    with_keeper(scenario)
