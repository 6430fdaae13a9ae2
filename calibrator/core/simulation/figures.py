"""The table of a simulation: what the search costs, how accurate it is, and how much harm it does.

Figures carry 95 % intervals: means by the central limit, shares by Clopper-Pearson, quantiles by order statistics. The
error that the product guarantees (DESIGN section 3) is the one per capacity, and it is measured here.
`requests_bound_mean` is a lower bound for any policy (`core.simulation.runs.bound_requests`), a property of the
backends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from calibrator.core.simulation.backends import CORE, Family
from calibrator.core.simulation.runs import OBJECTIVES, CostLedger, Result
from calibrator.core.stats.quantile import quantile_estimate, ratio_interval


@dataclass(frozen=True, slots=True)
class Figure:
    value: float
    low: float  # 95 % interval
    high: float


def figures(results: Sequence[Result]) -> dict[str, Figure]:
    """The table of one policy over one group of backends."""
    ledger = [result.ledger for result in results]
    sent = sum(each.requests for each in ledger)
    return {
        "requests_mean": _mean([each.requests for each in ledger]),
        "minutes_median": _quantile([each.wall_s / 60.0 for each in ledger], 0.5),
        "error_median_ratio": _quantile([result.error_ratio for result in results], 0.5),
        "within_15pct_ratio": _share([result.is_near for result in results]),
        "unsafe_ratio": _share([result.is_unsafe for result in results]),
        "over_twice_allowance_ratio": _share(
            [result.exceedance_ratio > 2.0 * OBJECTIVES[0].allowance for result in results]
        ),
        "requests_above_ratio": _ratio(ledger, sent),
        "seconds_above_mean": _mean([each.above_s for each in ledger]),
        "seconds_hard_mean": _mean([each.hard_s for each in ledger]),
        "highest_probed_p95": _quantile(
            [result.ledger.highest_level / max(result.true_capacity, 1) for result in results], 0.95
        ),
        "certified_ratio": _share([result.is_certified for result in results]),
        "requests_bound_mean": _mean([result.bound_requests for result in results]),
    }


def groups(results: Sequence[Result], families: Sequence[Family]) -> Iterator[tuple[str, list[Result]]]:
    """Core families and all families apart; only the first where nothing else was to be drawn."""
    core = [result for result in results if result.family in CORE]
    if core:
        yield "core", core
    if not set(families) <= set(CORE):
        yield "all", list(results)


def _mean(values: Sequence[float]) -> Figure:
    mean = float(np.mean(values))
    margin = 1.96 * float(np.std(values)) / math.sqrt(len(values))
    return Figure(mean, mean - margin, mean + margin)


def _ratio(ledger: Sequence[CostLedger], sent: int) -> Figure:
    """Requests above / requests, of all sweeps together: the ratio estimator's interval."""
    ratio = sum(each.requests_above for each in ledger) / sent
    rest = [each.requests_above - ratio * each.requests for each in ledger]
    margin = 1.96 * float(np.std(rest)) * math.sqrt(len(ledger)) / sent
    return Figure(ratio, ratio - margin, ratio + margin)


def _share(values: Sequence[bool]) -> Figure:
    low, high = ratio_interval(sum(values), len(values), len(values))
    return Figure(sum(values) / len(values), low, high)


def _quantile(values: Sequence[float], quantile: float) -> Figure:
    estimate = quantile_estimate(values, quantile)
    if estimate is None:  # too few backends
        return Figure(float(np.quantile(values, quantile)), min(values), max(values))
    return Figure(estimate.value_s, estimate.low_s, max(values) if estimate.high_s is None else estimate.high_s)
