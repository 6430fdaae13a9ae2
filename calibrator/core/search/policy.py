"""Which level next, or enough: history in, step out.

The policy escalates with overdose control and asks a sequential test on both sides of the boundary:

1. **Ramp** (`core.search.ramp`) with cheap screens, up to the first level that fails one. A warm start has none; it
   begins with a sentinel (`core.search.recalibration`).
2. **Boundary.** A posterior of the capacity over all levels together (`core.search.posterior`). Stay on an undecided
   level while it lies between the 15 % and the 50 % quantile; else go to the 25 % quantile (35 % while it is wide),
   strictly between the highest certified and the lowest refuted level and at most x 1.6 above the highest good one.
3. **Stop** when refuted / certified <= 1.12 or they are neighbours, when the median is within 10 % of the certified
   level, when the highest level is certified, when the lowest fails, when the level to go to has proved to lie inside
   the indifference zone.
4. **Close.** When three quarters of a budget are spent, or that of overload, or the capacity is known within a few per
   cent: no more exploring. The 30 % quantile is given its own test with what is left, because only a certified
   capacity may raise a cap; this is also the look at evidence that has grown old.
5. **Answer:** the certified level; where no test was finished, the 20 % quantile if it is higher (and then only
   provisional), below every refuted level and not above the highest locally good one.

Levels that live traffic fills by itself (`History.organic_floor`) are no candidates. If the lowest that is left fails,
the capacity lies among them: the answer is what was known before, never `infeasible`, because nobody measured there.

Pure and replayable: the state is recomputed from the history, so a stored sweep can be resumed or judged anew. Every
`Measure` becomes one stage; the same level twice is one stay without a second warm-up. Sample sizes are those of a P99
and scale with the allowance of the strictest objective.
"""

from __future__ import annotations

import math

from calibrator.core.records.history import Bounds, Capacity, History
from calibrator.core.records.sweep import Grade, SweepOutcome
from calibrator.core.records.unmeasured import words
from calibrator.core.search.ramp import ramp_step
from calibrator.core.search.recalibration import recalibration_step
from calibrator.core.search.state import (
    CLOSING_QUANTILE,
    ENOUGH_SAMPLES,
    MIDDLE,
    PUBLISHED_QUANTILE,
    SearchState,
    candidates,
    know,
    overload_s,
    samples_at,
    scaled,
)
from calibrator.core.search.steps import Conclusion, Measure, Step, Test
from calibrator.core.search.verdict import level_verdict

COHORT = (48, 128)  # samples of one stay in the boundary phase, between which the level's own number lies
BRACKET_RATIO = 1.12
TIGHT_RATIO = 1.1
TIGHT_RATIO_WARM = 1.3
REACH_RATIO = 1.6
OVERDOSE = 0.25
OVERDOSE_WHILE_WIDE = 0.35
WIDE_RATIO = 1.6
STAY_BETWEEN = (0.15, 0.5)  # quantiles of the capacity between which an undecided level is worth staying at
NEARLY = 1.08  # a certified level is published rather than an estimate so little above it
EXPLORE_RATIO = 0.75  # of a budget; the rest is kept for the closing test
KNOWN_BETWEEN = (0.2, 0.8)
KNOWN_RATIO = 1.08
CLOSE_TO = (0.85, 1.08)  # of the estimate: where the closing test stays although the estimate has moved on
MOST_INVALID = 2  # stages in a row that the audit rejects


def next_step(history: History, bounds: Bounds) -> Step:
    """The next level to measure, or the conclusion. A warm start is part of the history."""
    invalid_reasons = _invalid_in_a_row(history)
    if 0 < invalid_reasons < MOST_INVALID:
        level = history.stages[-1].level
        return _measure(history, level, f"level {level} again: {history.stages[-1].audit.reasons[0]}")
    if history.organic_floor >= bounds.max_level:
        return _provisional(know(history, bounds), f"live traffic alone holds about {history.organic_floor} in flight")
    ramp = ramp_step(history, candidates(history, bounds)) if history.warm is None else None
    return ramp if ramp is not None and not history.stages else _after(know(history, bounds), ramp, invalid_reasons)


def _after(known: SearchState, ramp: Measure | None, invalid_reasons: int) -> Step:
    history = known.history
    if invalid_reasons:
        reasons = "; ".join(history.stages[-1].audit.reasons)
        return _provisional(known, f"level {history.stages[-1].level} could not be judged: {reasons}")
    if known.spent:
        return _decided(known) or _provisional(known, known.spent)
    unmeasured = _unmeasured(known)
    if unmeasured:
        return _provisional(known, unmeasured)
    explored = _explored(known)
    if ramp is not None and not explored:
        return ramp
    check = recalibration_step(known, history.warm) if history.warm is not None else None
    return check or _decided(known) or (_closing(known, explored) if explored else _approach(known))


def _invalid_in_a_row(history: History) -> int:
    count = 0
    for stage in reversed(history.stages):
        if not stage.audit.reasons or stage.level != history.stages[-1].level:
            break
        count += 1
    return count


def _unmeasured(known: SearchState) -> str:
    """Why the last level could not be judged, in words: an objective that the answers there do not show."""
    if not known.history.stages:
        return ""
    last = known.history.stages[-1]
    if not last.is_given_up or not known.is_undecided(last.level):
        return ""
    parts = zip(known.history.objectives, last.evidence, strict=True)
    reasons = [words(objective, part.n, part.missing) for objective, part in parts if part.is_given_up]
    return f"level {last.level} could not be judged: {'; '.join(reasons)}"


def _measure(history: History, level: int, reason: str) -> Measure:
    return Measure(level, Test.VERDICT, scaled(history, min(max(level, COHORT[0]), COHORT[1])), reason)


def _explored(known: SearchState) -> str:
    """Why there is no more exploring, in words; empty while there is."""
    history = known.history
    if overload_s(history) >= known.bounds.overload_s:
        return f"the overload budget ended ({overload_s(history):.0f} s above the limit)"
    if history.requests >= EXPLORE_RATIO * known.request_budget:
        return f"most of the request budget is spent ({history.requests} sent)"
    if history.elapsed_s >= EXPLORE_RATIO * known.duration_budget_s:
        return f"most of the time budget is spent ({history.elapsed_s:.0f} s)"
    low, high = (known.posterior.quantile(share) for share in KNOWN_BETWEEN)
    if high <= KNOWN_RATIO * low:
        return f"the capacity is known within {high / low - 1.0:.0%}"
    return ""


# ---------------------------------------------------------------------------------------------------------- boundary
def _approach(known: SearchState) -> Step:
    history, bounds, quantile = known.history, known.bounds, known.posterior.quantile
    current = history.stages[-1].level
    if current > known.certified and known.is_undecided(current) and not _has_enough(known, current):
        low, high = (quantile(share) for share in STAY_BETWEEN)
        if low <= current <= high:
            return _measure(history, current, f"level {current} is still undecided")
    share = OVERDOSE_WHILE_WIDE if quantile(0.9) / quantile(0.1) > WIDE_RATIO else OVERDOSE
    level = math.floor(quantile(share) + 0.3)
    top = max(known.locally_good, default=bounds.min_level)
    level = min(level, max(top + 1, int(top * REACH_RATIO)), bounds.max_level)
    if known.refuted is not None:
        level = min(level, known.refuted - 1)
    level = max(level, known.certified + 1, bounds.min_level)
    if _has_enough(known, level) and known.is_undecided(level):
        return _provisional(known, f"level {level} lies inside the indifference zone, where no affordable test decides")
    return _measure(history, level, f"the {share:.0%} quantile of the capacity")


def _has_enough(known: SearchState, level: int) -> bool:
    return samples_at(known.history, level) >= scaled(known.history, ENOUGH_SAMPLES)


def _closing(known: SearchState, why: str) -> Step:
    """Give the answer its own test."""
    history, level = known.history, known.estimate(CLOSING_QUANTILE)
    current = history.stages[-1].level
    is_near = current in known.locally_good and CLOSE_TO[0] * level <= current <= CLOSE_TO[1] * level
    if is_near and known.is_undecided(current):
        level = current
    if not known.locally_good:  # the way down was cut short
        level = known.bounds.min_level
    is_tested = level < known.bounds.min_level or _has_enough(known, level) or not known.is_undecided(level)
    if is_tested or level <= NEARLY * known.certified:
        return _provisional(known, why)
    return _measure(history, level, f"closing test of {level}: {why}")


# ------------------------------------------------------------------------------------------------------------ answer
def _decided(known: SearchState) -> Conclusion | None:
    certified, refuted = known.certified, known.refuted
    lowest, highest = known.bounds.min_level, known.bounds.max_level
    if certified >= highest:
        capacity = Capacity(highest, highest, highest, certified)
        return Conclusion(
            SweepOutcome.CALIBRATED, Grade.AT_MAX, capacity, f"level {highest}, the highest allowed, holds"
        )
    if certified and refuted is not None and (refuted - certified <= 1 or refuted / certified <= BRACKET_RATIO):
        return _certified(known, f"level {certified} holds and level {refuted} does not")
    if certified and refuted is not None and refuted <= lowest:  # organic traffic has risen above it meanwhile
        return _certified(known, f"level {certified} holds and level {refuted}, now the lowest possible, does not")
    if refuted is not None and refuted <= lowest:
        is_covered = 0 < known.history.organic_floor == lowest - 1
        return _covered(known) if is_covered else _infeasible(known)
    tight = TIGHT_RATIO if known.history.warm is None else TIGHT_RATIO_WARM
    if certified and known.posterior.quantile(MIDDLE) / certified <= tight:
        return _certified(known, f"level {certified} holds and the capacity is probably little higher")
    return None


def _covered(known: SearchState) -> Conclusion:
    live = known.history.organic_floor
    return _provisional(known, f"level {known.refuted} fails, and live traffic alone holds about {live} in flight")


def _infeasible(known: SearchState) -> Conclusion:
    lowest = known.bounds.min_level
    verdict = level_verdict(known.history, lowest)
    return Conclusion(
        SweepOutcome.INFEASIBLE,
        Grade.INFEASIBLE,
        Capacity(0, 0, max(0, lowest - 1)),
        f"even level {lowest} fails: {'; '.join(verdict.reasons)}",
    )


def _certified(known: SearchState, reason: str) -> Conclusion:
    return Conclusion(SweepOutcome.CALIBRATED, Grade.CERTIFIED, known.capacity(known.certified), reason)


def _provisional(known: SearchState, reason: str) -> Conclusion:
    """Something else than certainty ended the sweep; what is certified by then stays so."""
    estimate = known.estimate(PUBLISHED_QUANTILE)
    if estimate <= NEARLY * known.certified:
        estimate = known.certified
    if estimate < known.bounds.min_level and not known.certified:
        return Conclusion(SweepOutcome.INCONCLUSIVE, None, None, f"{reason}, and no level is known to hold")
    grade = Grade.CERTIFIED if estimate <= known.certified else Grade.PROVISIONAL
    return Conclusion(SweepOutcome.CALIBRATED, grade, known.capacity(estimate), reason)


# --------------------------------------------------------------------------------------------------- ended from outside
def given_up(history: History, bounds: Bounds, reason: str) -> Conclusion:
    """What the evidence so far supports, when something outside the search ends it."""
    if not history.stages:
        return Conclusion(SweepOutcome.INCONCLUSIVE, None, None, f"{reason}, before anything was measured")
    return _provisional(know(history, bounds), reason)


def aborted(history: History, bounds: Bounds, reason: str) -> Conclusion:
    """Ended to spare users: an answer only where a level was refuted, for then the cap may have to come down."""
    if history.stages and know(history, bounds).refuted is not None:
        return given_up(history, bounds, reason)
    return Conclusion(SweepOutcome.INCONCLUSIVE, None, None, reason)
