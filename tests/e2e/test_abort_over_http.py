"""A sweep in a process of its own beside live users over HTTP: an engine in trouble is rid of our probes at once.

`pytest -s` prints what was in flight each half second.
"""

from __future__ import annotations

import asyncio

from support.live_sweep import Listener
from support.organic import LiveUsers
from support.quiet_machine import real_time

from calibrator.backends.openai import OpenAIBackend
from calibrator.backends.simulated.inprocess import MODEL, SCALE
from calibrator.backends.simulated.parameters import PARAMETER_SETS, WORKLOADS
from calibrator.backends.simulated.server import serving
from calibrator.clock import SystemClock
from calibrator.core.records.harm import AbortReason
from calibrator.core.records.history import Bounds
from calibrator.core.records.objective import parse_objective
from calibrator.core.workload.classes import PromptFactory
from calibrator.ports.load import LoadPlan
from calibrator.ports.sweeps import SweepOrder, Target
from calibrator.wiring.sweeps import sweep_runner

USERS = 16
PROBES_LEAST = 2
CROWD = 100  # far above the engine's capacity: from then on everybody waits for a slot longer than 500 ms
SCRAPE_S, ABORT_S, GONE_S = 1.0, 1.0, 2.0
SLACK_S = 3.0  # until 60 of them were late, and for a busy machine


@real_time
def test_probes_leave_an_engine_whose_users_suffer() -> None:
    asyncio.run(asyncio.wait_for(scenario(), 300.0))


async def scenario() -> None:
    clock, workload, crowd = SystemClock(), WORKLOADS["seed"], [USERS]
    async with serving(PARAMETER_SETS["seed"]) as engine:
        target, driver = Target(f"{engine.url}/v1", MODEL), engine.api.driver
        order = SweepOrder(
            "s1", "b", target, (parse_objective("ttft p99 <= 500ms"),), workload, Bounds(min_level=24), seed=1
        )
        live = LiveUsers(
            OpenAIBackend(target, now=clock.monotonic, forces_length=True, stall_timeout_s=60.0, total_timeout_s=60.0),
            PromptFactory(workload, SCALE, seed=2),
            clock,
            lambda _: crowd[-1],
        )
        live.start()
        listener, seen = Listener(), []

        async def watch() -> None:
            while True:
                seen.append((clock.monotonic(), driver.in_flight, live.in_flight))
                await asyncio.sleep(0.1)

        watching = asyncio.create_task(watch())
        sweep = asyncio.create_task(sweep_runner(LoadPlan()).run(order, listener))
        while listener.latest is None or listener.latest.in_flight < PROBES_LEAST:
            assert not sweep.done(), sweep.result().reason
            await asyncio.sleep(0.05)
        await asyncio.sleep(2.0)
        troubled_s = clock.monotonic()
        crowd.append(CROWD)
        record = await sweep
        ended_s = clock.monotonic()
        await asyncio.sleep(1.5)
        watching.cancel()
        await live.stop()

    print()
    for at_s, in_flight, ours in seen[::5]:
        if at_s > troubled_s - 2.0:
            print(f"{at_s - troubled_s:5.1f} s: {in_flight:3} in flight = {ours:3} live + {max(0, in_flight - ours):3}")
    assert record.aborted is not None, record.reason
    print(record.aborted.words)
    assert record.aborted.reason is AbortReason.LIVE_LATENCY
    assert record.harm.live_exceedances >= 60
    left_s = next(at_s for at_s, in_flight, live_users in reversed(seen) if in_flight > live_users) - troubled_s
    assert left_s <= SCRAPE_S + ABORT_S + SLACK_S
    assert ended_s - troubled_s <= SCRAPE_S + ABORT_S + SLACK_S + GONE_S
    assert seen[-1][1] <= CROWD
