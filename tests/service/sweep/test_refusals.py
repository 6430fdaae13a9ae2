"""A sweep beside live users of an engine whose queue is bounded (simulated, virtual time): whom it turns away, and when
that ends the sweep. The engine counts users' refusals and ours alike; ours are known, so the rest are users'.

`pytest -s` prints what the search cost them.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from support.live_sweep import Scene, sweep_beside
from support.virtual_time import run_virtual

from calibrator.backends.simulated.parameters import PARAMETER_SETS, EngineParameters, Refusal
from calibrator.core.records.harm import AbortReason
from calibrator.core.records.history import Bounds
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.server_load import ServerLoad
from calibrator.core.records.sweep import SweepOutcome
from calibrator.core.workload.classes import Workload
from calibrator.ports.sweeps import SweepOrder, Target

ORDER = SweepOrder(
    "s1", "b", Target("http://b/v1", "m"), (parse_objective("ttft p99 <= 500ms"),), Workload(), Bounds(max_level=128), 1
)
QUEUED = replace(PARAMETER_SETS["long_prompts"], slots=16, max_queue=16)
JUMP_S = 25.0  # on the loop's clock; the sweep begins at 5 s


@pytest.mark.parametrize(
    ("engine", "users", "between"),
    [
        (QUEUED, 8, (25, 34)),  # sixteen slots, sixteen in the queue, two that come and go
        (replace(QUEUED, refusal=Refusal.ERROR_EVENT), 4, (25, 34)),
        (replace(PARAMETER_SETS["seed"], slots=24, max_queue=12), 12, (20, 34)),  # users are refused there, too
    ],
    ids=["a long queue", "refusals in a stream", "a short queue"],
)
def test_the_search_finds_where_the_engine_begins_to_refuse_and_is_not_aborted(
    engine: EngineParameters, users: int, between: tuple[int, int]
) -> None:
    record, _, _ = run_virtual(sweep_beside(ORDER, engine, users))
    harm, outcomes = record.harm, dict(record.outcomes)
    print(f"\n{users} users: {record.capacity}, {outcomes['failed']} probes refused, {harm}")
    assert record.aborted is None
    assert record.outcome is SweepOutcome.CALIBRATED
    assert record.capacity is not None
    assert between[0] <= record.capacity.estimate <= between[1]
    assert outcomes["failed"] >= 4, "the boundary was touched"
    assert harm.live_refusals <= 0.015 * harm.live_requests  # of 16 seeds the worst is 1.26 %, the mean 0.5


def test_users_that_the_engine_turns_away_end_the_sweep_within_a_scrape_and_a_second() -> None:
    """From 8 users to 60 in mid-level, where 32 have room."""

    async def jump(scene: Scene) -> None:
        await asyncio.sleep(JUMP_S - 5.0)
        scene.users(60)

    record, scene, ended_s = run_virtual(sweep_beside(ORDER, QUEUED, 8, script=jump))
    assert record.aborted is not None
    assert record.aborted.reason is AbortReason.LIVE_REFUSALS
    assert 0.0 < ended_s - JUMP_S <= 2.0 + 0.5
    assert all(probes == 0 for at_s, _, probes in scene.seen if at_s > ended_s)


def test_where_the_engine_does_not_count_whom_it_refuses_our_own_refusals_are_the_sign() -> None:
    """What users met is unknown then, so what probes met stands for it."""

    def silent(_: float, load: ServerLoad) -> ServerLoad:
        return replace(load, refused_total=None)

    order = replace(ORDER, levels=(60,), requests_per_level=2000)
    record, _, _ = run_virtual(sweep_beside(order, QUEUED, 8, change=silent))
    assert record.aborted is not None
    assert record.aborted.reason is AbortReason.PROBE_FAILURES
