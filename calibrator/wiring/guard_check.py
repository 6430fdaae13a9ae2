"""What the guard will count, before it runs: the bucket bound of each objective, from one scrape of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from calibrator.core.live.change_test import FAR_BOUND_RATIO, histogram_of, next_bound_s
from calibrator.core.records.objective import Objective, format_duration
from calibrator.core.records.server_load import ServerLoad
from calibrator.ports.sweeps import BackendPlan
from calibrator.telemetry.scrape import HttpTelemetry


async def guard_lines(plans: Sequence[BackendPlan]) -> list[str]:
    """In the order of the plans why a metrics page cannot be had, and a line for each objective.

    Engines are asked all at once, for a second.
    """
    scrapes = await asyncio.gather(*(_scrape(plan) for plan in plans))
    lines = []
    for plan, (load, problem) in zip(plans, scrapes, strict=True):
        if problem:
            lines.append(f"{plan.name}: {problem}")
        if plan.guard.enabled:
            lines += [f"{plan.name}: {guard_line(objective, load)}" for objective in plan.objectives]
        else:
            lines.append(f"{plan.name}: the guard is off")
    return lines


async def _scrape(plan: BackendPlan) -> tuple[ServerLoad | None, str]:
    """What the engine shows, or why it shows nothing: a sweep needs its page, too."""
    url = plan.replicas.urls[0] if plan.replicas.urls else plan.target.url
    telemetry = HttpTelemetry(replace(plan.target, url=url))
    try:
        return await telemetry.scrape(), telemetry.problem
    finally:
        await telemetry.close()


def guard_line(objective: Objective, load: ServerLoad | None) -> str:
    if objective.max_prompt_tokens is not None:
        return f"'{objective}' is not watched: engines do not count short prompts apart"
    if load is None:
        return (
            f"'{objective}' is watched above the next bucket bound at or above its limit, chosen at run time: the "
            "engine shows no metrics now"
        )
    histogram = histogram_of(load, objective.metric)
    if histogram is None:
        return f"'{objective}' is not watched by latency: {load.engine} shows no histogram of {objective.metric}"
    bound_s = next_bound_s(objective, histogram.bounds)
    if bound_s is None:
        return f"'{objective}' is not watched: its limit is above the last bound of the engine's histogram"
    ratio = bound_s / objective.limit_s
    is_far = ratio > FAR_BOUND_RATIO
    far = "; so far off, a doubled P99 shows late: better a limit at or just below a bound" if is_far else ""
    return (
        f"'{objective}' is watched above {format_duration(bound_s)}, the engine's next bucket bound "
        f"({ratio:.3g} x the limit){far}"
    )
