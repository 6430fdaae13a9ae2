"""Recalibration: is the capacity in force still right? A cheap test first, and a search only after a change.

1. **Sentinel** at the capacity in force: SPRT 0.7 a against 4 a (`core.search.verdict`), at most 420 samples for a P99.
2. **Upward probe** at 1.25 x, in every third sweep if the sentinel passes: the same test.
3. A failed sentinel, or an upward probe that passes (and then gets its full test), starts a warm **search**
   (`core.search.policy`) from the carried posterior, with half the budgets. Otherwise the capacity is confirmed; where
   the full test does not support it, it shrinks to the 20 % quantile of the posterior.

**Carried posterior.** The capacity may have drifted since the previous sweep: 75 % of the weight is smeared by +-12 %
(load mix, uptime), 25 % by +-70 % (something changed). The kernel was tuned with `calibrator simulate`.

**Grade.** Certified where the full test passes on the new evidence, alone or pooled with that of previous sweeps at or
above the capacity (the latest 700 samples or so), which a sentinel has just found to hold; otherwise provisional.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter1d

from calibrator.core.records.history import Bounds, History, Stage, WarmStart
from calibrator.core.records.sweep import EndReason, Grade, SweepOutcome, VerdictKind
from calibrator.core.search.posterior import STEP, Floats
from calibrator.core.search.state import (
    ENOUGH_SAMPLES,
    PUBLISHED_QUANTILE,
    SearchState,
    samples_at,
    scaled,
    search_state,
)
from calibrator.core.search.steps import Conclusion, Ending, Measure, Step, Test
from calibrator.core.search.verdict import level_verdict, sentinel_passes_by_point_estimate, sentinel_result

SENTINEL_SAMPLES = 420
UPWARD_PROBE_RATIO = 1.25
UPWARD_PROBE_EVERY = 3  # sweeps
NARROW, BROAD = 0.12, 0.7  # standard deviations in ln N
BROAD_SHARE = 0.25
LEAST_WEIGHT = 1e-6  # no capacity is ruled out


def warm_start(previous: History, bounds: Bounds, published: int, sweeps_since_upward_probe: int) -> WarmStart:
    """What carries over from `previous`. `published`: capacity in force of one replica, at least 1."""
    posterior = search_state(previous, bounds).posterior
    return WarmStart(
        published=published,
        sweeps_since_upward_probe=sweeps_since_upward_probe,
        capacities=tuple(float(f"{capacity:.5g}") for capacity in posterior.capacities),
        weights=tuple(float(f"{weight:.3g}") for weight in _drifted(posterior.weights)),
        stages=_latest(previous, published),
    )


def _latest(previous: History, published: int) -> tuple[Stage, ...]:
    """The newest stages at or above `published`, enough for the samples of a full test."""
    before = () if previous.warm is None else previous.warm.stages
    stages = [stage for stage in (*before, *previous.stages) if stage.level >= published]
    samples, kept = 0, 0
    while kept < len(stages) and samples < scaled(previous, ENOUGH_SAMPLES):
        kept += 1
        samples += stages[-kept].evidence[0].n
    return tuple(stages[len(stages) - kept :])


def probed_above(history: History) -> bool:
    """Whether this sweep measured above the capacity in force; if so, `sweeps_since_upward_probe` restarts at 0."""
    return history.warm is None or any(stage.level > history.warm.published for stage in history.stages)


def _drifted(weights: Floats) -> Floats:
    step = math.log(STEP)
    narrow, broad = (gaussian_filter1d(weights, sd / step, mode="nearest") for sd in (NARROW, BROAD))
    smeared = (1.0 - BROAD_SHARE) * narrow + BROAD_SHARE * broad + LEAST_WEIGHT / weights.size
    return np.asarray(smeared / smeared.sum(), dtype=np.float64)


def recalibration_step(known: SearchState, warm: WarmStart) -> Step | None:
    """Sentinel, upward probe or confirmation; None: the boundary has to be searched."""
    history, bounds = known.history, known.bounds
    level = min(max(warm.published, bounds.min_level), bounds.max_level)
    holds = _answer(history, level, f"sentinel at {level}")
    if isinstance(holds, Measure):
        return holds
    if not holds or (known.refuted is not None and known.refuted <= level):
        return None
    above = min(bounds.max_level, max(level + 1, math.floor(level * UPWARD_PROBE_RATIO)))
    if above > level and warm.sweeps_since_upward_probe >= UPWARD_PROBE_EVERY - 1:
        holds = _answer(history, above, f"upward probe at {above}")
        if isinstance(holds, Measure):
            return holds
        if holds:
            return _tested(known, above)
    return _confirmed(known, warm, min(level, max(warm.published, 1)) if history.organic_floor else level)


def _tested(known: SearchState, level: int) -> Measure | None:
    """The full test of a level that passed an upward probe; None when it has had one."""
    left = scaled(known.history, ENOUGH_SAMPLES) - samples_at(known.history, level)
    if left <= 0 or not known.is_undecided(level):
        return None
    return Measure(level, Test.VERDICT, left, f"full test of {level}, which passed an upward probe")


def _answer(history: History, level: int, why: str) -> bool | Measure:
    """The sentinel's result at a level, or the measurement that it still needs."""
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
    why = Ending(EndReason.CONFIRMED, f"level {level} still holds{shrunk}")
    return Conclusion(SweepOutcome.CALIBRATED, grade, capacity, why)
