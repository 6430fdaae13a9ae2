"""What the curve says, in numbers and in plain words.

**Knee** (onset of batch interference). Operational analysis (Denning & Buzen 1978): a closed system with residence R
when alone and throughput X at most has asymptotes N / R (nobody waits) and X (saturated); they cross at

    N_knee = X * R        below: requests hardly disturb each other; above: residence grows in proportion to N

R comes from the lowest level by Little's law, R = N / throughput, which is the mean that belongs here whatever the mix;
X is the highest throughput of all levels. Where the crossing lies beyond `REACHED_RATIO` of the highest level measured,
throughput still grew almost in proportion: the knee was not reached, and X would be a guess.

**Early slope.** Elasticity of the objective's tail at low concurrency, d ln P / d ln N between the lowest level and the
next that is at least a factor 1.5 above it (P99 if n supports it at both, else P90):

| elasticity | class | meaning |
|---|---|---|
| below 0.3 | gentle | short prompts dominate; there is room below the knee |
| 0.3 to 0.7 | moderate | |
| above 0.7 | steep | long prompts stall each other early: expect batch interference soon |

The quantiles have intervals, hence the elasticity has one; where it reaches from gentle to steep nothing is said.

**Limit.** What gives first, read at the lowest level that failed, from what the requests ran into and the engine's own
gauges. KV memory comes before slots and these before compute, because each makes the next one queue:

| seen | limit |
|---|---|
| more than 1 % refused by a quota per time | quota |
| more than 1 % refused (a status, an error event) | refusals |
| more than 1 % of other failures | failures |
| preemptions, or KV memory above 90 % | kv_memory |
| requests wait while no more run at higher levels | slots |
| tokens come late (itl, tpot; e2e that grew after the first token) | decode |
| the first token comes late though nothing waits for a slot (ttft, ttfc; e2e that grew before it) | prefill |
| likewise, but the engine shows no gauges | unknown: slots or prefill |

Where no level failed, the first three rows are still read, at the highest level that they fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from calibrator.core.records.history import Capacity
from calibrator.core.records.objective import Metric, Objective
from calibrator.core.records.sample import FailureKind
from calibrator.core.records.sweep import LevelReport, VerdictKind
from calibrator.core.stats.quantile import LatencySummary, QuantileEstimate

REACHED_RATIO = 0.9
GENTLE_BELOW = 0.3
STEEP_ABOVE = 0.7
APART_RATIO = 1.5
KV_FULL_RATIO = 0.9
FAILED_RATIO = 0.01
WAITING_RATIO = 0.05  # of the level; less is a request between arrival and its first step
RUNNING_GREW_RATIO = 1.1
GOODPUT_FELL_RATIO = 0.9  # less of a fall is noise
REFUSED = (FailureKind.STATUS.value, FailureKind.ERROR_EVENT.value)


class Slope(StrEnum):
    GENTLE = "gentle"
    MODERATE = "moderate"
    STEEP = "steep"


class Limit(StrEnum):
    """What ends the curve."""

    QUOTA = "quota"
    REFUSALS = "refusals"
    FAILURES = "failures"
    KV_MEMORY = "kv_memory"
    SLOTS = "slots"
    PREFILL = "prefill"
    DECODE = "decode"
    UNKNOWN = "unknown"
    NONE = "none"  # nothing failed


_SLOPE_WORDS = {
    Slope.GENTLE: "latency grows slowly with concurrency: short prompts dominate, there is room below the knee",
    Slope.MODERATE: "latency grows moderately with concurrency",
    Slope.STEEP: "latency grows almost in proportion to concurrency: long prompts stall each other early",
}
_LIMIT_WORDS = {
    Limit.QUOTA: "a quota per time refuses requests; the engine's own limit is not seen",
    Limit.REFUSALS: "the engine refuses requests",
    Limit.FAILURES: "requests fail: streams break, stall or time out",
    Limit.KV_MEMORY: "KV-cache memory is full: requests wait for it or are preempted",
    Limit.SLOTS: "all request slots are taken: further requests queue",
    Limit.PREFILL: "prefill compute: prompts wait for each other although slots are free",
    Limit.DECODE: "decode steps slow down as the batch grows",
    Limit.UNKNOWN: "slots or prefill compute; the engine shows no metrics that would tell",
    Limit.NONE: "nothing yet: no level failed",
}


@dataclass(frozen=True, slots=True)
class CurveInsight:
    """Reading of one curve. What the measured levels cannot tell is None."""

    knee_concurrency: float | None
    early_slope: float | None
    slope: Slope | None
    goodput_max_concurrency: int
    goodput_max_per_second: float
    limit: Limit
    words: tuple[str, ...]


def read_curve(
    levels: Sequence[LevelReport], objectives: Sequence[Objective], capacity: Capacity | None
) -> CurveInsight | None:
    """`levels` ascending, as in a SweepRecord; None if no level has a counted request."""
    seen = [level for level in levels if level.n > 0]
    if not seen:
        return None
    knee = _knee(seen)
    early, slope = _early_slope(seen, objectives[0].metric)
    best = max(seen, key=lambda level: level.goodput_per_second)
    insight = CurveInsight(
        knee_concurrency=knee,
        early_slope=early,
        slope=slope,
        goodput_max_concurrency=best.concurrency,
        goodput_max_per_second=best.goodput_per_second,
        limit=_limit(levels, objectives),  # a level may fail in its warm-up, before anything is counted
        words=(),
    )
    is_waste = capacity is not None and _is_waste_above(best, seen, capacity)
    moving = [level for level in seen if level.requests_per_second > 0]
    highest = moving[-1].concurrency if len(moving) > 1 else None
    return replace(insight, words=tuple(_words(insight, highest, is_waste=is_waste)))


def _words(insight: CurveInsight, highest: int | None, *, is_waste: bool) -> Iterator[str]:
    """`highest`: of the levels that can be compared; None if there are not two."""
    if insight.knee_concurrency is not None:
        yield f"Batch interference sets in at about {max(1.0, insight.knee_concurrency):.0f} in flight."
    elif highest is not None:
        yield f"Up to {highest} in flight throughput still grows with concurrency."
    if insight.slope is not None:
        yield f"{_SLOPE_WORDS[insight.slope].capitalize()}."
    yield (
        f"Goodput is highest at {insight.goodput_max_concurrency} in flight ({insight.goodput_max_per_second:.1f}/s)."
    )
    if is_waste:
        yield "Above that level more concurrency costs latency and adds no useful work."
    yield f"What limits: {_LIMIT_WORDS[insight.limit]}."


def _is_waste_above(best: LevelReport, levels: Sequence[LevelReport], capacity: Capacity) -> bool:
    """Goodput has fallen at a level that still meets the SLA."""
    allowed = [level for level in levels if best.concurrency < level.concurrency <= capacity.estimate]
    return bool(allowed) and allowed[-1].goodput_per_second < GOODPUT_FELL_RATIO * best.goodput_per_second


# ------------------------------------------------------------------------------------------------------------- figures
def _knee(levels: Sequence[LevelReport]) -> float | None:
    moving = [level for level in levels if level.requests_per_second > 0 and level.achieved_concurrency > 0]
    if len(moving) < 2:
        return None
    residence_s = moving[0].achieved_concurrency / moving[0].requests_per_second
    knee = residence_s * max(level.requests_per_second for level in moving)
    return knee if knee < REACHED_RATIO * moving[-1].concurrency else None


def _early_slope(levels: Sequence[LevelReport], metric: Metric) -> tuple[float | None, Slope | None]:
    for pick in ("p99", "p90"):
        points = [(level.concurrency, tail) for level in levels if (tail := _tail(level, metric, pick)) is not None]
        far = next((point for point in points[1:] if point[0] >= APART_RATIO * points[0][0]), None)
        if far is not None:
            return _elasticity(points[0], far)
    return None, None


def _elasticity(
    near: tuple[int, QuantileEstimate], far: tuple[int, QuantileEstimate]
) -> tuple[float | None, Slope | None]:
    span, (low, high) = math.log(far[0] / near[0]), (near[1], far[1])
    middle = math.log(high.value_s / low.value_s) / span
    most = math.inf if high.high_s is None or low.low_s <= 0 else math.log(high.high_s / low.low_s) / span
    least = -math.inf if low.high_s is None or high.low_s <= 0 else math.log(high.low_s / low.high_s) / span
    if least < GENTLE_BELOW and most > STEEP_ABOVE:
        return middle, None
    if middle < GENTLE_BELOW:
        return middle, Slope.GENTLE
    return middle, Slope.STEEP if middle > STEEP_ABOVE else Slope.MODERATE


def _tail(level: LevelReport, metric: Metric, pick: str) -> QuantileEstimate | None:
    summary: LatencySummary = getattr(level, metric.value)
    estimate: QuantileEstimate | None = getattr(summary, pick)
    return estimate if estimate is not None and 0.0 < estimate.value_s < math.inf else None


# --------------------------------------------------------------------------------------------------------------- limit
def _limit(levels: Sequence[LevelReport], objectives: Sequence[Objective]) -> Limit:
    failed = next((level for level in levels if level.verdict.kind is VerdictKind.EXCEEDED), None)
    if failed is None:
        broken = (_failure_limit(level) for level in reversed(levels))
        return next((limit for limit in broken if limit is not None), Limit.NONE)
    if (limit := _failure_limit(failed)) is not None:
        return limit
    server = failed.server
    if (server.preemptions or 0) > 0 or (server.kv_usage_ratio or 0) > KV_FULL_RATIO:
        return Limit.KV_MEMORY
    return Limit.SLOTS if _slots_are_taken(levels, failed) else _compute_limit(levels[0], failed, objectives)


def _failure_limit(level: LevelReport) -> Limit | None:
    """None: so few requests failed that something else is the matter."""
    least = FAILED_RATIO * level.n
    failed = dict(level.errors)
    if sum(failed.values()) <= least:
        return None
    if failed.get(FailureKind.QUOTA.value, 0) > least:
        return Limit.QUOTA
    return Limit.REFUSALS if sum(failed.get(kind, 0) for kind in REFUSED) > least else Limit.FAILURES


def _compute_limit(low: LevelReport, failed: LevelReport, objectives: Sequence[Objective]) -> Limit:
    exceeded = {part.objective for part in failed.verdict.objectives if part.kind is VerdictKind.EXCEEDED}
    late = {objective.metric for objective in objectives if str(objective) in exceeded}
    if late and late <= {Metric.ITL, Metric.TPOT}:
        return Limit.DECODE
    if late == {Metric.E2E} and not _grew_before_the_first_token(low, failed):
        return Limit.DECODE
    return Limit.UNKNOWN if failed.server.waiting_requests is None else Limit.PREFILL


def _slots_are_taken(levels: Sequence[LevelReport], failed: LevelReport) -> bool:
    """Requests wait, and no more of them run where more are in flight."""
    queued = [level for level in levels if (level.server.waiting_requests or 0) > WAITING_RATIO * level.concurrency]
    if failed not in queued:
        return False
    running = [level.server.running_requests for level in queued if level.server.running_requests is not None]
    return len(running) < 2 or running[-1] <= RUNNING_GREW_RATIO * running[0]


def _grew_before_the_first_token(low: LevelReport, failed: LevelReport) -> bool:
    """Of the growth of the whole answer's median, at least half; also where first tokens are not seen."""
    medians = (low.ttft.p50, failed.ttft.p50, low.e2e.p50, failed.e2e.p50)
    first_low, first_high, whole_low, whole_high = (None if one is None else one.value_s for one in medians)
    if first_low is None or first_high is None or whole_low is None or whole_high is None:
        return True
    return first_high - first_low >= 0.5 * (whole_high - whole_low)
