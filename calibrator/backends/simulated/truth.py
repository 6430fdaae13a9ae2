"""The true capacity of a simulated engine, by brute count in virtual time; the judge of what a sweep finds.

Question: the highest level at which every objective's true exceedance ratio is within its allowance, such that no lower
level that was looked at fails. Method: double, bisect with some thousand requests a level, then settle the last pair
(capacity, capacity + 1) with at least `BOUNDARY_REQUESTS` together, walking on if the first guess was wrong. Standard
error of a ratio p from n requests: sqrt(p (1 - p) / n), 0.04 % for 1 % from 50,000.

This file must not know how sweeps search or judge (checked by import-linter): an error shared with them would hide.
Faults of the parameters are included; those switched on later, over HTTP, are not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from calibrator.backends.simulated.parameters import EngineParameters, Faults, Refusal
from calibrator.backends.simulated.virtual_loop import VirtualRequest, run_level
from calibrator.core.records.objective import Metric, Objective
from calibrator.core.workload.classes import Workload, WorkloadClass

BOUNDARY_REQUESTS = 100_000
COARSE_EXCEEDANCES = 40  # expected at the allowance, while bisecting
MAX_LEVEL = 1024


@dataclass(frozen=True, slots=True)
class TruthLevel:
    """One level, counted out. One exceedance ratio per objective; a failed request exceeds all."""

    level: int
    requests: int
    exceedance_ratios: tuple[float, ...]
    holds: bool


@dataclass(frozen=True, slots=True)
class Truth:
    """capacity 0: not even one request at a time. `at_max`: it may be higher."""

    capacity: int
    at_max: bool
    levels: tuple[TruthLevel, ...]  # ascending; the most precise count of each


def true_capacity(
    parameters: EngineParameters,
    workload: Workload,
    objectives: Sequence[Objective],
    *,
    max_level: int = MAX_LEVEL,
    boundary_requests: int = BOUNDARY_REQUESTS,
    seed: int = 1,
) -> Truth:
    """`objectives` must not be empty. Takes seconds."""
    smallest = min(objective.allowance for objective in objectives)
    coarse = round(COARSE_EXCEEDANCES / smallest)
    fine = max(boundary_requests // 2, 10 * coarse)
    levels: dict[int, TruthLevel] = {}

    def holds(level: int, count: int) -> bool:
        known = levels.get(level)
        if known is None or known.requests < count:
            levels[level] = count_level(parameters, workload, objectives, level, count, seed=seed)
        return levels[level].holds

    capacity = _bisect(lambda level: holds(level, coarse), max_level)
    while capacity > 0 and not holds(capacity, fine):
        capacity -= 1
    while capacity < max_level and holds(capacity + 1, fine):
        capacity += 1
    ordered = tuple(levels[level] for level in sorted(levels))
    return Truth(capacity, capacity == max_level, ordered)


def count_level(
    parameters: EngineParameters,
    workload: Workload,
    objectives: Sequence[Objective],
    level: int,
    count: int,
    *,
    seed: int = 1,
) -> TruthLevel:
    """Exceedances of `count` requests at one level."""
    judged, exceeded = [0] * len(objectives), [0] * len(objectives)

    def note(request: VirtualRequest) -> None:
        for index, objective in enumerate(objectives):
            if objective.applies_to(request.prompt_tokens) and (request.stream or objective.metric is Metric.E2E):
                judged[index] += 1
                exceeded[index] += request.failed or _latency_s(request, objective) > objective.limit_s

    with_gaps = any(objective.metric is Metric.ITL for objective in objectives)
    run_level(parameters, workload, level, count, note, seed=seed, with_gaps=with_gaps)
    ratios = tuple(bad / max(1, n) for bad, n in zip(exceeded, judged, strict=True))
    within = (ratio <= objective.allowance for ratio, objective in zip(ratios, objectives, strict=True))
    return TruthLevel(level, count, ratios, all(within))


def _latency_s(request: VirtualRequest, objective: Objective) -> float:
    match objective.metric:
        case Metric.TTFT | Metric.TTFC:  # the simulated engine makes content only
            return request.ttft_s
        case Metric.ITL:
            return request.gap_s(objective.quantile)
        case Metric.TPOT:
            return request.tpot_s
        case Metric.E2E:
            return request.e2e_s


def _bisect(holds: Callable[[int], bool], max_level: int) -> int:
    low, high = 0, 1
    while high <= max_level and holds(high):
        low, high = high, 2 * high
    high = min(high, max_level + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


# ------------------------------------------------------------------------------------------- in a process of its own
@dataclass(frozen=True, slots=True)
class TruthQuestion:
    """All of `true_capacity`, to be sent to another process."""

    parameters: EngineParameters
    workload: Workload
    objectives: tuple[Objective, ...]
    max_level: int = MAX_LEVEL

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def loads(text: str) -> TruthQuestion:
        raw = json.loads(text)
        faults = raw["parameters"].pop("faults")
        refusal = faults.pop("refusal")
        own_refusal = Refusal(raw["parameters"].pop("refusal"))
        return TruthQuestion(
            EngineParameters(
                **raw["parameters"],
                refusal=own_refusal,
                faults=Faults(**faults, refusal=None if refusal is None else Refusal(refusal)),
            ),
            Workload(
                tuple(
                    WorkloadClass(**{**cls, "sizes": tuple(tuple(size) for size in cls["sizes"])})
                    for cls in raw["workload"]["classes"]
                ),
                raw["workload"]["prefix_reuse_ratio"],
            ),
            tuple(Objective(**{**one, "metric": Metric(one["metric"])}) for one in raw["objectives"]),
            raw["max_level"],
        )

    def answer(self) -> Truth:
        return true_capacity(self.parameters, self.workload, self.objectives, max_level=self.max_level)
