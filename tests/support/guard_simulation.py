"""Many copies of the guard's change test at once, fed by simulated traffic on a clock of blocks.

The test itself comes from `calibrator.core.live.change_test`, block by block as tables over (requests, exceedances);
only the recursion is repeated here, as an array operation, and `tests/core/live/test_change_test.py` compares it with
the original.

Traffic: requests are Poisson; a share of them exceeds the limit, in clusters (stalls) of geometric size with mean
`cluster`, each within one block or, by chance, across two. Latencies are scaled copies of one shape, so the exceedance
of the bound follows from that of the limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from calibrator.core.live.change_test import (
    RATIOS,
    GuardPolicy,
    alarm_at_s,
    least_exceeding,
    likelihood_ratio,
    null_ratio,
)
from calibrator.core.records.objective import parse_objective

OBJECTIVE = parse_objective("ttft p99 <= 1s")
STEP_S = 3.0  # a block: three looks
WEEK_S = 604_800.0
SPLIT_RATIO = 1.0 / 3.0  # of the stalls fall on a block's border
CHUNK = 512

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Traffic:
    """`exceeding`: share of the requests above the bound."""

    per_second: float
    exceeding: float
    cluster: float = 1.0

    def blocks(self, rng: np.random.Generator, steps: int, copies: int) -> tuple[Array, Array]:
        """Requests and exceedances, each (steps, copies)."""
        expected = self.per_second * STEP_S
        if self.cluster == 1.0:
            k = rng.poisson(expected * self.exceeding, (steps, copies))
        else:
            stalls = rng.poisson(expected * self.exceeding / self.cluster, (steps + 1, copies))
            hit = stalls + rng.negative_binomial(np.maximum(stalls, 1), 1.0 / self.cluster) * (stalls > 0)
            late = rng.binomial(hit, SPLIT_RATIO / 2.0)
            k = hit[1:] - late[1:] + late[:-1]
        return k + rng.poisson(expected * (1.0 - self.exceeding), (steps, copies)), k


class ManyTests:
    """Copies of `ChangeTest` at one null and one rate of traffic."""

    def __init__(self, p0: float, most_requests: int, copies: int, policy: GuardPolicy | None = None) -> None:
        numbers = range(1, most_requests + 1)
        self._needed = np.array([[0] + [least_exceeding(n, p0, ratio) for n in numbers] for ratio in RATIOS])
        self._if_bit, self._if_none = (
            np.array([[1.0] + [likelihood_ratio(n, k * n, p0, ratio) for n in numbers] for ratio in RATIOS])
            for k in (1, 0)
        )
        self._alarm_s = alarm_at_s(policy or GuardPolicy(), 1)
        self.statistics_s = np.zeros((len(RATIOS), copies))

    def step(self, n: Array, k: Array) -> Array:
        """One block later: which copies alarm; those begin anew."""
        n = np.minimum(n, self._needed.shape[1] - 1)
        factor = np.where(k >= self._needed[:, n], self._if_bit[:, n], self._if_none[:, n])
        self.statistics_s = np.where(n > 0, (self.statistics_s + STEP_S) * factor, self.statistics_s)
        alarms: Array = self.statistics_s.mean(axis=0) >= self._alarm_s
        self.statistics_s[:, alarms] = 0.0
        return alarms


def bound_exceedance(shape: str, bound_ratio: float, at_limit: float) -> float:
    """Exceedance of the bound where that of the limit is `at_limit`. Shape: 'exponential' or a lognormal's log-sd."""
    if shape == "exponential":
        return math.pow(at_limit, bound_ratio)
    return float(norm.sf(norm.isf(at_limit) + math.log(bound_ratio) / float(shape)))


def doubled(shape: str, bound_ratio: float) -> float:
    """Exceedance of the bound after a P99 at the limit has doubled, the shape kept."""
    return bound_exceedance(shape, bound_ratio / 2.0, 1.0 - OBJECTIVE.quantile)


def most_requests(per_second: float, cluster: float = 1.0) -> int:
    expected = per_second * STEP_S
    return math.ceil(expected + 10.0 * math.sqrt(expected * cluster) + 20.0 * cluster)


def delays_s(shape: str, bound_ratio: float, per_second: float, *, copies: int, seed: int) -> Array:
    """From the doubling to the alarm, after a quarter of an hour at half the allowance; inf: none within 20 min."""
    rng = np.random.default_rng(seed)
    tests = ManyTests(null_ratio(OBJECTIVE, bound_ratio), most_requests(per_second), copies)
    quiet = Traffic(per_second, bound_exceedance(shape, bound_ratio, OBJECTIVE.allowance / 2.0))
    for n, k in zip(*quiet.blocks(rng, round(900.0 / STEP_S), copies), strict=True):
        tests.step(n, k)
    found = np.full(copies, np.inf)
    broken = Traffic(per_second, doubled(shape, bound_ratio))
    for block, (n, k) in enumerate(zip(*broken.blocks(rng, round(1200.0 / STEP_S), copies), strict=True), start=1):
        found = np.where(tests.step(n, k) & np.isinf(found), block * STEP_S, found)
    return found


def false_alarms(
    shape: str, bound_ratio: float, per_second: float, *, weeks: float, copies: int, seed: int, cluster: float = 1.0
) -> int:
    """Alarms of all copies together over so many weeks each, at the upper end of the zone."""
    rng = np.random.default_rng(seed)
    tests = ManyTests(null_ratio(OBJECTIVE, bound_ratio), most_requests(per_second, cluster), copies)
    traffic = Traffic(per_second, bound_exceedance(shape, bound_ratio, 2.0 * OBJECTIVE.allowance), cluster)
    left, alarms = round(weeks * WEEK_S / STEP_S), 0
    while left > 0:
        for n, k in zip(*traffic.blocks(rng, min(CHUNK, left), copies), strict=True):
            alarms += int(tests.step(n, k).sum())
        left -= CHUNK
    return alarms
