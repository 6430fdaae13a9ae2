"""A whole sweep on virtual time against a scripted backend: everything else is the real thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from calibrator.clock import LoopClock
from calibrator.core.publish.snapshot import Progress
from calibrator.core.records.history import Bounds
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sample import ProbeRequest
from calibrator.core.records.server_load import ServerLoad
from calibrator.core.records.sweep import SweepRecord
from calibrator.core.workload.classes import PromptFactory, TokenScale, Workload
from calibrator.load.closed_loop import ClosedLoop
from calibrator.ports.backend import BackendFacts
from calibrator.ports.load import LoadGenerator
from calibrator.ports.sweeps import SweepOrder, Target
from calibrator.service.sweep.run import SweepParts, run_sweep
from support.scripted_backend import Answer, ScriptedBackend
from support.virtual_time import run_virtual

OBJECTIVES = (parse_objective("ttft p99 <= 200ms"),)
ORDER = SweepOrder("s1", "chat", Target("http://backend/v1", "m"), OBJECTIVES, Workload(), Bounds(max_level=64), seed=1)


@dataclass
class Inspector:
    error: Exception | None = None

    async def inspect(self, workload: Workload) -> BackendFacts:
        if self.error is not None:
            raise self.error
        return BackendFacts("m", TokenScale(), forces_length=True, warnings=("a warning",))


@dataclass
class Gauges:
    backend: ScriptedBackend
    slots: int = 10**6
    problem: str = ""

    async def scrape(self) -> ServerLoad | None:
        now = self.backend.in_flight
        return ServerLoad("scripted", float(min(now, self.slots)), float(max(0, now - self.slots)))

    async def close(self) -> None: ...


@dataclass
class Listener:
    seen: list[Progress] = field(default_factory=list)
    records: list[SweepRecord] = field(default_factory=list)

    def progress(self, progress: Progress) -> None:
        self.seen.append(progress)

    def partial(self, record: SweepRecord) -> None:
        self.records.append(record)


def knee(slots: int) -> Callable[[ProbeRequest, int], Answer]:
    """Up to `slots` in flight all is well; above, every request waits."""
    return lambda _, in_flight: Answer(0.05, 1.0) if in_flight <= slots else Answer(0.6, 1.6)


def parts_for(backend: ScriptedBackend, clock: LoopClock, order: SweepOrder, inspector: Inspector) -> SweepParts:
    def load(facts: BackendFacts) -> LoadGenerator:
        prompts = PromptFactory(order.workload, facts.token_scale, order.seed)
        return ClosedLoop(backend, prompts, order.objectives, clock, cpu_s=lambda: 0.0)

    return SweepParts(inspector, Gauges(backend), load, clock)


def sweep(
    answer: Callable[[ProbeRequest, int], Answer], order: SweepOrder = ORDER, inspector: Inspector | None = None
) -> tuple[SweepRecord, ScriptedBackend, Listener]:
    backend, listener = ScriptedBackend(answer), Listener()

    async def scenario() -> SweepRecord:
        clock = LoopClock()
        return await run_sweep(order, parts_for(backend, clock, order, inspector or Inspector()), listener)

    return run_virtual(scenario()), backend, listener
