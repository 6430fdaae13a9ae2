"""Recalibration: is the capacity in force still right? A cheap question first, a search only after a change.

1. **Sentinel** at the capacity in force: SPRT 0.7 a against 4 a (`core.search.verdict`), at most 420 samples of a P99.
2. **Look** at 1.25 x, in every third sweep and after the sentinel passed: the same test.
3. A failed sentinel, or a look that passed (and then its full test), opens a warm **search** (`core.search.policy`) on
   the carried posterior, with half the budgets. Otherwise the capacity is confirmed; where the full test does not stand
   behind it, it shrinks to the 20 % quantile of the posterior.

**Carried posterior.** Since the sweep before, the capacity has drifted: 75 % of its weight is smeared by +-12 % (load
mix, uptime), 25 % by +-70 % (something happened). The kernel was tuned by `calibrator simulate`.

**Grade.** Certified where the full test passes on the new evidence, or on it pooled with that of the sweeps before at
or above the capacity (the latest some 700 samples), which a sentinel has just found to hold; provisional otherwise.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter1d

from calibrator.core.records.history import Bounds, History, Stage, WarmStart
from calibrator.core.records.sweep import Grade, SweepOutcome, VerdictKind
from calibrator.core.search.posterior import STEP, Floats
from calibrator.core.search.state import ENOUGH_SAMPLES, PUBLISHED_QUANTILE, SearchState, know, samples_at, scaled
from calibrator.core.search.steps import Conclusion, Measure, Step, Test
from calibrator.core.search.verdict import level_verdict, sentinel_passes_by_point_estimate, sentinel_result

SENTINEL_SAMPLES = 420
LOOK_RATIO = 1.25
LOOK_EVERY = 3  # sweeps
NARROW, BROAD = 0.12, 0.7  # standard deviations in ln N
BROAD_SHARE = 0.25
LEAST_WEIGHT = 1e-6  # nothing is impossible


def warm_start(previous: History, bounds: Bounds, published: int, sweeps_since_upward_probe: int) -> WarmStart:
    """What is still believed after `previous`. `published`: capacity in force, at least 1, of one replica."""
    posterior = know(previous, bounds).posterior
    return WarmStart(
        published=published,
        sweeps_since_upward_probe=sweeps_since_upward_probe,
        capacities=tuple(float(f"{capacity:.5g}") for capacity in posterior.capacities),
        weights=tuple(float(f"{weight:.3g}") for weight in _drifted(posterior.weights)),
        stages=_latest(previous, published),
    )


def _latest(previous: History, published: int) -> tuple[Stage, ...]:
    """The newest stages at or above `published`, as many as make up the samples of a full test."""
    before = () if previous.warm is None else previous.warm.stages
    stages = [stage for stage in (*before, *previous.stages) if stage.level >= published]
    samples, kept = 0, 0
    while kept < len(stages) and samples < scaled(previous, ENOUGH_SAMPLES):
        kept += 1
        samples += stages[-kept].evidence[0].n
    return tuple(stages[len(stages) - kept :])


def looked_above(history: History) -> bool:
    """Did this sweep measure above the capacity that was in force? Then the count of `sweeps_since_upward_probe` starts
    anew."""
    return history.warm is None or any(stage.level > history.warm.published for stage in history.stages)


def _drifted(weights: Floats) -> Floats:
    step = math.log(STEP)
    narrow, broad = (gaussian_filter1d(weights, sd / step, mode="nearest") for sd in (NARROW, BROAD))
    smeared = (1.0 - BROAD_SHARE) * narrow + BROAD_SHARE * broad + LEAST_WEIGHT / weights.size
    return np.asarray(smeared / smeared.sum(), dtype=np.float64)


def recalibration_step(known: SearchState, warm: WarmStart) -> Step | None:
    """Sentinel, look or confirmation; None: the boundary has to be searched."""
    history, bounds = known.history, known.bounds
    level = min(max(warm.published, bounds.min_level), bounds.max_level)
    holds = _answer(history, level, f"sentinel at {level}")
    if isinstance(holds, Measure):
        return holds
    if not holds or (known.refuted is not None and known.refuted <= level):
        return None
    above = min(bounds.max_level, max(level + 1, math.floor(level * LOOK_RATIO)))
    if above > level and warm.sweeps_since_upward_probe >= LOOK_EVERY - 1:
        holds = _answer(history, above, f"a look at {above}")
        if isinstance(holds, Measure):
            return holds
        if holds:
            return _tested(known, above)
    return _confirmed(known, warm, min(level, max(warm.published, 1)) if history.organic_floor else level)


def _tested(known: SearchState, level: int) -> Measure | None:
    """A level that a look found to hold gets its full test at once; None when it has one."""
    left = scaled(known.history, ENOUGH_SAMPLES) - samples_at(known.history, level)
    if left <= 0 or not known.is_undecided(level):
        return None
    return Measure(level, Test.VERDICT, left, f"the full test of {level}, which a look found to hold")


def _answer(history: History, level: int, why: str) -> bool | Measure:
    """The sentinel's answer at a level, or the measurement it still needs."""
    result = sentinel_result(history, level)
    if result is not None:
        return result
    left = scaled(history, SENTINEL_SAMPLES) - samples_at(history, level)
    return Measure(level, Test.SENTINEL, left, why) if left > 0 else sentinel_passes_by_point_estimate(history, level)


def _confirmed(known: SearchState, warm: WarmStart, level: int) -> Conclusion:
    pooled = History(known.history.objectives, (*warm.stages, *known.history.stages))
    estimate, certified = level, level
    if level_verdict(pooled, level).kind is not VerdictKind.WITHIN:
        quantile = math.floor(known.posterior.quantile(PUBLISHED_QUANTILE) + 0.15)
        estimate = max(known.certified, min(level, max(quantile, known.bounds.min_level)))
        certified = estimate if level_verdict(pooled, estimate).kind is VerdictKind.WITHIN else known.certified
    grade = Grade.CERTIFIED if estimate <= certified else Grade.PROVISIONAL
    capacity = replace(known.capacity(estimate), certified=max(certified, known.certified))
    shrunk = "" if estimate == level else f", but {estimate} is the safer answer"
    return Conclusion(SweepOutcome.CALIBRATED, grade, capacity, f"level {level} still holds{shrunk}")
