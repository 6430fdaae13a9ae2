"""The load generator of a sweep: one event loop for a few streams, worker processes beyond that."""

from __future__ import annotations

import math
from functools import partial

from calibrator.backends.openai import OpenAIBackend
from calibrator.clock import SystemClock
from calibrator.core.objective import Objective, gap_quantiles
from calibrator.core.workload import PromptFactory
from calibrator.load.closed_loop import ClosedLoop
from calibrator.load.processes import USERS_PER_WORKER, WorkerPool, usable_cores
from calibrator.ports import BackendFacts, LoadGenerator, SweepOrder

STALL_LIMITS = 20.0  # a stream without progress for this many of the largest limit is stalled ...
STALL_MIN_S, STALL_MAX_S = 10.0, 120.0  # ... within these bounds
TOTAL_STALLS = 10.0  # and a request is given up after this many stall timeouts


def stall_timeout_s(objectives: tuple[Objective, ...]) -> float:
    """Derived from the SLA: long after the violation is certain, the slot is still worth something."""
    return min(STALL_MAX_S, max(STALL_MIN_S, STALL_LIMITS * max(objective.limit_s for objective in objectives)))


def generator(order: SweepOrder, facts: BackendFacts) -> LoadGenerator:
    """As many processes as the highest level may need and the machine has cores."""
    highest = max(order.levels or (order.bounds.max_level,))
    workers = min(usable_cores(), math.ceil(highest / USERS_PER_WORKER))
    if workers == 1:
        return closed_loop(order, facts, 0, 1)
    expected_users = max(order.levels or (order.bounds.min_level,))
    return WorkerPool(partial(closed_loop, order, facts), most_workers=workers, expected_users=expected_users)


def closed_loop(order: SweepOrder, facts: BackendFacts, index: int, step: int) -> ClosedLoop:
    """One process's part of the generator (`messages.WorkerFactory`): its requests are index + k * step."""
    clock = SystemClock()
    stall_s = stall_timeout_s(order.objectives)
    backend = OpenAIBackend(
        order.target,
        now=clock.monotonic,
        forces_length=facts.forces_length,
        stall_timeout_s=stall_s,
        total_timeout_s=TOTAL_STALLS * stall_s,
    )
    prompts = PromptFactory(
        order.workload,
        facts.token_scale,
        order.seed + index,
        gap_quantiles(order.objectives),
        first_id=index,
        id_step=step,
        salt=order.sweep_id,
    )
    return ClosedLoop(backend, prompts, order.objectives, clock)
