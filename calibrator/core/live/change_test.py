"""The guard's test: have live requests, from some moment on, exceeded an objective more often than allowed?

**What is counted.** An engine's histogram shows how many requests took longer than a bucket bound, not longer than the
limit, so the next bound b >= limit L is used. Fewer requests exceed b than L. The null hypothesis is the upper end of
the zone (`core.search.verdict`), P(latency > L) = z, extrapolated to the bound along an exponential tail, the tail of
queueing delays (Kingman; Cramer-Lundberg):

    p0 = z ** (b / L)        P99, z = 2 %: b = L 2 %, 1.25 L 0.75 %, 1.67 L 0.15 %, 2 L 0.04 %

A heavier tail (lognormal with a log-sd above about 0.55) exceeds b more often and alarms sooner than promised, but only
where the objective is broken. Beyond b = 2 L a doubled P99 hardly shows at b, so a limit should be just below a bound.

**Detection limit.** No test with one false alarm in A requests detects a change in fewer than about ln(A) / KL requests
(Lorden, 1971). At 2 requests/s, one false alarm a week, an exponential tail and a doubled P99, that is 83, 107, 186 and
486 s for b = L, 1.25 L, 1.67 L and 2.27 L. A bucket below the limit moves more, but its share has no bound under the
null: P(latency > L) = z allows any, up to all requests. An estimated share would detect a change rather than a breach:
longer prompts, or a busier hour below the cap, move it within the SLA, and the false alarm rate would not hold.

**One bit per block.** Live requests stall together, so within `BLOCK_S` they are not independent evidence. A block with
n requests gives one bit, "at least c of them exceeded". Markov's inequality bounds it under the null, whatever the
dependence within the block: P(bit) <= q0 = n p0 / c. A stall is one bit, at any rate of traffic. For each
alternative p1 = r p0, r in `RATIOS`:  c = max(1, ceil(n sqrt(p0 p1))),  q1 = P(Bin(n, p1) >= c), at most `SURE`.

**Sequential test** of Shiryaev and Roberts, in seconds of traffic watched:

    R <- (R + block's seconds) * (q1 / q0 if bit else (1 - q1) / (1 - q0))

Under the null, R minus the time watched is a supermartingale, so the mean time until R reaches A is at least A,
whatever the traffic does: a threshold in seconds needs no tuning. The mean of R over `RATIOS` inherits this; several
objectives share the false alarms, so A grows with their number. R overshoots A by a factor of 2 or more in simulation
(`tests/benchmarks/bench_guard.py`), for which the threshold is lowered by `OVERSHOOT`. Blocks without requests are
skipped.

Source: Pollak, Optimal detection of a change in distribution (1985); Shin, Ramdas, Rinaldo, E-detectors (2023).
Called by `service.backend.guard`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from scipy.special import bdtrc

from calibrator.core.records.objective import Metric, Objective
from calibrator.core.records.server_load import Histogram, ServerLoad
from calibrator.core.search.verdict import zone

BLOCK_S = 2.5  # three scrapes; what one stall delays shows within one or two
RATIOS = (4.0, 16.0)  # exceedance against the null's; P99 doubled at an exponential tail: 5 (b = L) to 15 (b = 1.67 L)
SURE = 0.9  # a block free of exceedances may happen under any alternative
OVERSHOOT = 1.8
FAR_BOUND_RATIO = 1.7  # above it, a doubled P99 takes more than three minutes to detect at 2 requests/s


@dataclass(frozen=True, slots=True)
class GuardPolicy:
    """What the guard may do (DESIGN section 4)."""

    enabled: bool = True
    false_alarm_s: float = 604_800.0  # mean time between false alarms at the upper end of the zone
    cut_ratio: float = 0.2
    near_cap_ratio: float = 0.7  # of the cap in flight: below, lowering the cap would change nothing
    settle_s: float = 60.0  # after a cut nothing counts: requests admitted before it are still running
    clean_s: float = 600.0  # with traffic and without a breach, before each step back up
    resweep_s: float = 3600.0  # between two sweeps that the guard asks for


class GuardReason(StrEnum):
    """Why the guard tripped; the last one means that it did not cut, whatever the signal."""

    LATENCY = "latency"
    QUEUE = "queue"
    NO_COMPLETIONS = "no_completions"
    NOT_CONCURRENCY = "breach_not_concurrency"


class GuardAction(StrEnum):
    CUT = "cut"
    RAISE = "raise"
    REPORT = "report"


@dataclass(frozen=True, slots=True)
class GuardEvent:
    """What the guard asks for."""

    action: GuardAction
    reason: GuardReason | None  # the signal; None: a step back up
    words: str
    wants_sweep: bool = False


def histogram_of(load: ServerLoad, metric: Metric) -> Histogram | None:
    """The engine's own histogram for a metric.

    The first content token never comes before the first token of any kind, so `ttft_s` bounds `ttfc` from below. Gaps
    between tokens (`itl`) are judged per request here and counted per token by engines: they cannot be compared.
    """
    if metric in (Metric.TTFT, Metric.TTFC):
        return load.ttft_s
    return {Metric.E2E: load.e2e_s, Metric.TPOT: load.tpot_s}.get(metric)


def next_bound_s(objective: Objective, bounds: tuple[float, ...]) -> float | None:
    """The lowest bucket bound at or above the limit; None: the limit is above the last one.

    Also None for objectives about short prompts only, because engines count all prompts together.
    """
    if objective.max_prompt_tokens is not None:
        return None
    at_least_s = objective.limit_s * (1.0 - 1e-9)
    return next((bound_s for bound_s in bounds if at_least_s <= bound_s < math.inf), None)


def null_ratio(objective: Objective, bound_s: float) -> float:
    """Exceedance of `bound_s` at the upper end of the zone."""
    return math.pow(zone(objective).p1, max(1.0, bound_s / objective.limit_s))


def above(delta: Histogram, bound_s: float) -> tuple[float, float]:
    """Observations in the difference of two scrapes: all, and those above a bound of the histogram."""
    return delta.total, delta.total - delta.counts[delta.bounds.index(bound_s)]


def alarm_at_s(policy: GuardPolicy, objectives: int) -> float:
    """The threshold of `ChangeTest.evidence_s`."""
    return policy.false_alarm_s * max(1, objectives) / OVERSHOOT


@dataclass(frozen=True, slots=True)
class ChangeTest:
    """The test's state after some blocks, and the block that is still open."""

    statistics_s: tuple[float, ...] = (0.0,) * len(RATIOS)
    n: float = 0.0
    exceeding: float = 0.0
    block_s: float = 0.0

    @property
    def evidence_s(self) -> float:
        return sum(self.statistics_s) / len(self.statistics_s)

    def after(self, n: float, exceeding: float, elapsed_s: float, p0: float) -> ChangeTest:
        """After one scrape."""
        n, exceeding, block_s = self.n + n, self.exceeding + exceeding, self.block_s + elapsed_s
        if block_s < BLOCK_S:
            return ChangeTest(self.statistics_s, n, exceeding, block_s)
        if n < 1.0:
            return ChangeTest(self.statistics_s)
        factors = (likelihood_ratio(n, exceeding, p0, ratio) for ratio in RATIOS)
        return ChangeTest(
            tuple((known_s + block_s) * factor for known_s, factor in zip(self.statistics_s, factors, strict=True))
        )

    def without_block(self) -> ChangeTest:
        """Drop the open block, because something in it must not count."""
        return ChangeTest(self.statistics_s)


def likelihood_ratio(n: float, exceeding: float, p0: float, ratio: float) -> float:
    """Of one block's bit: alternative `ratio * p0` against the null."""
    needed = least_exceeding(n, p0, ratio)
    q0 = min(n * p0 / needed, 1.0 - 1e-9)
    p1 = alternative(p0, ratio)
    q1 = max(q0, min(SURE, float(bdtrc(needed - 1, round(n), p1))))
    return q1 / q0 if exceeding >= needed else (1.0 - q1) / (1.0 - q0)


def least_exceeding(n: float, p0: float, ratio: float) -> int:
    """How many of a block's requests must exceed the bound to set its bit."""
    return max(1, math.ceil(n * math.sqrt(p0 * alternative(p0, ratio)) - 1e-9))


def alternative(p0: float, ratio: float) -> float:
    """`ratio * p0`, at most halfway between the null and 1."""
    return min(ratio * p0, (1.0 + p0) / 2.0)
