"""Synthetic backends with a known capacity, on which the search policy is evaluated.

A request's latency is given in limits, so that it *exceeds* above 1. A backend is a curve p(N), the exceedance ratio at
level N, and the true capacity N* is the highest level up to which no level exceeds the allowance (holes count).

| family | share | p(N), r = ln(N / knee) | |
|---|---|---|---|
| seed | .25 | Phi(r * elasticity / sigma - z), z = Phi^-1(1 - a) | lognormal, P99 a power of N |
| logistic | .20 | logit p = logit a + k r, k 3-12 | heavier tail |
| knee | .20 | floor .05-.4 %, then 8-60 % within a few per cent of N | queueing begins, KV memory ends |
| shallow | .10 | logistic with k .8-2 | +-10 % of N cannot be told apart |
| bimodal | .15 | a share of .2-.9 % of long prompts exceeds at any level, the rest is logistic | |
| bump | .10 | a hole of 2-6 % at 30-60 % of the knee of a logistic curve | not monotone |

`CORE` leaves out shallow and bump: there +-10 % of N is not measurable, or the truth is a hole. Capacity is log-uniform
in 1..512; 2 % of backends fail at level 1 and 3 % never fail.

**Correlation.** Requests caught by one stall share a cluster effect: clusters of 5-25 % of N (at most 32 requests), a
Gaussian copula of correlation 0-.7, and AR(1) of 0-.5 between neighbouring clusters. **Time.** A request stays
s0 (1 + growth N / N*), s0 about 3 s. **Drift.** `moved` shifts the knee.

`numpy` random numbers are drawn in a fixed order: a seed is a backend. Used by `core.simulation.runs`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import expit, logit, ndtr, ndtri

Floats = NDArray[np.float64]

ALLOWANCE = 0.01  # one objective at P99
MAX_LEVEL = 512
LARGEST_CLUSTER = 32
SELDOM = 1e-9  # no ratio is taken closer to 0 or 1 than this before it is turned into a normal score


class Family(StrEnum):
    SEED = "seed"
    LOGISTIC = "logistic"
    KNEE = "knee"
    SHALLOW = "shallow"
    BIMODAL = "bimodal"
    BUMP = "bump"


SHARES = {
    Family.SEED: 0.25,
    Family.LOGISTIC: 0.20,
    Family.KNEE: 0.20,
    Family.SHALLOW: 0.10,
    Family.BIMODAL: 0.15,
    Family.BUMP: 0.10,
}
CORE = (Family.SEED, Family.LOGISTIC, Family.KNEE, Family.BIMODAL)


@dataclass(frozen=True)
class Truth:
    """Everything there is to know about one backend."""

    family: Family
    knee: float
    sigma: float  # log-sd of the latency body
    elasticity: float  # of P99 against N
    slope: float
    shallow_slope: float
    floor: float  # exceedance below a hard knee
    jump: float  # above it
    width: float  # of the knee, in ln N
    long_share: float  # prompts that exceed at any level
    bump_at: float
    bump_ratio: float
    bump_width: float
    correlation: float
    cluster_ratio: float  # of N
    memory: float  # AR(1) between clusters
    service_s: float
    service_growth: float

    @functools.cached_property
    def ratios(self) -> Floats:
        """Exceedance ratio of levels 1..MAX_LEVEL."""
        return self._curve(np.arange(1.0, MAX_LEVEL + 1.0))

    @functools.cached_property
    def capacity(self) -> int:
        """0: not even level 1 holds."""
        bad = np.nonzero(self.ratios > ALLOWANCE)[0]
        return int(bad[0]) if bad.size else MAX_LEVEL

    def exceedance_ratio(self, level: int) -> float:
        return float(self.ratios[level - 1])

    def residence_s(self, level: int) -> float:
        return self.service_s * (1.0 + self.service_growth * level / max(self.capacity, 1))

    def moved(self, factor: float) -> Truth:
        return replace(self, knee=self.knee * factor)

    def _curve(self, level: Floats) -> Floats:
        r = np.log(level / self.knee)
        match self.family:
            case Family.SEED:
                curve = ndtr(self.elasticity / self.sigma * r - ndtri(1.0 - ALLOWANCE))
            case Family.LOGISTIC:
                curve = expit(logit(ALLOWANCE) + self.slope * r)
            case Family.SHALLOW:
                curve = expit(logit(ALLOWANCE) + self.shallow_slope * r)
            case Family.KNEE:
                curve = self.floor + (self.jump - self.floor) * expit((r - 0.5 * self.width) / self.width * 6.0)
            case Family.BIMODAL:
                rest = expit(logit(ALLOWANCE - self.long_share) + self.slope * r)
                curve = self.long_share + (1.0 - self.long_share) * rest
            case Family.BUMP:
                beyond = expit(logit(ALLOWANCE) + self.slope * (r + math.log(self.bump_at)))
                bump = self.bump_ratio * np.exp(-0.5 * ((r - 2.0 * self.bump_width) / self.bump_width) ** 2)
                curve = np.minimum(0.95, beyond + bump)
        return np.asarray(curve, dtype=np.float64)


def draw(
    rng: np.random.Generator, families: tuple[Family, ...] = tuple(Family), correlation: float | None = None
) -> Truth:
    """A random backend; the families keep their shares among each other."""
    shares = np.array([SHARES[family] for family in families])
    family = families[int(rng.choice(len(families), p=shares / shares.sum()))]
    kind = rng.random()
    if kind < 0.02:
        knee = 0.5
    elif kind < 0.05:
        knee = 900.0
    else:
        knee = float(np.exp(rng.uniform(0.0, math.log(MAX_LEVEL))))
    return Truth(
        family=family,
        knee=knee,
        sigma=rng.uniform(0.25, 0.6),
        elasticity=rng.uniform(0.7, 1.0),
        slope=rng.uniform(3.0, 12.0),
        shallow_slope=rng.uniform(0.8, 2.0),
        floor=rng.uniform(0.0005, 0.004),
        jump=rng.uniform(0.08, 0.6),
        width=rng.uniform(0.01, 0.06),
        long_share=rng.uniform(0.002, 0.009),
        bump_at=rng.uniform(0.3, 0.6),
        bump_ratio=rng.uniform(0.02, 0.06),
        bump_width=rng.uniform(0.06, 0.12),
        correlation=_given(correlation, rng.uniform(0.0, 0.7)),
        cluster_ratio=rng.uniform(0.05, 0.25),
        memory=rng.uniform(0.0, 0.5),
        service_s=float(np.exp(rng.normal(math.log(3.0), 0.4))),
        service_growth=rng.uniform(0.3, 1.2),
    )


def _given(wanted: float | None, drawn: float) -> float:
    return drawn if wanted is None else wanted


@dataclass
class SyntheticBackend:
    """Draws latencies of a `Truth`; keeps the state of the current stall."""

    truth: Truth
    rng: np.random.Generator
    _level: int = 0
    _effect: float = 0.0  # of the current cluster
    _left: int = 0  # requests that still belong to it

    def sample(self, level: int, n: int) -> Floats:
        """Latencies of the next `n` requests at `level`, in limits, in completion order."""
        truth = self.truth
        shared = math.sqrt(truth.correlation) * self._effects(level, n)
        score = shared + math.sqrt(1.0 - truth.correlation) * self.rng.standard_normal(n)
        ratio = truth.exceedance_ratio(level)
        match truth.family:
            case Family.BIMODAL:
                middle = _upper_score((ratio - truth.long_share) / (1.0 - truth.long_share))
                is_long = self.rng.random(n) < truth.long_share
                return np.where(
                    is_long, 1.05 + np.abs(self.rng.standard_normal(n)), np.exp(truth.sigma * (score - middle))
                )
            case Family.KNEE:  # queued and preempted requests come in clusters too
                limit = _upper_score(ratio)
                body = np.exp(truth.sigma * (np.minimum(score, limit) - _upper_score(truth.floor)))
                queued = 1.0 + np.exp(0.7 * self.rng.standard_normal(n))
                return np.where(score > limit, queued, np.minimum(body, 0.999))
            case Family.SEED:
                return np.asarray(np.exp(truth.sigma * (score - _upper_score(ratio))), dtype=np.float64)
            case _:  # heavier than lognormal
                limit = _upper_score(ratio)
                stretch = 0.8 * np.maximum(0.0, score - max(1.5, limit))
                return np.exp(truth.sigma * (score - limit + np.where(score > 1.5, stretch, 0.0)))

    def _effects(self, level: int, n: int) -> Floats:
        if level != self._level:
            self._level, self._effect, self._left = level, float(self.rng.standard_normal()), 0
        size = max(1, min(LARGEST_CLUSTER, round(self.truth.cluster_ratio * level)))
        first = min(self._left, n)
        effects = np.full(n, self._effect, dtype=np.float64)
        self._left -= first
        needed = n - first
        if needed:
            count = -(-needed // size)
            memory = self.truth.memory
            noise = self.rng.standard_normal(count) * math.sqrt(1.0 - memory**2)
            chain: Floats
            chain, _ = lfilter([1.0], [1.0, -memory], noise, zi=[memory * self._effect])
            effects[first:] = np.repeat(chain, size)[:needed]
            self._effect = float(chain[-1])
            self._left = count * size - needed
        return effects


def _upper_score(ratio: float) -> float:
    """Normal score that is exceeded with probability `ratio`."""
    return -float(ndtri(min(max(ratio, SELDOM), 1.0 - SELDOM)))
