"""Which level next, or stop: history in, step out.

The policy escalates with overdose control and runs a sequential test on both sides of the boundary:

1. **Ramp** (`core.search.ramp`) with cheap screens, up to the first level that fails one. A warm start has no ramp; it
   begins with a sentinel (`core.search.recalibration`).
2. **Boundary.** A posterior of the capacity over all levels together (`core.search.posterior`). Stay at an undecided
   level while it lies between the 15 % and the 50 % quantile; otherwise go to the 25 % quantile (35 % while the
   posterior is wide), strictly between the highest certified and the lowest refuted level, and at most x 1.6 above the
   highest good one.
3. **Stop** when refuted / certified <= 1.12 or the two are adjacent; when the median is within 10 % of the certified
   level; when the highest level is certified or the lowest fails; when the next level turns out to lie inside the
   indifference zone.
4. **Close.** When three quarters of a budget, or the whole overload budget, are spent, or the capacity is known within
   a few per cent, exploring ends. The 30 % quantile gets its own test with what is left, because only a certified
   capacity may raise a cap; this also re-tests evidence that is no longer fresh.
5. **Answer:** the certified level; where no test was finished, the 20 % quantile if it is higher (as provisional),
   below every refuted level and not above the highest locally good one.

Levels that live traffic fills by itself (`History.organic_floor`) are not candidates. If the lowest remaining level
fails, the capacity lies among them: the answer is then what was known before, never `infeasible`, because those levels
were not measured.

Pure and replayable: the state is recomputed from the history, so a stored sweep can be resumed or judged again. Every
`Measure` becomes one stage; measuring the same level twice in a row needs no second warm-up. Sample sizes are given for
a P99 and scale with the allowance of the strictest objective.
"""

from __future__ import annotations

import math
from dataclasses import replace

from calibrator.core.records.history import Bounds, Capacity, History
from calibrator.core.records.sweep import EndReason, Grade, SweepOutcome
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
    overload_s,
    samples_at,
    scaled,
    search_state,
)
from calibrator.core.search.steps import Conclusion, Ending, Measure, Step, Test
from calibrator.core.search.verdict import level_verdict

COHORT = (48, 128)  # least and most samples of one stage in the boundary phase; in between, as many as the level
BRACKET_RATIO = 1.12
TIGHT_RATIO = 1.1
TIGHT_RATIO_WARM = 1.3
REACH_RATIO = 1.6
OVERDOSE = 0.25
OVERDOSE_WHILE_WIDE = 0.35
WIDE_RATIO = 1.6
STAY_BETWEEN = (0.15, 0.5)  # quantiles of the capacity between which to stay at an undecided level
NEARLY = 1.08  # a certified level is preferred to an estimate that is higher by no more than this
EXPLORE_RATIO = 0.75  # of a budget; the rest is reserved for the closing test
KNOWN_BETWEEN = (0.2, 0.8)
KNOWN_RATIO = 1.08
CLOSE_TO = (0.85, 1.08)  # of the estimate: here the closing test stays although the estimate has moved
MOST_INVALID = 2  # consecutive stages that the audit rejects


def next_step(history: History, bounds: Bounds) -> Step:
    """The next level to measure, or the conclusion. A warm start is part of the history."""
    invalid = _invalid_in_a_row(history)
    if 0 < invalid < MOST_INVALID:
        level = history.stages[-1].level
        return _measure(history, level, f"level {level} again: {history.stages[-1].audit.reasons[0]}")
    if history.organic_floor >= bounds.max_level:
        return _provisional(search_state(history, bounds), _live_traffic(history))
    ramp = ramp_step(history, candidates(history, bounds)) if history.warm is None else None
    if ramp is not None and not history.stages:
        return ramp
    return _after(search_state(history, bounds), ramp, invalid)


def _after(known: SearchState, ramp: Measure | None, invalid: int) -> Step:
    history = known.history
    if invalid:
        reasons = "; ".join(history.stages[-1].audit.reasons)
        words = f"level {history.stages[-1].level} could not be judged: {reasons}"
        return _provisional(known, Ending(EndReason.INVALID_MEASUREMENT, words))
    if known.spent is not None:
        return _decided(known) or _provisional(known, known.spent)
    unmeasured = _unmeasured(known)
    if unmeasured is not None:
        return _provisional(known, unmeasured)
    explored = _explored(known)
    if ramp is not None and explored is None:
        return ramp
    check = recalibration_step(known, history.warm) if history.warm is not None else None
    return check or _decided(known) or (_approach(known) if explored is None else _closing(known, explored))


def _invalid_in_a_row(history: History) -> int:
    count = 0
    for stage in reversed(history.stages):
        if not stage.audit.reasons or stage.level != history.stages[-1].level:
            break
        count += 1
    return count


def _unmeasured(known: SearchState) -> Ending | None:
    """Why the last level could not be judged, if the answers there do not show what an objective is about."""
    if not known.history.stages:
        return None
    last = known.history.stages[-1]
    if not last.is_given_up or not known.is_undecided(last.level):
        return None
    parts = zip(known.history.objectives, last.evidence, strict=True)
    reasons = [words(objective, part.n, part.missing) for objective, part in parts if part.is_given_up]
    return Ending(EndReason.UNMEASURED, f"level {last.level} could not be judged: {'; '.join(reasons)}")


def _measure(history: History, level: int, reason: str) -> Measure:
    return Measure(level, Test.VERDICT, scaled(history, min(max(level, COHORT[0]), COHORT[1])), reason)


def _explored(known: SearchState) -> Ending | None:
    """Why exploring ends; None while it goes on."""
    history = known.history
    if overload_s(history) >= known.bounds.overload_s:
        words = f"the overload budget is spent ({overload_s(history):.0f} s above the limit)"
        return Ending(EndReason.OVERLOAD_BUDGET, words)
    if history.requests >= EXPLORE_RATIO * known.request_budget:
        return Ending(EndReason.REQUEST_BUDGET, f"most of the request budget is spent ({history.requests} sent)")
    if history.elapsed_s >= EXPLORE_RATIO * known.duration_budget_s:
        return Ending(EndReason.TIME_BUDGET, f"most of the time budget is spent ({history.elapsed_s:.0f} s)")
    low, high = (known.posterior.quantile(share) for share in KNOWN_BETWEEN)
    if high <= KNOWN_RATIO * low:
        return Ending(EndReason.CAPACITY_KNOWN, f"the capacity is known within {high / low - 1.0:.0%}")
    return None


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
        words = f"level {level} lies inside the indifference zone, where no affordable test can decide"
        return _provisional(known, Ending(EndReason.INDIFFERENCE_ZONE, words))
    return _measure(history, level, f"the {share:.0%} quantile of the capacity")


def _has_enough(known: SearchState, level: int) -> bool:
    return samples_at(known.history, level) >= scaled(known.history, ENOUGH_SAMPLES)


def _closing(known: SearchState, why: Ending) -> Step:
    """Test the answer itself."""
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
    return _measure(history, level, f"closing test of {level}: {why.words}")


# ------------------------------------------------------------------------------------------------------------ answer
def _decided(known: SearchState) -> Conclusion | None:
    certified, refuted = known.certified, known.refuted
    lowest, highest = known.bounds.min_level, known.bounds.max_level
    if certified >= highest:
        capacity = Capacity(highest, highest, highest, certified)
        why = Ending(EndReason.AT_MAX, f"level {highest}, the highest allowed, holds")
        return Conclusion(SweepOutcome.CALIBRATED, Grade.AT_MAX, capacity, why)
    if certified and refuted is not None and (refuted - certified <= 1 or refuted / certified <= BRACKET_RATIO):
        return _certified(known, EndReason.BRACKETED, f"level {certified} holds and level {refuted} does not")
    if certified and refuted is not None and refuted <= lowest:  # live traffic has risen above `certified` since
        words = f"level {certified} holds and level {refuted}, now the lowest possible, does not"
        return _certified(known, EndReason.LIVE_TRAFFIC, words)
    if refuted is not None and refuted <= lowest:
        is_covered = 0 < known.history.organic_floor == lowest - 1
        return _covered(known) if is_covered else _infeasible(known)
    tight = TIGHT_RATIO if known.history.warm is None else TIGHT_RATIO_WARM
    if certified and known.posterior.quantile(MIDDLE) / certified <= tight:
        words = f"level {certified} holds and the capacity is probably little higher"
        return _certified(known, EndReason.NEARLY_EXACT, words)
    return None


def _covered(known: SearchState) -> Conclusion:
    why = _live_traffic(known.history)
    return _provisional(known, replace(why, words=f"level {known.refuted} fails, and {why.words}"))


def _live_traffic(history: History) -> Ending:
    words = f"live traffic alone holds about {history.organic_floor} in flight"
    return Ending(EndReason.LIVE_TRAFFIC, words)


def _infeasible(known: SearchState) -> Conclusion:
    lowest = known.bounds.min_level
    verdict = level_verdict(known.history, lowest)
    why = Ending(EndReason.INFEASIBLE, f"even level {lowest} fails: {'; '.join(verdict.reasons)}")
    return Conclusion(SweepOutcome.INFEASIBLE, Grade.INFEASIBLE, Capacity(0, 0, max(0, lowest - 1)), why)


def _certified(known: SearchState, code: EndReason, words: str) -> Conclusion:
    why = Ending(code, words)
    return Conclusion(SweepOutcome.CALIBRATED, Grade.CERTIFIED, known.capacity(known.certified), why)


def _provisional(known: SearchState, why: Ending) -> Conclusion:
    """The sweep ended for another reason than certainty; what is certified by then stays certified."""
    estimate = known.estimate(PUBLISHED_QUANTILE)
    if estimate <= NEARLY * known.certified:
        estimate = known.certified
    if estimate < known.bounds.min_level and not known.certified:
        nothing = replace(why, words=f"{why.words}, and no level is known to hold")
        return Conclusion(SweepOutcome.INCONCLUSIVE, None, None, nothing)
    grade = Grade.CERTIFIED if estimate <= known.certified else Grade.PROVISIONAL
    return Conclusion(SweepOutcome.CALIBRATED, grade, known.capacity(estimate), why)


# --------------------------------------------------------------------------------------------------- ended from outside
def given_up(history: History, bounds: Bounds, why: Ending) -> Conclusion:
    """What the evidence so far supports, when something outside the search ends it."""
    if not history.stages:
        nothing = replace(why, words=f"{why.words}, before anything was measured")
        return Conclusion(SweepOutcome.INCONCLUSIVE, None, None, nothing)
    return _provisional(search_state(history, bounds), why)


def aborted(history: History, bounds: Bounds, why: Ending) -> Conclusion:
    """Aborted to protect users: an answer only where a level was refuted, because the cap may then have to fall."""
    if history.stages and search_state(history, bounds).refuted is not None:
        return given_up(history, bounds, why)
    return Conclusion(SweepOutcome.INCONCLUSIVE, None, None, why)
