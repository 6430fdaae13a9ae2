"""The closed loop holds a level, decides bits as early as honesty allows, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from support.scripted_backend import Answer, ScriptedBackend, failing
from support.virtual_time import run_virtual

from calibrator.clock import LoopClock
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sample import Flight, Label, Phase, ProbeRequest, Sample
from calibrator.core.workload.classes import PromptFactory, TokenScale, Workload, WorkloadClass
from calibrator.errors import GeneratorError
from calibrator.load.closed_loop import ClosedLoop
from calibrator.ports.load import Batch

TTFT = parse_objective("ttft p99 <= 100ms")
E2E = parse_objective("e2e p99 <= 1s")
COUNTED = Label(1, Phase.COUNTED)


def loop_over(backend: ScriptedBackend, *objectives: str, workload: Workload | None = None) -> ClosedLoop:
    chosen = tuple(parse_objective(text) for text in objectives) or (TTFT, E2E)
    prompts = PromptFactory(workload or Workload(), TokenScale(), seed=1)
    return ClosedLoop(backend, prompts, chosen, LoopClock(), cpu_s=lambda: 0.0)


async def poll_for(load: ClosedLoop, seconds: float, step_s: float = 0.05) -> list[Batch]:
    batches = []
    for _ in range(round(seconds / step_s)):
        await asyncio.sleep(step_s)
        batches.append(await load.poll())
    return batches


def final_bits(batches: Sequence[Batch], objective: int) -> dict[int, bool | None]:
    return {bit.request_id: bit.violated for batch in batches for bit in batch.decided if bit.objective == objective}


def test_holds_exactly_the_wanted_number_in_flight() -> None:
    async def scenario() -> None:
        backend = ScriptedBackend(lambda *_: Answer())
        load = loop_over(backend)
        await load.start()
        load.aim(7, COUNTED, stagger_s=0.5)
        batches = await poll_for(load, 5.0)
        assert backend.peak_in_flight == 7
        assert {batch.in_flight for batch in batches if batch.all_started} == {7}
        assert backend.opened == 7, "one connection a user, kept"
        await load.stop()

    run_virtual(scenario())


def test_users_are_added_spread_over_the_stagger_time() -> None:
    async def scenario() -> None:
        load = loop_over(ScriptedBackend(lambda *_: Answer(e2e_s=60.0)))
        await load.start()
        load.aim(10, COUNTED, stagger_s=1.0)
        counts = [batch.users for batch in await poll_for(load, 1.0, step_s=0.1)]
        assert counts == sorted(counts)
        assert counts[0] <= 2
        assert counts[4] in (4, 5, 6)
        assert counts[-1] == 10
        await load.stop()

    run_virtual(scenario())


def test_going_down_lets_requests_end_and_cuts_nothing_off() -> None:
    async def scenario() -> None:
        backend = ScriptedBackend(lambda *_: Answer())
        load = loop_over(backend)
        await load.start()
        load.aim(8, COUNTED, 0.0)
        await poll_for(load, 1.0)
        load.aim(3, Label(2, Phase.COUNTED), 0.0)
        batches = await poll_for(load, 1.0)
        assert batches[-1].in_flight == 3
        assert batches[-1].all_started
        assert not any(sample.cancelled for batch in batches for sample in batch.ended)
        await load.stop()

    run_virtual(scenario())


def test_a_request_keeps_the_label_it_started_with() -> None:
    async def scenario() -> None:
        load = loop_over(ScriptedBackend(lambda *_: Answer(e2e_s=0.5)))
        await load.start()
        load.aim(4, Label(1, Phase.RAMP), 0.0)
        await poll_for(load, 0.3)
        load.aim(4, Label(1, Phase.COUNTED), 0.0)
        ended = [sample for batch in await poll_for(load, 0.4) for sample in batch.ended]
        assert [sample.label.phase for sample in ended] == [Phase.RAMP] * 4
        await load.stop()

    run_virtual(scenario())


def test_a_violation_is_decided_when_the_limit_passes_and_a_pass_at_the_first_token() -> None:
    async def scenario() -> None:
        slow = Answer(ttft_s=30.0, e2e_s=40.0)
        load = loop_over(ScriptedBackend(lambda request, _: slow if request.request_id == 0 else Answer(0.05, 40.0)))
        await load.start()
        load.aim(2, COUNTED, 0.0)
        batches = await poll_for(load, 0.2)
        assert final_bits(batches, 0) == {0: True, 1: False}, "ttft decided after 0.2 s, not after 40 s"
        assert final_bits(batches, 1) == {}, "e2e still open"
        assert not any(batch.ended for batch in batches)
        late = await poll_for(load, 2.0)
        assert final_bits(late, 1) == {0: True, 1: True}
        await load.stop()

    run_virtual(scenario())


def test_a_stall_shows_as_one_moment_once_its_first_tokens_come() -> None:
    """Violations decided one by one at their limits get the time of their first token: one cluster, not many."""

    async def scenario() -> None:
        def after_stall(request: ProbeRequest, _: int) -> Answer:
            return Answer(ttft_s=3.0 - 0.1 * request.request_id, e2e_s=10.0)

        load = loop_over(ScriptedBackend(after_stall))
        await load.start()
        load.aim(5, COUNTED, stagger_s=0.5)
        batches = await poll_for(load, 4.0)
        last = {bit.request_id: bit.at_s for batch in batches for bit in batch.decided if bit.objective == 0}
        first = {
            bit.request_id: bit.at_s for batch in reversed(batches) for bit in reversed(batch.decided)
            if bit.objective == 0
        }  # fmt: skip
        assert max(last.values()) - min(last.values()) < 1e-6
        assert max(first.values()) - min(first.values()) > 0.3
        await load.stop()

    run_virtual(scenario())


def test_a_violation_that_was_suspect_in_flight_is_judged_anew_at_its_end() -> None:
    """The limit was missed by a moment when it was decided, and by far in the end."""

    class Sleepy(LoopClock):
        async def sleep(self, seconds: float) -> None:
            await super().sleep(max(0.2, seconds))  # the loop's own probe, too: it is always 0.2 s late

    async def scenario(e2e_s: float) -> list[bool]:
        prompts = PromptFactory(Workload(), TokenScale(), seed=1)
        backend = ScriptedBackend(lambda *_: Answer(ttft_s=0.05, e2e_s=e2e_s))
        load = ClosedLoop(backend, prompts, (E2E,), Sleepy(), cpu_s=lambda: 0.0)
        await load.start()
        load.aim(1, COUNTED, 0.0)
        batches = await poll_for(load, 1.5 * e2e_s)
        await load.stop()
        return [bit.suspect for batch in batches for bit in batch.decided if bit.request_id == 0]

    assert run_virtual(scenario(3.0)) == [True, False]
    assert run_virtual(scenario(1.2)) == [True, True]


def test_failures_violate_every_objective() -> None:
    async def scenario() -> None:
        load = loop_over(ScriptedBackend(lambda *_: failing()))
        await load.start()
        load.aim(2, COUNTED, 0.0)
        batches = await poll_for(load, 1.0)
        for objective in (0, 1):
            bits = final_bits(batches, objective)
            assert bits
            assert set(bits.values()) == {True}
        await load.stop()

    run_virtual(scenario())


def test_a_refusing_backend_is_not_hammered() -> None:
    async def scenario() -> None:
        backend = ScriptedBackend(lambda *_: failing())
        load = loop_over(backend)
        await load.start()
        load.aim(1, COUNTED, 0.0)
        await poll_for(load, 10.0)
        assert len(backend.requests) <= 10 / 0.05 + 1
        await load.stop()

    run_virtual(scenario())


def test_objectives_that_do_not_apply_say_nothing() -> None:
    async def scenario() -> None:
        workload = Workload((WorkloadClass("long", 1.0, 2000, 8), WorkloadClass("plain", 1.0, 100, 8, stream=False)))
        load = loop_over(
            ScriptedBackend(lambda *_: Answer(ttft_s=5.0, e2e_s=6.0)),
            "ttft p99 <= 100ms for prompts <= 1024 tokens",
            "e2e p99 <= 1s",
            workload=workload,
        )
        await load.start()
        load.aim(2, COUNTED, 0.0)
        batches = await poll_for(load, 5.0)
        assert set(final_bits(batches, 0).values()) == {None}
        assert set(final_bits(batches, 1).values()) == {True}
        await load.stop()

    run_virtual(scenario())


def test_stop_aborts_every_request_within_a_second_and_closes_connections() -> None:
    async def scenario() -> None:
        backend = ScriptedBackend(lambda *_: Answer(ttft_s=50.0, e2e_s=100.0))
        load = loop_over(backend)
        await load.start()
        load.aim(20, COUNTED, stagger_s=0.1)
        await poll_for(load, 1.0)
        before_s = asyncio.get_running_loop().time()
        await load.stop()
        assert asyncio.get_running_loop().time() - before_s < 1.0
        assert backend.in_flight == 0
        assert backend.aborted == 20
        assert backend.closed
        assert len(asyncio.all_tasks()) == 1, "no task is left"

    run_virtual(scenario())


def test_cancelled_requests_count_only_if_they_were_over_the_limit_already() -> None:
    async def scenario() -> None:
        load = loop_over(ScriptedBackend(lambda *_: Answer(ttft_s=50.0, e2e_s=100.0)))
        await load.start()
        load.aim(1, COUNTED, 0.0)
        await poll_for(load, 0.05)
        await load.stop()
        bits = [(bit.objective, bit.violated) for bit in (await load.poll()).decided]
        assert sorted(bits, key=str) == [(0, None), (1, None)]

    run_virtual(scenario())


def test_a_bug_in_a_client_ends_the_sweep_instead_of_hanging_it() -> None:
    class Broken:
        async def send(self, request: ProbeRequest, on_start: object) -> Sample:
            raise ZeroDivisionError

        def abort(self) -> None: ...

    class BrokenBackend(ScriptedBackend):
        def connect(self) -> Broken:  # type: ignore[override]
            return Broken()

    async def scenario() -> None:
        load = loop_over(BrokenBackend(lambda *_: Answer()))
        await load.start()
        load.aim(1, COUNTED, 0.0)
        with pytest.raises(GeneratorError, match="ZeroDivisionError"):
            await poll_for(load, 1.0)
        await load.stop()

    run_virtual(scenario())


def test_the_loop_measures_its_own_lag() -> None:
    """On virtual time the loop is never late."""

    async def scenario() -> None:
        load = loop_over(ScriptedBackend(lambda *_: Answer()))
        await load.start()
        load.aim(1, COUNTED, 0.0)
        lags = [lag for batch in await poll_for(load, 1.0) for lag in batch.loop_lag_s]
        assert len(lags) >= 40
        assert max(lags) < 1e-9
        await load.stop()

    run_virtual(scenario())


def test_flights_are_values_with_a_readable_repr() -> None:
    request = ProbeRequest(1, COUNTED, "default", "text", 10, 10, stream=True)
    assert "started_s=1.5" in repr(Flight(request, 1.5))
