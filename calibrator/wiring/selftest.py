"""The self-test of the generator that a sweep would use."""

from __future__ import annotations

from collections.abc import Callable

from calibrator.clock import SystemClock
from calibrator.core.generator_rating import SelfTest
from calibrator.core.records.history import Bounds
from calibrator.core.records.objective import parse_objective
from calibrator.core.workload.classes import TokenScale, Workload, WorkloadClass
from calibrator.load.processes import usable_cores
from calibrator.load.selftest import OUTPUT_TOKENS, StampServer, measure_level
from calibrator.ports.backend import BackendFacts
from calibrator.ports.load import LoadGenerator
from calibrator.ports.sweeps import SweepOrder, Target

PROMPT_TOKENS = 256  # as the probes of a sweep have by default


Make = Callable[[SweepOrder, BackendFacts], LoadGenerator]


async def run_selftest(streams: tuple[int, ...], seconds: float, make: Make) -> SelfTest:
    """Measure each number of streams for `seconds`, smallest first, with the generators that `make` makes."""
    clock = SystemClock()
    levels = []
    async with StampServer() as server:
        for count in sorted(streams):
            order = SweepOrder(
                sweep_id=f"selftest-{count}",
                backend="selftest",
                target=Target(f"http://127.0.0.1:{server.port}/v1", "s"),
                objectives=(parse_objective("ttft p99 <= 500ms"),),
                workload=Workload((WorkloadClass("default", 1.0, PROMPT_TOKENS, OUTPUT_TOKENS),)),
                bounds=Bounds(),
                seed=1,
                levels=(count,),
            )
            load = make(order, BackendFacts("s", TokenScale(), forces_length=True))
            levels.append(await measure_level(server, load, count, seconds, clock.monotonic))
    return SelfTest(usable_cores(), tuple(levels))
