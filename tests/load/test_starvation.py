"""A starved generator sees violations that the backend never committed; it must not blame the backend for them.

The server is a process of its own that stamps what it sends, so the truth is its own log. The generator is starved on
purpose: its worker is stopped for most of each cycle, as if others had all cores. No duration is asserted.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from support.plain_parts import Inspector, Listener, NoTelemetry
from support.quiet_machine import real_time
from support.real_processes import on_uvloop
from support.worker_factories import FACTS

from calibrator.clock import SystemClock
from calibrator.core.records.history import Bounds
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sample import Label
from calibrator.core.records.sweep import SweepRecord, VerdictKind
from calibrator.core.workload.classes import Workload, WorkloadClass
from calibrator.load.pool import WorkerPool
from calibrator.load.processes import LocalLauncher, LocalLink
from calibrator.load.selftest import StampServer
from calibrator.ports.load import Batch, LoadGenerator
from calibrator.ports.sweeps import SweepOrder, Target
from calibrator.service.sweep.run import SweepParts, run_sweep
from calibrator.wiring.generator import closed_loop

LIMIT_S = 0.5  # the server's first tokens come after 20 to 40 ms
EVENTS_PER_S = 20.0
AWAKE_S, STOPPED_S = 0.3, 1.1


@dataclass
class Starved:
    """A generator whose worker is stopped again and again once it runs."""

    pool: WorkerPool
    stopper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.pool.start()
        while (await self.pool.poll()).processes == 0:  # noqa: ASYNC110 - the port is polled
            await asyncio.sleep(0.02)
        [seat] = self.pool._seats
        assert isinstance(seat.link, LocalLink)
        self.stopper = asyncio.create_task(self._starve(seat.link.process.pid))

    async def _starve(self, worker: int) -> None:
        while True:
            await asyncio.sleep(AWAKE_S)
            os.kill(worker, signal.SIGSTOP)
            try:
                await asyncio.sleep(STOPPED_S)
            finally:
                os.kill(worker, signal.SIGCONT)

    def aim(self, users: int, label: Label, stagger_s: float) -> None:
        self.pool.aim(users, label, stagger_s)

    def allow(self, until_s: float) -> None:
        self.pool.allow(until_s)

    async def poll(self) -> Batch:
        return await self.pool.poll()

    async def stop(self) -> None:
        if self.stopper is not None:
            self.stopper.cancel()
            await asyncio.gather(self.stopper, return_exceptions=True)
        await self.pool.stop()


async def sweep(
    make: Callable[[SweepOrder], LoadGenerator], quantile: str, level: int, output_tokens: int
) -> tuple[SweepRecord, float]:
    """One level; and the share of its requests that the server answered too late, by its own log."""
    async with StampServer() as server:
        server.pace(EVENTS_PER_S)
        order = SweepOrder(
            sweep_id="starvation",
            backend="b",
            target=Target(f"http://127.0.0.1:{server.port}/v1", "s"),
            objectives=(parse_objective(f"ttft {quantile} <= {LIMIT_S * 1e3:g}ms"),),
            workload=Workload((WorkloadClass("short", 1.0, 32, output_tokens),)),
            bounds=Bounds(duration_s=20.0),
            seed=1,
            levels=(level,),
            requests_per_level=800,
        )
        parts = SweepParts(Inspector(), NoTelemetry(), lambda _: make(order), SystemClock())
        record = await run_sweep(order, parts, Listener())
        stamps = list((await server.stamps()).values())
    return record, sum(first_s - received_s > LIMIT_S for received_s, first_s, _ in stamps) / len(stamps)


@real_time
def test_a_starved_generator_blames_itself() -> None:
    """One token each: whoever is in flight at a stop waits for the first one."""

    async def scenario() -> None:
        record, late_ratio = await sweep(
            lambda order: Starved(WorkerPool(partial(closed_loop, order, FACTS), LocalLauncher(), most_workers=1)),
            "p99",
            level=8,
            output_tokens=1,
        )
        level = record.levels[0]
        assert late_ratio < 0.005, "the truth is within: half the allowance at most"
        assert level.exceedances > 0.02 * level.n, "believed without question, its stamps say exceeded"
        assert level.verdict.kind is VerdictKind.INCONCLUSIVE
        assert level.audit.reasons, (
            "its own lateness, or that it held less than it was asked for: whichever shows first"
        )
        assert set(level.verdict.reasons) <= set(level.audit.reasons)

    on_uvloop(scenario)


@real_time
def test_the_same_generator_unstarved_is_within() -> None:
    """Longer answers and a P95: what a busy machine's own spells of lateness do to either is far below the limit."""

    async def scenario() -> None:
        record, late_ratio = await sweep(
            lambda order: WorkerPool(partial(closed_loop, order, FACTS), LocalLauncher(), most_workers=1),
            "p95",
            level=32,
            output_tokens=8,
        )
        assert late_ratio < 0.005
        assert record.levels[0].verdict.kind is VerdictKind.WITHIN

    on_uvloop(scenario)
