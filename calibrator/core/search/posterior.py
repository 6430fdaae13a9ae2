"""Posterior of the capacity N* from the bits of all levels together.

For one objective with allowance a, the exceedance ratio at level N is modelled as

    p(N) = min(c, f + (1 - f) expit(o + k ln(N / N*)))        o such that p(N*) = a

with slope k (1 = shallow ... 70 = cliff), floor f (requests that miss the limit at any level) and ceiling c. N* has a
log-uniform prior on a grid of 3 % steps from 0.6 of the lowest level (the lowest level fails) to 1.75 of the highest
(all pass). The log-likelihood of (n, e) is divided by the design effect. Violations saturate at the larger ceiling: how
bad a bad level is must not move N*, or a cliff would distort the fit of a smooth curve.

With several objectives the capacity is the smallest: its survival function is the product of theirs.

Rates scale with the allowance; the figures below are those of a P99 in per cent. Source: escalation with overdose
control (Babb, Rogatko, Zacks 1998), weights tuned by simulation (`calibrator simulate`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

Floats = NDArray[np.float64]

STEP = 1.03
SLOPES = (1.0, 1.8, 3.0, 5.0, 8.0, 14.0, 30.0, 70.0)
SLOPE_WEIGHTS = (0.04, 0.08, 0.15, 0.18, 0.17, 0.13, 0.12, 0.13)
FLOORS = (0.0, 0.1, 0.3, 0.6)  # in allowances
FLOOR_WEIGHTS = (0.4, 0.25, 0.2, 0.15)
CEILINGS = (30.0, 10.0)  # in allowances
CEILING_WEIGHTS = (0.7, 0.3)
HIGHEST_CEILING = 0.95
LEAST = 0.005  # in allowances: no level is assumed to be better than this


@dataclass(frozen=True, slots=True)
class Counts:
    """One objective's evidence at one level."""

    level: int
    n: int
    exceedances: int
    design_effect: float = 1.0


@dataclass(frozen=True, slots=True)
class Posterior:
    """Weights over a grid of capacities; `capacities` ascends, `weights` sum to 1."""

    capacities: Floats
    weights: Floats

    def quantile(self, share: float) -> float:
        """Smallest capacity with at least `share` of the mass at or below it."""
        index = int(np.searchsorted(np.cumsum(self.weights), share))
        return float(self.capacities[min(index, self.capacities.size - 1)])

    def given(self, capacities: Sequence[float], weights: Sequence[float]) -> Posterior:
        """With a prior other than log-uniform, given as weights on a grid of its own, which may have other ends."""
        prior = np.interp(np.log(self.capacities), np.log(capacities), weights)
        mass = self.weights * prior
        return Posterior(self.capacities, mass / mass.sum())


@dataclass(frozen=True, slots=True)
class ObjectiveData:
    """All evidence about one objective."""

    allowance: float
    counts: tuple[Counts, ...]


def capacity_posterior(objectives: Iterable[ObjectiveData], lowest: int, highest: int) -> Posterior:
    """Posterior of the smallest capacity over `objectives`."""
    capacities = _grid(lowest, highest)
    survival = np.ones_like(capacities)
    for data in objectives:
        weights = _weights(data, lowest, highest)
        survival *= np.cumsum(weights[::-1])[::-1]  # P(N* >= capacity)
    weights = survival - np.append(survival[1:], 0.0)
    return Posterior(capacities, weights / weights.sum())


def _weights(data: ObjectiveData, lowest: int, highest: int) -> Floats:
    total = _shape_prior()[None, :].astype(np.float32)
    most = _ceilings(data.allowance)[0]
    for counts in data.counts:
        if counts.n:
            exceeded, passed = _tables(data.allowance, counts.level, lowest, highest)
            ones = min(float(counts.exceedances), most * counts.n)
            effect = counts.design_effect
            total = total + np.float32(ones / effect) * exceeded + np.float32((counts.n - ones) / effect) * passed
    shape = (_grid(lowest, highest).size, _shape_prior().size)
    mass = np.exp(np.broadcast_to(total - total.max(), shape)).sum(axis=1, dtype=np.float64)
    return np.asarray(mass / mass.sum(), dtype=np.float64)


@functools.lru_cache(maxsize=8)
def _grid(lowest: int, highest: int) -> Floats:
    grid: Floats = np.exp(np.arange(math.log(0.6 * lowest), math.log(1.75 * highest), math.log(STEP)))
    grid.flags.writeable = False
    return grid


@functools.lru_cache(maxsize=1)
def _shape_prior() -> Floats:
    weights = np.multiply.outer(np.multiply.outer(SLOPE_WEIGHTS, FLOOR_WEIGHTS), CEILING_WEIGHTS)
    prior: Floats = np.log(weights.ravel())
    prior.flags.writeable = False
    return prior


def _ceilings(allowance: float) -> Sequence[float]:
    return [min(HIGHEST_CEILING, ceiling * allowance) for ceiling in CEILINGS]


@functools.lru_cache(maxsize=256)  # about 130 kB each; a sweep measures about ten levels
def _tables(allowance: float, level: int, lowest: int, highest: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """ln p and ln(1 - p) at `level`: one row per capacity, one column per shape."""
    slope, floor, ceiling = (
        part.ravel()
        for part in np.meshgrid(SLOPES, np.multiply(FLOORS, allowance), _ceilings(allowance), indexing="ij")
    )
    offset = logit((allowance - floor) / (1.0 - floor))
    distance = np.log(level / _grid(lowest, highest))[:, None]
    ratio = np.minimum(floor + (1.0 - floor) * expit(offset + slope * distance), ceiling)
    ratio = np.maximum(ratio, LEAST * allowance)
    return np.log(ratio).astype(np.float32), np.log1p(-ratio).astype(np.float32)
