"""What HAProxy is answered, byte by byte; connections that misbehave; raises that wait."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gateway_site import DEPLOYED
from support.virtual_time import run_virtual
from support.web_fakes import FakeOperator, calibrated, snapshot
from support.wire import MemoryTransport

from calibrator.clock import LoopClock
from calibrator.core.sharing.allocator import MAX_CLIENTS
from calibrator.gateways.haproxy_agent import (
    LINE_LIMIT_S,
    MAX_CONNECTIONS,
    MAX_LINE_BYTES,
    RAISE_AFTER_S,
    HaproxyAgent,
    RaiseDelay,
    _Check,
)
from calibrator.ports.sharing import Poll


def agent_of(operator: FakeOperator) -> HaproxyAgent:
    return HaproxyAgent(operator, LoopClock())


def answers(operator: FakeOperator, *lines: bytes) -> list[bytes]:
    async def scenario() -> list[bytes]:
        agent = agent_of(operator)
        return [agent.answer(line, "10.0.0.9") for line in lines]

    return run_virtual(scenario())


@pytest.mark.parametrize(
    ("line", "client"),
    [
        (b"chat/s1 hap-1", "hap-1"),
        (b"chat/s1 hap-1\r", "hap-1"),
        (b"chat hap-1", "hap-1"),
        (b"chat/s1", "10.0.0.9"),
        (b"chat/s1 ", "10.0.0.9"),
    ],
)
def test_the_replica_cap_is_told_in_one_line_with_a_bare_newline(line: bytes, client: str) -> None:
    operator = FakeOperator(snapshot(calibrated()), shares={client: 37})
    assert answers(operator, line) == [b"maxconn:37\n"]
    assert operator.asked_polls == [Poll(client, per_replica=True)]


@pytest.mark.parametrize(
    "line", [b"", b"chaos/s1 hap-1", b"chat/s1 hap-1 more", b"chat/\xff hap-1", b"/s1", b" chat", b"chat/" + b"s" * 200]
)
def test_what_is_not_understood_changes_nothing(line: bytes) -> None:
    operator = FakeOperator(snapshot(calibrated()))
    assert answers(operator, line) == [b""]
    assert operator.asked_polls == []


def test_nothing_is_told_before_the_state_is_loaded_nor_to_a_joiner_that_waits() -> None:
    assert answers(FakeOperator(snapshot(calibrated(), ready=False, backends={})), b"chat/s1 hap-1") == [b""]
    assert answers(FakeOperator(snapshot(calibrated()), shares={"hap-1": None}), b"chat/s1 hap-1") == [b""]


def test_the_other_servers_have_heard_before_a_joiner_gains() -> None:
    """hap-1 hears at its first server that it has less; its last server hears within one agent-inter."""

    async def scenario() -> None:
        operator = FakeOperator(snapshot(calibrated()), shares={"hap-1": 37})
        agent = agent_of(operator)
        assert agent.answer(b"chat/s1 hap-1", "") == b"maxconn:37\n", "alone there is nobody to wait for"
        operator.shares = {"hap-1": 19, "hap-2": 18}
        assert agent.answer(b"chat/s1 hap-1", "") == b"maxconn:19\n", "down at once"
        assert agent.answer(b"chat/s1 hap-2", "") == b""
        await asyncio.sleep(RAISE_AFTER_S - 0.1)
        assert agent.answer(b"chat/s1 hap-2", "") == b""
        await asyncio.sleep(0.2)
        assert agent.answer(b"chat/s2 hap-2", "") == b"maxconn:18\n"
        operator.shares = {"hap-1": 37}
        assert agent.answer(b"chat/s3 hap-1", "") == b"maxconn:37\n", "hap-2 is gone"

    run_virtual(scenario())


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(2, 9), st.floats(0.0, 4.0)), max_size=30))
def test_a_ration_never_exceeds_what_was_granted_throughout_the_wait(steps: list[tuple[int, int, float]]) -> None:
    ration, now_s, granted = RaiseDelay(), 0.0, list[tuple[float, int]]()
    for share, clients, pause_s in steps:
        now_s += pause_s
        before, granted = ration.advertised, [*granted, (now_s, share)]
        told = ration.next(share, clients, now_s)
        assert 0 <= told <= share
        if told > before:
            lately = [one for at_s, one in granted if now_s - at_s < RAISE_AFTER_S]
            assert told <= min(lately), "every share of the whole wait allowed it"


@pytest.mark.parametrize("name", ["queueing.cfg", "failfast.cfg"])
def test_the_shipped_configurations_ask_often_enough_for_raises_to_be_safe(name: str) -> None:
    (inter_s,) = re.findall(r"agent-inter (\d+)s\n", (DEPLOYED / "haproxy" / name).read_text())
    assert 2 * int(inter_s) < RAISE_AFTER_S


def test_the_memory_of_gateways_is_bounded() -> None:
    operator = FakeOperator(snapshot(calibrated()))
    agent = agent_of(operator)

    async def scenario() -> None:
        for number in range(MAX_CLIENTS + 10):
            agent.answer(b"chat/s1 hap-%d" % number, "")

    run_virtual(scenario())
    assert len(agent._delays) == MAX_CLIENTS


# -------------------------------------------------------------------------------------------------------- connections
def alone() -> FakeOperator:
    return FakeOperator(snapshot(calibrated()), shares={"hap-1": 37})


def connect(agent: HaproxyAgent) -> tuple[_Check, MemoryTransport]:
    check = _Check(agent)
    return check, MemoryTransport(check)


def test_a_line_may_come_in_pieces() -> None:
    async def scenario() -> None:
        check, transport = connect(agent_of(alone()))
        check.data_received(b"chat/s1 ")
        assert transport.written == b""
        check.data_received(b"hap-1\nrest")
        check.data_received(b"chat/s1 hap-1\n")
        assert transport.written == b"maxconn:37\n", "one answer a connection"

    run_virtual(scenario())


def test_a_half_open_connection_ends_by_itself() -> None:
    async def scenario() -> None:
        check, transport = connect(agent_of(alone()))
        check.data_received(b"chat/s1")
        await asyncio.sleep(LINE_LIMIT_S - 0.1)
        assert not transport.is_closing()
        await asyncio.sleep(0.2)
        assert transport.aborted
        assert transport.written == b""

    run_virtual(scenario())


def test_a_line_without_end_is_not_collected() -> None:
    async def scenario() -> None:
        check, transport = connect(agent_of(alone()))
        check.data_received(b"x" * (MAX_LINE_BYTES + 1))
        assert transport.is_closing()
        assert transport.written == b""

    run_virtual(scenario())


def test_beyond_the_limit_the_oldest_connection_gives_way() -> None:
    async def scenario() -> None:
        agent = agent_of(alone())
        made = [connect(agent)[1] for _ in range(MAX_CONNECTIONS + 1)]
        assert [transport.aborted for transport in made] == [True] + [False] * MAX_CONNECTIONS

    run_virtual(scenario())


def on_a_real_socket(scenario: Callable[[int], Awaitable[None]]) -> None:
    async def run() -> None:
        agent = agent_of(alone())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            await agent.start(listener)
            try:
                await scenario(listener.getsockname()[1])
            finally:
                await agent.stop()
                await asyncio.sleep(0.01)

    asyncio.run(run())


async def check(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"chat/s1 hap-1\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def test_thousands_of_checks_beside_peers_that_send_or_read_nothing() -> None:
    """Three thousand checks a minute are fifty a second; here they come as fast as they can."""

    async def scenario(port: int) -> None:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
        for _, writer in idle[:25]:
            writer.write(b"chat/s1 hap-1\n")  # and never reads the answer
        for _ in range(30):
            assert set(await asyncio.gather(*(check(port) for _ in range(100)))) == {b"maxconn:37\n"}
        for _, writer in idle:
            writer.close()

    on_a_real_socket(scenario)
