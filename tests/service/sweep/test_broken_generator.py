"""A part of the generator dies in the middle of a level: that level is void, the sweep goes on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from support.plain_parts import Inspector, Listener, NoTelemetry
from support.scripted_backend import Answer, ScriptedBackend
from support.virtual_time import run_virtual

from calibrator.clock import LoopClock
from calibrator.core.records.history import Bounds
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sample import Label
from calibrator.core.records.sweep import SweepOutcome, SweepRecord, VerdictKind
from calibrator.core.workload.classes import PromptFactory, TokenScale, Workload
from calibrator.load.closed_loop import ClosedLoop
from calibrator.ports.load import Batch
from calibrator.ports.sweeps import SweepOrder, Target
from calibrator.service.sweep.run import SweepParts, run_sweep

OBJECTIVES = (parse_objective("ttft p99 <= 200ms"),)
ORDER = SweepOrder("s1", "chat", Target("http://backend/v1", "m"), OBJECTIVES, Workload(), Bounds(max_level=16), seed=1)


@dataclass
class Breaking:
    """A closed loop that says it lost a part, at one of its polls, and never mentions the requests of that part."""

    load: ClosedLoop
    breaks_at: int
    polls: int = 0

    async def start(self) -> None:
        await self.load.start()

    def aim(self, users: int, label: Label, stagger_s: float) -> None:
        self.load.aim(users, label, stagger_s)

    def allow(self, until_s: float) -> None:
        self.load.allow(until_s)

    async def poll(self) -> Batch:
        self.polls += 1
        batch = await self.load.poll()
        if self.polls != self.breaks_at:
            return batch
        return replace(batch, broken="a worker died", decided=(), ended=())

    async def stop(self) -> None:
        await self.load.stop()


def sweep(order: SweepOrder, breaks_at: int) -> SweepRecord:
    async def scenario() -> SweepRecord:
        clock = LoopClock()
        prompts = PromptFactory(order.workload, TokenScale(), order.seed)
        loop = ClosedLoop(ScriptedBackend(lambda *_: Answer(0.05, 1.0)), prompts, OBJECTIVES, clock, cpu_s=lambda: 0.0)
        parts = SweepParts(Inspector(), NoTelemetry(), lambda _: Breaking(loop, breaks_at), clock)
        return await run_sweep(order, parts, Listener())

    return run_virtual(scenario())


def test_a_search_measures_the_level_again_and_finds_its_way() -> None:
    record = sweep(ORDER, breaks_at=200)
    void = [stage for stage in record.history.stages if stage.audit.reasons]
    assert [stage.audit.reasons for stage in void] == [("generator broken: a worker died",)]
    assert record.outcome is SweepOutcome.CALIBRATED
    assert record.capacity is not None
    assert record.capacity.estimate == 16


def test_a_level_that_was_asked_for_is_inconclusive_and_the_next_one_is_measured() -> None:
    record = sweep(replace(ORDER, levels=(4, 8), requests_per_level=400), breaks_at=100)
    first, second = record.levels
    assert first.verdict.kind is VerdictKind.INCONCLUSIVE
    assert "generator broken: a worker died" in first.verdict.reasons
    assert second.n == 400
    assert second.exceedances == 0
    assert second.audit.reasons == ()
