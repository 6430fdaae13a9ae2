"""The load generator of a sweep: one event loop for a few streams, worker processes beyond that."""

from __future__ import annotations

import math
from functools import partial

import structlog

from calibrator.backends.openai import OpenAIBackend
from calibrator.clock import SystemClock
from calibrator.core.generator_rating import SelfTest, too_slow
from calibrator.core.records.objective import Objective, gap_quantiles
from calibrator.core.report.spans import ProbeTrace
from calibrator.core.workload.classes import PromptFactory
from calibrator.errors import GeneratorError
from calibrator.load.closed_loop import ClosedLoop
from calibrator.load.pool import USERS_PER_WORKER, Launcher, WorkerPool
from calibrator.load.processes import LocalLauncher, usable_cores
from calibrator.load.ray_workers import RayLauncher, require_ray
from calibrator.ports.backend import BackendFacts
from calibrator.ports.load import LoadGenerator, LoadPlan
from calibrator.ports.sweeps import SweepOrder
from calibrator.wiring.selftest import run_selftest

STALL_LIMITS = 20.0  # a stream without progress for this many of the largest limit is stalled ...
STALL_MIN_S, STALL_MAX_S = 10.0, 120.0  # ... within these bounds
NODE_TEST_S = 1.5
TOTAL_STALLS = 10.0  # and a request is given up after this many stall timeouts


def stall_timeout_s(objectives: tuple[Objective, ...]) -> float:
    """Derived from the SLA: long after the violation is certain, the slot is still worth something."""
    return min(STALL_MAX_S, max(STALL_MIN_S, STALL_LIMITS * max(objective.limit_s for objective in objectives)))


def generator(order: SweepOrder, facts: BackendFacts, plan: LoadPlan) -> LoadGenerator:
    """As many workers as the highest level may need, and on one machine at most one a core."""
    highest = max(order.levels or (order.bounds.max_level,))
    workers = math.ceil(highest / USERS_PER_WORKER)
    if plan.most_workers is not None:
        workers = min(workers, plan.most_workers)
    if plan.kind == "ray":
        return worker_pool(order, facts, workers, ray_launcher(plan, order))
    workers = min(workers, usable_cores())
    return closed_loop(order, facts, 0, 1) if workers == 1 else worker_pool(order, facts, workers, LocalLauncher())


def require_parts(plan: LoadPlan) -> None:
    """Raises ConfigurationError if the plan needs a part that is not installed."""
    if plan.kind == "ray":
        require_ray()


def worker_pool(order: SweepOrder, facts: BackendFacts, workers: int, launcher: Launcher) -> WorkerPool:
    expected_users = max(order.levels or (order.bounds.min_level,))
    return WorkerPool(partial(closed_loop, order, facts), launcher, most_workers=workers, expected_users=expected_users)


def ray_launcher(plan: LoadPlan, order: SweepOrder) -> Launcher:
    """The self-test of a node is that of `calibrator selftest`, at the streams of one worker."""
    judge = partial(refuse_slow, min(objective.limit_s for objective in order.objectives))
    return RayLauncher(plan.ray_address, place_s=plan.ray_start_s, node_test=node_selftest, judge=judge)


def refuse_slow(tightest_limit_s: float, node: str, result: SelfTest) -> None:
    """Say what a node can do. Raises GeneratorError if that is too little for the objectives."""
    level = result.levels[0]
    structlog.get_logger().info(
        "node tested", node=node, events_per_s=result.events_per_s, added_latency_p99_s=level.added_latency_p99_s
    )
    if reason := too_slow(result, tightest_limit_s):
        raise GeneratorError(
            f"Node {node} is too slow to measure with: {reason}.",
            "Give its pod whole cores of its own, or take it out of the cluster.",
        )


async def node_selftest() -> SelfTest:
    """On the node itself: one worker process against a server on its loopback."""
    return await run_selftest((USERS_PER_WORKER,), NODE_TEST_S, one_worker)


def one_worker(order: SweepOrder, facts: BackendFacts) -> LoadGenerator:
    """In a process of its own, so that whoever runs the test disturbs it less, and is not disturbed by it."""
    return worker_pool(order, facts, 1, LocalLauncher())


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
        trace=ProbeTrace(order.sweep_id, order.sampled_probes_ratio),
        adjustments=facts.adjustments,
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
