"""What this machine can measure, found once while the service already answers (`load.selftest`).

About two seconds of one core, in processes of their own, so that polls are not disturbed. It may meet a first sweep:
CPU per event, which the rating rests on, hardly minds, and the sweep's own audit sees to the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import structlog

from calibrator.core.generator_rating import STREAM_EVENTS_PER_S, SelfTest, too_slow
from calibrator.errors import CalibratorError
from calibrator.ports.sweeps import BackendPlan
from calibrator.wiring.generator import node_selftest


async def rate_generator(
    plans: Sequence[BackendPlan], report: Callable[[float | None], None], *, measures_here: bool
) -> None:
    """Log the result, report the events a second, and warn of sweeps that this machine cannot measure.

    `measures_here` False: other machines do; each is tested before its first worker.
    """
    log = structlog.get_logger()
    try:
        result = await node_selftest()
    except CalibratorError as error:
        log.warning("the self-test of the load generator failed", reason=str(error))
        return
    report(result.events_per_s)
    log.info(
        "load generator tested",
        cores=result.cores,
        events_per_s=None if result.events_per_s is None else round(result.events_per_s),
        streams=result.streams,
        added_latency_p99_s=result.levels[0].added_latency_p99_s,
    )
    for plan in plans if measures_here else ():
        for reason in unmeasurable(plan, result):
            log.warning("this machine cannot measure all that is asked for", backend=plan.name, reason=reason)


def unmeasurable(plan: BackendPlan, result: SelfTest) -> Iterator[str]:
    """What a sweep of this backend may ask of the machine in vain, and the remedy."""
    highest, streams = plan.bounds.max_level, result.streams
    if streams is not None and highest > streams:
        yield (
            f"bounds.max is {highest}, {result.cores} cores measure about {streams} streams of "
            f"{STREAM_EVENTS_PER_S:g} events/s: levels above may end as inconclusive. Lower bounds.max, give more "
            "cores, or load.kind: ray."
        )
    if reason := too_slow(result, min(objective.limit_s for objective in plan.objectives)):
        yield f"{reason}: levels may end as inconclusive. Give the service whole cores of its own."
