"""Places whose end is told twice, late or never are each free exactly once."""

from __future__ import annotations

import asyncio
import logging

import pytest
from support.virtual_time import run_virtual

from calibrator.client import AsyncCap, LimitReachedError
from calibrator.gateways.leases import SlotLeases


def cap_of(places: int) -> AsyncCap:
    return AsyncCap("http://calibrator", "llm", static_cap=places)  # never started: the static cap holds


def test_an_end_told_by_several_hooks_counts_once() -> None:
    async def scenario() -> None:
        cap, leases = cap_of(2), SlotLeases(60.0)
        await leases.take("a", object(), cap, 0.0)
        await leases.take("b", object(), cap, 0.0)
        for key in ("a", "a", "unknown", None, ["a"]):
            leases.end(key)
        assert cap.in_flight == 1
        assert ("a" in leases, "b" in leases) == (False, True)

    run_virtual(scenario())


def test_a_lost_end_frees_the_place_when_the_lease_is_over(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        cap, leases = cap_of(1), SlotLeases(60.0)
        await leases.take("lost", object(), cap, 0.0)
        await asyncio.sleep(59.0)
        assert cap.in_flight == 1
        await asyncio.sleep(2.0)
        assert cap.in_flight == 0
        leases.end("lost")
        await leases.take("lost", object(), cap, 0.0)
        await asyncio.sleep(30.0)
        assert cap.in_flight == 1, "the first lease's timer plays no part"

    with caplog.at_level(logging.WARNING, "calibrator.gateways"):
        run_virtual(scenario())
    assert [line.args for line in caplog.records] == [("lost", 60.0)]


def test_who_was_refused_or_cancelled_in_line_holds_nothing() -> None:
    async def scenario() -> None:
        cap, leases = cap_of(1), SlotLeases(60.0)
        await leases.take("first", object(), cap, 0.0)
        with pytest.raises(LimitReachedError):
            await leases.take("refused", object(), cap, 0.0)
        waiting = asyncio.create_task(leases.take("gone", object(), cap, 30.0))
        await asyncio.sleep(1.0)
        assert "gone" in leases, "its key is taken while it waits"
        leases.end("gone")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert ("refused" in leases, "gone" in leases, cap.in_flight) == (False, False, 1)
        leases.end("first")
        assert cap.in_flight == 0

    run_virtual(scenario())


def test_a_place_knows_its_owner() -> None:
    async def scenario() -> None:
        cap, leases, owner = cap_of(1), SlotLeases(60.0), object()
        await leases.take("a", owner, cap, 0.0)
        assert leases.is_of("a", owner)
        assert not leases.is_of("a", object())
        assert not leases.is_of("b", owner)
        leases.end("a")

    run_virtual(scenario())
