"""A sweep whose engine's gauges are wrong finds the capacity all the same, and says that it saw no live traffic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from support.live_sweep import sweep_beside
from support.organic_cases import MOVING, SLOTS, Traffic
from support.organic_sweep import sweep_beside as sweep_beside_shape
from support.virtual_time import run_virtual

from calibrator.backends.simulated.parameters import PARAMETER_SETS
from calibrator.core.live.gauge_scale import GaugeFault
from calibrator.core.records.history import Bounds
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.server_load import ServerLoad
from calibrator.core.records.sweep import SweepOutcome, SweepRecord
from calibrator.core.workload.classes import Workload
from calibrator.ports.sweeps import SweepOrder, Target

LIMIT = (parse_objective("ttft p99 <= 100ms"),)
ORDER = SweepOrder("s1", "b", Target("http://b/v1", "m"), LIMIT, Workload(), Bounds(max_level=64), seed=1)
SLOTS_OF_SMALL = 4


def times(scale: float) -> Callable[[float, ServerLoad], ServerLoad]:
    def change(_: float, load: ServerLoad) -> ServerLoad:
        running, waiting = load.running_requests or 0.0, load.waiting_requests or 0.0
        return replace(load, running_requests=float(round(scale * running)), waiting_requests=float(scale * waiting))

    return change


def faults(record: SweepRecord) -> set[str]:
    return {warning.split(":")[0] for warning in record.warnings} & set(GaugeFault)


@pytest.mark.parametrize(
    ("scale", "fault"), [(2, GaugeFault.TOO_MANY), (4, GaugeFault.TOO_MANY), (0.25, GaugeFault.TOO_FEW)]
)
def test_the_capacity_is_found_without_the_gauges(scale: float, fault: GaugeFault) -> None:
    record, _, _ = run_virtual(sweep_beside(ORDER, PARAMETER_SETS["small"], 0, change=times(scale)))
    assert faults(record) == {fault}
    assert record.outcome is SweepOutcome.CALIBRATED
    assert record.capacity is not None
    assert record.capacity.estimate == SLOTS_OF_SMALL
    held = [stage for stage in record.history.stages if stage.organic and stage.organic >= 1.0]
    assert all(stage.level_lost for stage in held), "levels that were filled up with users that there were not"


@pytest.mark.parametrize("traffic", MOVING, ids=lambda traffic: traffic.name)
@pytest.mark.parametrize("lag_s", [0.0, 2.0])
def test_live_users_trip_nothing(traffic: Traffic, lag_s: float) -> None:
    record = sweep_beside_shape(SLOTS, traffic.shape, seed=1, lag_s=lag_s).record
    assert faults(record) == set()
