"""The self-test measures the generator that sweeps use, against stamps of another process."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop

from calibrator.cli.selftest import document, selftest
from calibrator.core.generator_rating import SelfTest, SelfTestRun, summarise_level
from calibrator.errors import ConfigurationError, GeneratorError
from calibrator.load.selftest import TOTAL_EVENTS_PER_S, StampServer, pace_per_s
from calibrator.ports.load import LoadPlan
from calibrator.wiring.generator import generator
from calibrator.wiring.selftest import run_selftest


def on_uvloop(make: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(make())


def a_run(**change: Any) -> SelfTestRun:
    fields = {
        "streams": 4, "processes": 2, "seconds": 2.0, "in_flight": [4, 4, 2, 2], "events": 400, "cpu_s": 0.01,
        "lags_s": [0.001, 0.002], "added_s": [0.001, 0.002, 0.003],
    }  # fmt: skip
    return SelfTestRun(**{**fields, **change})


def test_a_level_is_summarised() -> None:
    level = summarise_level(a_run(), wanted_events_per_s=210.0)
    assert (level.held, level.events_per_s, level.wanted_events_per_s) == (3.0, 200.0, 210.0)
    assert level.cpu_us_per_event == pytest.approx(25.0)
    assert level.added_latency_p50_s == pytest.approx(0.002)


def test_what_was_not_seen_is_not_known() -> None:
    level = summarise_level(a_run(events=0, added_s=[], lags_s=[], in_flight=[]), wanted_events_per_s=200.0)
    assert (level.cpu_us_per_event, level.added_latency_p50_s, level.added_latency_p99_s) == (None, None, None)
    assert SelfTest(2, (level,)).events_per_s is None
    assert SelfTest(2, ()).events_per_s is None


def test_a_core_is_rated_by_the_busiest_level() -> None:
    idle = summarise_level(a_run(events=2, cpu_s=0.01), 1.0)
    busy = summarise_level(a_run(), 200.0)
    result = SelfTest(4, (idle, busy))
    assert result.events_per_s_and_core == pytest.approx(40_000.0)
    assert result.events_per_s == pytest.approx(160_000.0)
    assert json.loads(json.dumps(document(result)))["levels"][1]["processes"] == 2


def test_many_streams_are_paced_so_that_the_server_is_not_the_bottleneck() -> None:
    assert pace_per_s(1) == 50.0
    assert pace_per_s(1024) * 1024 == pytest.approx(TOTAL_EVENTS_PER_S)


def test_the_whole_way_in_one_process_and_in_several() -> None:
    async def scenario() -> None:
        result = await run_selftest((80, 4), 1.0, partial(generator, plan=LoadPlan()))
        assert [level.streams for level in result.levels] == [4, 80]
        assert [level.processes for level in result.levels] == [1, min(2, result.cores)]
        for level in result.levels:
            assert level.held == pytest.approx(level.streams)
            assert level.added_latency_p50_s is not None
            assert level.added_latency_p99_s is not None
            assert 0.0 < level.added_latency_p50_s <= level.added_latency_p99_s
            assert level.cpu_us_per_event is not None
            assert level.cpu_us_per_event > 0.0

    on_uvloop(scenario)


def test_a_dead_server_is_an_error_and_not_a_wait_for_ever() -> None:
    async def scenario() -> None:
        async with StampServer() as server:
            assert server._process is not None
            server._process.kill()
            with pytest.raises(GeneratorError, match="died"):
                await server.stamps()

    on_uvloop(scenario)


def test_the_server_leaves_with_the_test() -> None:
    async def scenario() -> None:
        async with StampServer() as server:
            assert server._process is not None
            pid = server._process.pid
            assert Path(f"/proc/{pid}").exists()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    on_uvloop(scenario)


@pytest.mark.parametrize(
    ("streams", "seconds", "output"),
    [("", 2.0, "table"), ("1,x", 2.0, "table"), ("0", 2.0, "table"), ("5000", 2.0, "table"), ("1", 0.1, "table"),
     ("1", 2.0, "xml")],
)  # fmt: skip
def test_impossible_options_are_refused(streams: str, seconds: float, output: str) -> None:
    with pytest.raises(ConfigurationError):
        asyncio.run(selftest(streams, seconds, output))
