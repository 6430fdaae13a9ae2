"""`AsyncCap` on virtual time and `SyncCap` in threads, against the application's own polling route."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest
from support.virtual_time import run_virtual
from support.web_fakes import EPOCH_S, FakeOperator, app_of, calibrated, snapshot

from calibrator.client import AsyncCap, LimitReachedError, SyncCap


@asynccontextmanager
async def following(operator: FakeOperator, *, wait_s: float = 0.0) -> AsyncIterator[AsyncCap]:
    wire = httpx.ASGITransport(app=app_of(operator))
    async with AsyncCap("http://calibrator", "chat", static_cap=8, client="gw-1", wait_s=wait_s, transport=wire) as cap:
        yield cap


def operator_with(share: int) -> FakeOperator:
    return FakeOperator(snapshot(calibrated()), shares={"gw-1": share})


async def hold(cap: AsyncCap, seconds: float, timeout_s: float = 0.0) -> None:
    async with cap.acquire(timeout_s):
        await asyncio.sleep(seconds)


# -------------------------------------------------------------------------------------------------------------- asyncio
def test_the_share_is_held_exactly_and_the_rest_is_refused_at_once() -> None:
    async def scenario() -> None:
        async with following(operator_with(5)) as cap:
            assert cap.limit == 8, "static before the first answer"
            await asyncio.sleep(1.0)
            assert (cap.limit, cap.state, cap.problem) == (5, "calibrated", "")
            holders = [asyncio.create_task(hold(cap, 10.0)) for _ in range(5)]
            await asyncio.sleep(0.0)
            with pytest.raises(LimitReachedError):
                await hold(cap, 1.0)
            assert cap.in_flight == 5
            await asyncio.gather(*holders)
            assert cap.in_flight == 0

    run_virtual(scenario())


def test_it_tells_what_is_in_flight_and_what_it_refused_once() -> None:
    async def scenario() -> None:
        operator = operator_with(2)
        async with following(operator) as cap:
            await asyncio.sleep(1.0)
            holders = [asyncio.create_task(hold(cap, 8.0)) for _ in range(2)]
            await asyncio.sleep(0.0)
            for _ in range(3):
                with pytest.raises(LimitReachedError):
                    await hold(cap, 1.0)
            await asyncio.gather(*holders)
            await asyncio.sleep(11.0)
        told = [(poll.in_flight, poll.rejected) for poll in operator.asked_polls]
        assert told[:3] == [(0, 0), (2, 3), (0, 0)]
        assert {poll.client for poll in operator.asked_polls} == {"gw-1"}

    run_virtual(scenario())


def test_a_change_is_followed_live_and_a_smaller_share_interrupts_nobody() -> None:
    async def scenario() -> None:
        operator = operator_with(4)
        async with following(operator, wait_s=30.0) as cap:
            await asyncio.sleep(1.0)
            holders = [asyncio.create_task(hold(cap, 20.0)) for _ in range(4)]
            await asyncio.sleep(2.0)
            operator.shares["gw-1"] = 1
            operator.notify()
            await asyncio.sleep(0.1)
            assert (cap.limit, cap.in_flight) == (1, 4), "heard at once, by the long poll"
            await asyncio.sleep(1.0)
            operator.shares["gw-1"] = 6
            operator.notify()
            late = [asyncio.create_task(hold(cap, 1.0, timeout_s=5.0)) for _ in range(2)]
            await asyncio.gather(*late)
            assert cap.in_flight == 4
            await asyncio.gather(*holders)

    run_virtual(scenario())


def test_waiting_callers_are_served_in_order_and_leave_no_place_behind() -> None:
    async def scenario() -> None:
        async with following(operator_with(1)) as cap:
            await asyncio.sleep(1.0)
            order: list[str] = []

            async def one(name: str, timeout_s: float) -> None:
                async with cap.acquire(timeout_s):
                    order.append(name)
                    await asyncio.sleep(2.0)

            first = asyncio.create_task(one("first", 0.0))
            await asyncio.sleep(0.1)
            tasks = {name: asyncio.create_task(one(name, 60.0)) for name in ("a", "gone", "b")}
            hasty = asyncio.create_task(one("hasty", 1.0))
            await asyncio.sleep(0.5)
            tasks["gone"].cancel()
            results = await asyncio.gather(first, hasty, *tasks.values(), return_exceptions=True)
            assert order == ["first", "a", "b"]
            assert [type(result) for result in results if result] == [LimitReachedError, asyncio.CancelledError]
            assert cap.in_flight == 0

    run_virtual(scenario())


def test_a_calibrator_that_is_gone_keeps_the_value_until_it_is_no_longer_valid() -> None:
    async def scenario() -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            if asyncio.get_running_loop().time() > 20.0:
                raise httpx.ConnectError("refused", request=request)
            body = {"share": 5, "state": "calibrated", "valid_until": "2027-01-15T08:01:00Z"}
            headers = {"Date": "Fri, 15 Jan 2027 08:00:00 GMT", "ETag": '"5"'}
            unchanged = request.headers.get("If-None-Match") == '"5"'
            return httpx.Response(304) if unchanged else httpx.Response(200, headers=headers, content=json.dumps(body))

        transport = httpx.MockTransport(answer)
        async with AsyncCap("http://calibrator", "chat", static_cap=2, transport=transport) as cap:
            await asyncio.sleep(40.0)
            assert cap.limit == 5
            assert "ConnectError" in cap.problem
            await asyncio.sleep(30.0)
            assert cap.limit == 2

    run_virtual(scenario())


def test_a_joiner_keeps_the_static_cap_and_asks_again_soon() -> None:
    async def scenario() -> None:
        operator = FakeOperator(snapshot(calibrated()), shares={"gw-1": None})
        async with following(operator) as cap:
            await asyncio.sleep(2.0)
            assert (cap.limit, "503" in cap.problem) == (8, True)
            operator.shares["gw-1"] = 18
            await asyncio.sleep(1.5)
            assert (cap.limit, cap.problem) == (18, "")

    run_virtual(scenario())


# -------------------------------------------------------------------------------------------------------------- threads
def test_threads_hold_the_share_exactly() -> None:
    polled, most, running, lock = threading.Event(), 0, 0, threading.Lock()

    def answer(request: httpx.Request) -> httpx.Response:
        polled.set()
        body = {"share": 3, "state": "calibrated", "valid_until": None}
        return httpx.Response(200, content=json.dumps(body))

    def work(cap: SyncCap) -> None:
        nonlocal most, running
        for _ in range(20):
            with cap.acquire(timeout_s=30.0):
                with lock:
                    running += 1
                    most = max(most, running)
                with lock:
                    running -= 1

    transport = httpx.MockTransport(answer)
    with SyncCap("http://calibrator", "chat", static_cap=1, poll_s=0.01, transport=transport) as cap:
        assert polled.wait(10.0)
        while cap.limit != 3:
            polled.clear()
            assert polled.wait(10.0)
        threads = [threading.Thread(target=work, args=(cap,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 1 <= most <= 3
        assert cap.in_flight == 0
        with cap.acquire(), cap.acquire(), cap.acquire(), pytest.raises(LimitReachedError), cap.acquire():
            pass
        assert (cap.state, cap.problem) == ("calibrated", "")


# ------------------------------------------------------------------------------------------------------- real answers
def test_the_real_answer_of_the_service_is_understood_to_the_end_of_its_validity() -> None:
    """The document of the application itself, stale included."""

    async def scenario() -> None:
        view = calibrated()
        view = replace(view, recommendation=replace(view.recommendation, valid_until=EPOCH_S - 1e9))
        operator = FakeOperator(snapshot(view), shares={"gw-1": 5})
        async with following(operator) as cap:
            await asyncio.sleep(1.0)
            assert (cap.state, cap.limit) == ("stale", 8)

    run_virtual(scenario())
