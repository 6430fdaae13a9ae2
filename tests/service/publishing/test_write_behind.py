"""What is put is written once, newest first to last, and again until the store has it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.virtual_time import run_virtual

from calibrator.clock import LoopClock
from calibrator.errors import StoreError
from calibrator.service.publishing.store_health import StoreHealth
from calibrator.service.publishing.write_behind import CLOSE_LIMIT_S, RETRY_S, WriteBehind

TICK_S = 0.25


@dataclass
class Store:
    """Takes `takes_s` for a write; fails those of `broken` keys."""

    takes_s: float = 0.0
    broken: set[str] = field(default_factory=set)
    writes: list[tuple[str, int, float]] = field(default_factory=list)  # key, value, when it was begun

    async def write(self, key: str, value: int) -> None:
        self.writes.append((key, value, asyncio.get_running_loop().time()))
        await asyncio.sleep(self.takes_s)
        if key in self.broken:
            raise StoreError("The disk is full.")

    @property
    def pairs(self) -> list[tuple[str, int]]:
        return [(key, value) for key, value, _ in self.writes]


def queue_of(store: Store, health: StoreHealth | None = None, **more: Any) -> WriteBehind[str, int]:
    return WriteBehind("number", store.write, LoopClock(), health or StoreHealth(), **more)


async def ticks(queue: WriteBehind[str, int], seconds: float) -> None:
    for _ in range(round(seconds / TICK_S)):
        queue.tick()
        await asyncio.sleep(TICK_S)


def run(scenario: Coroutine[Any, Any, None]) -> list[str]:
    with capture_logs() as logs:
        run_virtual(scenario)
    return [entry["event"] for entry in logs]


def test_only_the_newest_value_of_a_key_is_written() -> None:
    async def scenario() -> None:
        store = Store()
        queue = queue_of(store)
        queue.put("a", 1)
        queue.put("a", 2)
        await ticks(queue, 10.0)
        assert store.pairs == [("a", 2)]
        assert queue.waiting == {}

    run(scenario())


def test_what_is_put_during_the_write_of_an_older_value_is_written_next() -> None:
    async def scenario() -> None:
        store = Store(takes_s=2.0)
        queue = queue_of(store)
        queue.put("a", 1)
        await ticks(queue, 1.0)
        queue.put("a", 2)
        assert queue.waiting == {"a": 2}, "readable before it is stored"
        await ticks(queue, 5.0)
        assert store.pairs == [("a", 1), ("a", 2)]

    run(scenario())


def test_a_failing_key_is_retried_at_its_pace_and_holds_up_no_other() -> None:
    async def scenario() -> None:
        store = Store(broken={"bad"})
        queue = queue_of(store)
        queue.put("bad", 1)
        queue.put("good", 2)
        await ticks(queue, 60.0)
        assert ("good", 2) in store.pairs
        begun_s = [when_s for key, _, when_s in store.writes if key == "bad"]
        assert len(begun_s) == pytest.approx(60.0 / RETRY_S, abs=2)
        store.broken.clear()
        await ticks(queue, RETRY_S + TICK_S)
        assert queue.waiting == {}

    run(scenario())


def test_an_outage_is_reported_for_as_long_as_it_lasts_and_logged_once() -> None:
    async def scenario() -> None:
        store, health = Store(broken={"a"}), StoreHealth()
        queue = queue_of(store, health)
        queue.put("a", 1)
        await ticks(queue, 60.0)
        assert health.problem == "The disk is full."
        store.broken.clear()
        await ticks(queue, RETRY_S + TICK_S)
        assert health.problem == ""

    assert run(scenario()) == ["number not stored yet", "number stored again"]


def test_what_may_not_be_written_waits_without_being_a_problem() -> None:
    async def scenario() -> None:
        allowed, store, health = {"a"}, Store(broken={"a"}), StoreHealth()
        queue = queue_of(store, health, may_write=allowed.__contains__)
        queue.put("a", 1)
        await ticks(queue, 1.0)
        assert health.problem
        allowed.clear()
        await ticks(queue, 60.0)
        assert (health.problem, len(store.writes)) == ("", 1)
        store.broken.clear()
        allowed.add("a")
        await ticks(queue, 1.0)
        assert store.pairs[-1] == ("a", 1)
        assert queue.waiting == {}

    run(scenario())


def test_a_write_beyond_its_limit_counts_as_failed() -> None:
    async def scenario() -> None:
        store, health = Store(takes_s=100.0), StoreHealth()
        queue = queue_of(store, health, limit_s=5.0)
        queue.put("a", 1)
        await ticks(queue, 6.0)
        assert health.problem
        assert queue.waiting == {"a": 1}
        await queue.close()

    run(scenario())


@pytest.mark.parametrize("takes_s", [0.4, 1000.0])
def test_closing_writes_what_waits_within_its_limit(takes_s: float) -> None:
    async def scenario() -> None:
        store = Store(takes_s=takes_s)
        queue = queue_of(store)
        queue.put("a", 1)
        await ticks(queue, TICK_S)
        queue.put("a", 2)
        began_s = asyncio.get_running_loop().time()
        await queue.close()
        assert asyncio.get_running_loop().time() - began_s <= CLOSE_LIMIT_S
        assert queue.waiting == ({} if takes_s < CLOSE_LIMIT_S else {"a": 2})
        assert len(asyncio.all_tasks()) == 1, "nothing is left running"

    run(scenario())
