"""What a stage is worth: its own warm-up does not refute it, and samples that turn out to be suspect are dropped."""

from __future__ import annotations

import asyncio

import pytest
from support.organic import steady
from support.organic_cases import PREFILL
from support.organic_sweep import sweep_beside
from support.scripted_backend import Answer, ScriptedBackend
from support.virtual_time import run_virtual

from calibrator.clock import LoopClock
from calibrator.core.records.history import Bounds, Stage
from calibrator.core.records.level_accumulator import LevelAccumulator
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.server_load import ServerLoad
from calibrator.core.search.steps import Measure, Test
from calibrator.core.workload.classes import PromptFactory, TokenScale, Workload
from calibrator.load.closed_loop import ClosedLoop
from calibrator.service.sweep.level_runner import LevelRunner, ServerPeaks
from calibrator.service.sweep.live_traffic import LiveTraffic

OBJECTIVES = (parse_objective("ttft p99 <= 200ms"),)
LEVEL = 8
SWEEPS = 12


def test_a_doubling_to_just_under_the_capacity_is_not_refuted_by_its_own_warm_up() -> None:
    """True capacity 46. With all users added within the residence of level 22, a third of these warm-ups fail."""
    bounds = Bounds(max_level=64, overload_s=3600.0)
    failed = 0
    for seed in range(1, SWEEPS + 1):
        held = sweep_beside(PREFILL, steady(0), seed, levels=(11, 22, 44), requests_per_level=30, bounds=bounds)
        failed += held.record.history.stages[-1].ramp_failed
    assert failed <= SWEEPS / 12


class Stay:
    """A level held for some seconds on a real generator; the gauges say what a test tells."""

    def __init__(self) -> None:
        self.clock = LoopClock()
        self.live = LiveTraffic(self.clock)
        prompts = PromptFactory(Workload(), TokenScale(), seed=1)
        backend = ScriptedBackend(lambda _request, _in_flight: Answer(0.05, 0.2))
        self.load = ClosedLoop(backend, prompts, OBJECTIVES, self.clock, cpu_s=lambda: 0.0)
        self.fold = LevelAccumulator(LEVEL, OBJECTIVES)
        self.runner = LevelRunner(
            self.load, self.clock, OBJECTIVES, self.clock.monotonic(), ServerPeaks(), self.live, lambda _: None
        )

    def scrape(self, organic: int) -> None:
        now_s = self.clock.monotonic()
        self.live.scraped(now_s, now_s, ServerLoad("scripted", float(organic + self.runner.in_flight), 0.0))

    async def hold(self, seconds: float) -> Stage:
        return await self.runner.hold(
            Measure(LEVEL, Test.VERDICT, 10**6, "held"), self.fold, lambda stage: stage.ended_at_s >= seconds
        )

    def shown(self) -> int:
        seen = self.fold.correlation()[0]
        return 0 if seen is None else seen.n


def test_latencies_that_turn_out_suspect_while_paused_are_dropped() -> None:
    async def scenario() -> tuple[int, int]:
        stay = Stay()
        await stay.load.start()
        stay.scrape(0)
        await stay.hold(6.0)
        stay.scrape(0)
        await stay.hold(10.0)
        before = stay.shown()
        pause = asyncio.create_task(stay.runner.pause(2.0))
        await asyncio.sleep(0.5)
        stay.scrape(20)
        await pause
        await stay.load.stop()
        return before, stay.shown()

    before, after = run_virtual(scenario())
    assert 0 < after < before


@pytest.mark.parametrize(("late_s", "invalidated"), [(0.0, 1), (0.5, 1), (4.0, 0)])
def test_a_stage_that_ended_before_the_scrape_was_evaluated_is_invalid(late_s: float, invalidated: int) -> None:
    """Also one that ended in the same moment: it has not seen the scrape."""

    async def scenario() -> Stage:
        stay = Stay()
        await stay.load.start()
        stay.scrape(0)
        stage = await stay.hold(6.0)
        for _ in range(int(late_s)):
            await asyncio.sleep(1.0)
            stay.scrape(0)
        await asyncio.sleep(late_s % 1.0)
        stay.scrape(6)
        await stay.load.stop()
        (kept,) = stay.live.invalidated((stage,), stay.runner.origin_s)
        return kept

    assert bool(run_virtual(scenario()).level_lost) == bool(invalidated)
