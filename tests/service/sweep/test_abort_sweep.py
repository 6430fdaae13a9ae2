"""Whole sweeps on virtual time beside live users: harm ends them at once, and nothing of ours stays behind.

`pytest -s` prints the timeline of an abort.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from support.live_sweep import Scene, sweep_beside
from support.virtual_time import run_virtual

from calibrator.backends.simulated.parameters import PARAMETER_SETS
from calibrator.core.records.harm import AbortLimits, AbortReason, SweepLimits
from calibrator.core.records.history import Bounds
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.server_load import ServerLoad
from calibrator.core.records.sweep import SweepOutcome, SweepRecord
from calibrator.core.workload.classes import Workload
from calibrator.ports.sweeps import SweepOrder, Target

SEED = PARAMETER_SETS["seed"]
LIMIT = (parse_objective("ttft p99 <= 250ms"),)  # a bucket bound of the engine's histogram
ORDER = SweepOrder("s1", "b", Target("http://b/v1", "m"), LIMIT, Workload(), Bounds(max_level=64), seed=1)
TURN_S = 25.0  # on the loop's clock; the sweep begins at 5 s


def show(scene: Scene, aborted_s: float) -> None:
    print("\n  s   in flight = live + probes")
    for at_s, in_flight, probes in scene.seen:
        if TURN_S - 4.0 < at_s + 0.1 < aborted_s + 3.0:
            print(f"{at_s:5.1f} {in_flight:5} = {in_flight - probes:4} + {probes:3}")


def test_live_traffic_that_jumps_far_above_capacity_ends_the_sweep() -> None:
    """From 8 users to 80 in mid-level: within a scrape and a second all probes are gone."""

    async def jump(scene: Scene) -> None:
        await asyncio.sleep(TURN_S - 5.0)
        scene.users(80)

    record, scene, ended_s = run_virtual(sweep_beside(ORDER, SEED, 8, play=jump))
    show(scene, ended_s)
    assert record.aborted is not None
    assert record.aborted.reason is AbortReason.LIVE_LATENCY
    assert record.reason.startswith("aborted: ")
    assert record.harm.live_exceedances >= 60
    assert record.overload_s >= record.harm.live_overload_s > 0.0
    assert 0.0 < ended_s - TURN_S <= 2.0 + 0.5, "the first of them are late after 250 ms, and answered soon after"
    assert all(probes == 0 for at_s, _, probes in scene.seen if at_s > ended_s)
    assert scene.seen[-1][1] == 80, "in flight is live again"


CHANGES = {
    AbortReason.PREEMPTIONS: {"preemptions_total": 500.0},
    AbortReason.KV_USAGE: {"kv_usage_ratio": 1.0},
    AbortReason.LIVE_REFUSALS: {"refused_total": 60.0},
    AbortReason.RESTART: {"process_start": "another"},
}


@pytest.mark.parametrize("reason", CHANGES)
def test_what_the_engine_tells_ends_the_sweep_within_a_scrape_and_a_second(reason: AbortReason) -> None:
    def change(at_s: float, load: ServerLoad) -> ServerLoad:
        quiet = replace(load, refused_total=0.0)
        return replace(quiet, **CHANGES[reason]) if at_s >= TURN_S else quiet  # type: ignore[arg-type] # a table

    order = replace(ORDER, abort=AbortLimits(kv_usage_ratio=1.0))
    record, scene, ended_s = run_virtual(sweep_beside(order, SEED, 8, change=change))
    assert record.aborted is not None
    assert record.aborted.reason is reason
    assert 0.0 <= ended_s - TURN_S <= 2.0
    assert scene.seen[-1][1:] == (8, 0)
    assert record.outcome in (SweepOutcome.INCONCLUSIVE, SweepOutcome.CALIBRATED)


def test_full_memory_alone_ends_nothing() -> None:
    record, _, _ = run_virtual(sweep_beside(ORDER, SEED, 8, change=lambda _, load: replace(load, kv_usage_ratio=1.0)))
    assert record.aborted is None
    assert record.outcome is SweepOutcome.CALIBRATED


def test_metrics_that_fall_silent_beside_live_users_end_it() -> None:
    def silent(at_s: float, load: ServerLoad) -> ServerLoad | None:
        return None if at_s >= TURN_S else load

    record, _, ended_s = run_virtual(sweep_beside(ORDER, SEED, 8, change=silent))
    assert record.aborted is not None
    assert record.aborted.reason is AbortReason.BLIND
    assert 9.0 <= ended_s - TURN_S <= 10.0 + 2.0


def test_an_idle_engine_may_be_filled_to_the_brim() -> None:
    """Preemptions, a full memory and late answers hurt nobody but our own probes, however strict the limits."""
    order = replace(
        ORDER, abort=AbortLimits(1, 1, 1, 1, 0.5, 0.1, 1.0), objectives=(parse_objective("ttft p99 <= 1s"),)
    )
    record, _, _ = run_virtual(sweep_beside(order, PARAMETER_SETS["tight_memory"], 0))
    assert max(level.server.preemptions or 0.0 for level in record.levels) > 0.0
    assert record.aborted is None
    assert record.outcome is SweepOutcome.CALIBRATED


def refuted(record: SweepRecord) -> bool:
    return any(level.verdict.kind.value == "exceeded" for level in record.levels)


@pytest.mark.parametrize("turn_s", [10.0, 45.0])
def test_an_aborted_sweep_answers_only_where_a_level_was_refuted(turn_s: float) -> None:
    def restart(at_s: float, load: ServerLoad) -> ServerLoad:
        return replace(load, process_start="another") if at_s >= turn_s else load

    order = replace(ORDER, objectives=(parse_objective("ttft p99 <= 100ms"),))
    record, _, _ = run_virtual(sweep_beside(order, PARAMETER_SETS["small"], 0, change=restart))
    assert record.aborted is not None
    assert record.aborted.reason is AbortReason.RESTART
    assert (record.outcome is SweepOutcome.CALIBRATED) == refuted(record) == (turn_s > 30.0)


def test_a_token_budget_ends_a_sweep_with_what_it_knows() -> None:
    order = replace(ORDER, limits=SweepLimits(tokens=60_000))
    record, _, _ = run_virtual(sweep_beside(order, SEED, 0))
    spent = record.prompt_tokens + record.output_tokens
    assert record.aborted is None
    assert "token budget" in record.reason
    assert 54_000 <= spent <= 66_000, "what is in flight at the end is counted before"


def test_a_window_that_closes_ends_a_sweep() -> None:
    order = replace(ORDER, limits=SweepLimits(ends_at=1_800_000_000.0 + 20.0))
    record, _, ended_s = run_virtual(sweep_beside(order, SEED, 0))
    assert ended_s == pytest.approx(20.0, abs=1.0)
    assert record.reason.startswith("the window closed")


def test_the_requests_left_for_today_end_a_sweep() -> None:
    record, _, _ = run_virtual(sweep_beside(replace(ORDER, limits=SweepLimits(requests=300)), SEED, 0))
    assert 300 <= record.requests <= 340
    assert "left for today" in record.reason
