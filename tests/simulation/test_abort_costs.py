"""What an ordinary search costs live users, against the default limits: nothing is aborted, idle or busy.

`pytest -s` prints the table.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from support.live_sweep import sweep_beside
from support.virtual_time import run_virtual

from calibrator.backends.simulated.parameters import PARAMETER_SETS
from calibrator.core.records.history import Bounds
from calibrator.core.records.objective import parse_objective
from calibrator.core.workload.classes import Workload
from calibrator.ports.sweeps import SweepOrder, Target


@dataclass(frozen=True, slots=True)
class Case:
    """Limits at bucket bounds, so that each exceedance is seen."""

    engine: str
    objective: str
    users: int


CASES = (
    Case("seed", "ttft p99 <= 250ms", 8),
    Case("small", "ttft p99 <= 100ms", 2),
    Case("long_prompts", "ttft p99 <= 500ms", 8),
    Case("tight_memory", "ttft p99 <= 250ms", 8),
    *(Case(engine, "ttft p99 <= 250ms", 0) for engine in ("seed", "small", "long_prompts", "tight_memory")),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.engine} beside {case.users}")
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_an_ordinary_sweep_is_not_aborted(case: Case, seed: int) -> None:
    objectives = (parse_objective(case.objective),)
    order = SweepOrder("s", "b", Target("http://b/v1", "m"), objectives, Workload(), Bounds(max_level=128), seed=seed)
    record, _, _ = run_virtual(sweep_beside(order, PARAMETER_SETS[case.engine], case.users))
    harm = record.harm
    print(
        f"\n{case.engine:13} {case.users} users: {harm.live_exceedances:3} of {harm.live_requests:6} live requests "
        f"late, {harm.live_overload_s:4.1f} s, {harm.preemptions:3} preemptions; {record.outcome} {record.capacity}"
    )
    assert record.aborted is None
    if not case.users:
        assert (harm.live_requests, harm.live_exceedances, harm.preemptions) == (0, 0, 0)
