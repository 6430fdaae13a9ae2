"""What the curve says, in numbers and in plain words.

**Knee** (onset of batch interference). Operational analysis (Denning & Buzen 1978): with minimum residence R and
maximum throughput X, the asymptotes of a closed system cross at

    N_knee = X * R        below: requests hardly disturb each other; above: residence grows in proportion to N

R is the median residence at the lowest level measured, X the highest throughput of all levels.

**Early slope.** Elasticity of the objective's tail at low concurrency, d ln P / d ln N between the two lowest levels
that are at least a factor 1.5 apart (P99 where n supports it, else P90):

| elasticity | class | meaning |
|---|---|---|
| below 0.3 | gentle | short prompts dominate; there is room below the knee |
| 0.3 to 0.7 | moderate | |
| above 0.7 | steep | long prompts stall each other early: expect batch interference soon |

**Limit.** What gives first, read from the engine's own gauges at the lowest level that failed: KV memory before slots
before prefill or decode, because each of these makes the next one queue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from calibrator.core.measurement import Capacity
from calibrator.core.objective import Metric, Objective
from calibrator.core.sweep_record import LatencySummary, LevelReport, VerdictKind

GENTLE_BELOW = 0.3
STEEP_ABOVE = 0.7
APART_RATIO = 1.5
KV_FULL_RATIO = 0.9
REFUSED_RATIO = 0.01


class Slope(StrEnum):
    GENTLE = "gentle"
    MODERATE = "moderate"
    STEEP = "steep"


class Limit(StrEnum):
    """The resource that ends the curve."""

    REFUSALS = "refusals"
    KV_MEMORY = "kv_memory"
    SLOTS = "slots"
    PREFILL = "prefill"
    DECODE = "decode"
    NONE = "none"  # nothing failed


_SLOPE_WORDS = {
    Slope.GENTLE: "latency grows slowly with concurrency: short prompts dominate, there is room below the knee",
    Slope.MODERATE: "latency grows moderately with concurrency",
    Slope.STEEP: "latency grows almost in proportion to concurrency: long prompts stall each other early",
}
_LIMIT_WORDS = {
    Limit.REFUSALS: "the engine refuses requests",
    Limit.KV_MEMORY: "KV-cache memory is full: requests wait for it or are preempted",
    Limit.SLOTS: "all request slots are taken: further requests queue",
    Limit.PREFILL: "prefill compute: prompts wait for each other although no request is queued",
    Limit.DECODE: "decode steps slow down as the batch grows",
    Limit.NONE: "nothing yet: no level failed",
}


@dataclass(frozen=True, slots=True)
class CurveInsight:
    """Reading of one curve. What the measured levels cannot tell is None."""

    knee_concurrency: float | None
    early_slope: float | None
    slope: Slope | None
    goodput_max_concurrency: int | None
    goodput_max_per_second: float | None
    limit: Limit
    words: tuple[str, ...]


def read_curve(
    levels: Sequence[LevelReport], objectives: Sequence[Objective], capacity: Capacity | None
) -> CurveInsight:
    """`levels` ascending, as in a SweepRecord; levels without counted requests are left out."""
    seen = [level for level in levels if level.n > 0]
    knee = _knee(seen)
    early = _early_slope(seen, objectives[0].metric)
    slope = None if early is None else _slope_class(early)
    best = max(seen, key=lambda level: level.goodput_per_second, default=None)
    limit = _limit(seen, objectives)
    words = []
    if knee is not None:
        words.append(f"Batch interference sets in at about {knee:.0f} requests in flight.")
    if slope is not None:
        words.append(f"{_SLOPE_WORDS[slope].capitalize()}.")
    if best is not None:
        words.append(f"Goodput is highest at {best.concurrency} in flight ({best.goodput_per_second:.1f}/s).")
    if capacity is not None and best is not None and best.concurrency < capacity.estimate:
        words.append("Above that level more concurrency costs latency and adds no useful work.")
    words.append(f"What limits: {_LIMIT_WORDS[limit]}.")
    return CurveInsight(
        knee_concurrency=knee,
        early_slope=early,
        slope=slope,
        goodput_max_concurrency=None if best is None else best.concurrency,
        goodput_max_per_second=None if best is None else best.goodput_per_second,
        limit=limit,
        words=tuple(words),
    )


def _knee(levels: Sequence[LevelReport]) -> float | None:
    if len(levels) < 2 or levels[0].e2e.p50 is None:
        return None
    throughput = max(level.requests_per_second for level in levels)
    return throughput * levels[0].e2e.p50.value_s or None


def _early_slope(levels: Sequence[LevelReport], metric: Metric) -> float | None:
    points = []
    for level in levels:
        summary: LatencySummary = getattr(level, metric.value)
        tail = summary.p99 or summary.p90
        if tail is not None and tail.value_s > 0:
            points.append((level.concurrency, tail.value_s))
    for concurrency, tail_s in points[1:]:
        if concurrency >= APART_RATIO * points[0][0]:
            return math.log(tail_s / points[0][1]) / math.log(concurrency / points[0][0])
    return None


def _slope_class(elasticity: float) -> Slope:
    if elasticity < GENTLE_BELOW:
        return Slope.GENTLE
    return Slope.STEEP if elasticity > STEEP_ABOVE else Slope.MODERATE


def _limit(levels: Sequence[LevelReport], objectives: Sequence[Objective]) -> Limit:
    failed = [level for level in levels if level.verdict.kind is VerdictKind.EXCEEDED]
    if not failed:
        return Limit.NONE
    level = failed[0]
    if sum(count for _, count in level.errors) > REFUSED_RATIO * level.n:
        return Limit.REFUSALS
    if (level.server.preemptions or 0) > 0 or (level.server.kv_usage_ratio or 0) > KV_FULL_RATIO:
        return Limit.KV_MEMORY
    if (level.server.waiting_requests or 0) > 0:
        return Limit.SLOTS
    exceeded = {part.objective for part in level.verdict.objectives if part.kind is VerdictKind.EXCEEDED}
    metrics = {objective.metric for objective in objectives if str(objective) in exceeded}
    return Limit.DECODE if metrics and metrics <= {Metric.ITL, Metric.TPOT} else Limit.PREFILL
