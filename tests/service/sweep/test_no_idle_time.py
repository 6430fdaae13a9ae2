"""Levels follow each other without draining: between them the backend never waits for us."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise

import pytest
from support.plain_parts import Inspector, Listener, NoTelemetry
from support.scripted_backend import Answer, ScriptedBackend
from support.sweep_entries import order
from support.virtual_time import run_virtual

from calibrator.clock import LoopClock
from calibrator.core.records.sample import ProbeRequest
from calibrator.core.records.sweep import SweepRecord
from calibrator.core.workload.classes import PromptFactory
from calibrator.load.closed_loop import ClosedLoop
from calibrator.ports.backend import BackendFacts
from calibrator.ports.load import LoadGenerator
from calibrator.service.sweep.run import SweepParts, run_sweep

RESIDENCE_S = 1.0
SOON_S = 0.25  # of the second that a start may take: a first scrape of the engine's metrics


@pytest.mark.parametrize("levels", [(4, 8, 16), (16, 8, 4), (4, 16, 4, 8)])
def test_between_levels_the_lower_one_is_held_and_every_user_goes_on_at_once(levels: tuple[int, ...]) -> None:
    starts: list[tuple[float, int]] = []  # when, and how many were in flight with it

    def answer(_: ProbeRequest, in_flight: int) -> Answer:
        starts.append((asyncio.get_running_loop().time(), in_flight))
        return Answer(0.05, RESIDENCE_S)

    asked = replace(order(), levels=levels, requests_per_level=40)

    async def scenario() -> SweepRecord:
        clock, backend = LoopClock(), ScriptedBackend(answer)

        def load(facts: BackendFacts) -> LoadGenerator:
            prompts = PromptFactory(asked.workload, facts.token_scale, asked.seed)
            return ClosedLoop(backend, prompts, asked.objectives, clock, cpu_s=lambda: 0.0)

        return await run_sweep(asked, SweepParts(Inspector(), NoTelemetry(), load, clock), Listener())

    record = run_virtual(scenario())
    assert len(record.history.stages) == len(levels)
    full = next(index for index, (_, in_flight) in enumerate(starts) if in_flight == levels[0])
    running = starts[full:]
    assert min(in_flight for _, in_flight in running) >= min(levels)
    times_s = [at_s for at_s, _ in running]
    assert max(later - sooner for sooner, later in pairwise(times_s)) <= RESIDENCE_S
    assert starts[0][0] < SOON_S, "the first probe leaves with the sweep"
