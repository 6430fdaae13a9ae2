"""Which level next, or enough: history in, step out.

The policy escalates with overdose control and asks a sequential test on both sides of the boundary:

1. **Ramp.** 2, then at most twice the level before, with a cheap screen per step (`core.verdict`). The predicted tail
   aims the step at 90 % of the limit (tail as a power of N through the last two levels); at most x 1.5 after a
   violation, x 1.15-1.4 while the engine shows queueing or KV pressure. The first failed screen is the roof.
2. **Boundary.** A posterior of the capacity over all levels together (`core.posterior`). Stay on an undecided level
   while it lies between the 5 % and the 65 % quantile; else go to the 25 % quantile (35 % while it is wide), strictly
   between the highest certified and the lowest refuted level and at most x 1.6 above the highest good one.
3. **Stop** when refuted / certified <= 1.12 or they are neighbours, when the median is within 15 % of the certified
   level, when the highest level is certified, when the lowest fails, when the level to go to has proved to lie inside
   the indifference zone, or when a budget ends.
4. **Answer:** the certified level; where a budget ended first, the 20 % quantile if it is higher (and then only
   provisional), below every refuted level and not above the highest locally good one.

Pure and replayable: the state is recomputed from the history, so a stored sweep can be resumed or judged anew. Every
`Measure` becomes one visit; the same level twice is one stay without a second warm-up. Sample sizes are those of a P99
and scale with the allowance of the strictest objective.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from calibrator.core.clumps import design_effect, effect_at
from calibrator.core.measurement import Bounds, Capacity, History, Visit
from calibrator.core.posterior import Counts, ObjectiveData, Posterior, capacity_posterior
from calibrator.core.search_steps import Conclusion, Measure, Step, Test
from calibrator.core.sweep_record import Grade, SweepOutcome, VerdictKind
from calibrator.core.verdict import judged, level_verdict, screen_leans_good, screen_result, zone

START_LEVEL = 2
GROW_MOST = 2.0
GROW_LEAST = 1.4
GROW_AFTER_VIOLATION = 1.5
GROW_UNDER_PRESSURE = (1.15, 1.4)
AIM_RATIO = 0.9  # of the limit, for the predicted tail of the next step
SCREEN_SAMPLES = 96
COHORT = (48, 128)  # samples of one stay in the boundary phase, between which the level's own number lies
ENOUGH_SAMPLES = 700  # an undecided level is given up after this many
BRACKET_RATIO = 1.12
TIGHT_RATIO = 1.15
REACH_RATIO = 1.6
OVERDOSE = 0.25
OVERDOSE_WHILE_WIDE = 0.35
WIDE_RATIO = 1.6
STAY_BETWEEN = (0.05, 0.65)  # quantiles of the capacity between which an undecided level is worth staying at
PUBLISHED_QUANTILE = 0.20
NEARLY = 1.08  # a certified level is published rather than an estimate so little above it
MOST_SPOILT = 2  # visits in a row that the audit rejects


@dataclass(frozen=True, slots=True)
class _State:
    """What the boundary phase knows."""

    history: History
    bounds: Bounds
    posterior: Posterior
    certified: int  # 0: none
    refuted: int | None
    locally_good: tuple[int, ...]  # levels whose own evidence does not speak against them

    @property
    def over(self) -> str:
        """The budget that ended, in words; empty while none has."""
        history, bounds = self.history, self.bounds
        expected = min(max(self.certified, self.posterior.quantile(0.5)), bounds.max_level)
        if history.requests >= bounds.requests + bounds.requests_per_level * expected:
            return f"the request budget ended ({history.requests} sent)"
        if history.elapsed_s >= bounds.duration_s:
            return f"the time budget ended ({history.elapsed_s:.0f} s)"
        if overload_s(history) >= bounds.overload_s:
            return f"the overload budget ended ({overload_s(history):.0f} s above the limit)"
        return ""


def next_step(history: History, bounds: Bounds) -> Step:
    """The next level to measure, or the conclusion."""
    spoilt = _spoilt_in_a_row(history)
    if 0 < spoilt < MOST_SPOILT:
        return _again(history)
    ramp = _ramp(history, bounds)
    if ramp is not None and not history.visits:
        return ramp
    state = _state(history, bounds)
    if spoilt:
        reasons = "; ".join(history.visits[-1].audit.reasons)
        return _provisional(state, f"level {history.visits[-1].level} could not be judged: {reasons}")
    if ramp is not None:
        return _provisional(state, state.over) if state.over else ramp
    return _conclude(state) or _approach(state)


def overload_s(history: History) -> float:
    """Seconds above the zone caused by us: visits with two violations or more, at a ratio above its upper end."""
    return sum(visit.duration_s for visit in history.visits if _is_overloaded(history, visit))


def _is_overloaded(history: History, visit: Visit) -> bool:
    if visit.ramp_failed:
        return True
    return any(
        part.exceedances >= 2 and part.exceedances > zone(objective).p1 * part.n
        for objective, part in zip(history.objectives, visit.evidence, strict=True)
    )


def _spoilt_in_a_row(history: History) -> int:
    count = 0
    for visit in reversed(history.visits):
        if not visit.audit.reasons or visit.level != history.visits[-1].level:
            break
        count += 1
    return count


def _again(history: History) -> Measure:
    level = history.visits[-1].level
    return Measure(level, Test.VERDICT, _cohort(history, level), f"level {level} again: {_first_reason(history)}")


def _first_reason(history: History) -> str:
    return history.visits[-1].audit.reasons[0]


# -------------------------------------------------------------------------------------------------------------- ramp
def _ramp(history: History, bounds: Bounds) -> Measure | None:
    """The ramp's next step; None once a screen has failed (and a lower one passed) or the highest level has passed."""
    level = min(max(START_LEVEL, bounds.min_level), bounds.max_level)
    passed: list[Visit] = []
    has_failed = False
    for visit in judged(history):
        good = screen_result(history.objectives, visit)
        if good is None:
            good = screen_leans_good(history.objectives, visit)
        if good:
            passed.append(visit)
        has_failed = has_failed or not good
        if has_failed and (passed or visit.level <= bounds.min_level):
            return None
        if visit.level >= bounds.max_level and good:
            return None
        level = _grown(history, passed, bounds) if good else max(bounds.min_level, visit.level // 2)
    return Measure(level, Test.SCREEN, _scaled(history, SCREEN_SAMPLES), _ramp_reason(passed, level))


def _ramp_reason(passed: Sequence[Visit], level: int) -> str:
    return f"ramp: {passed[-1].level} is not overloaded" if passed else f"ramp: start at {level}"


def _grown(history: History, passed: Sequence[Visit], bounds: Bounds) -> int:
    visit = passed[-1]
    factor = min(_aimed(passed, index) for index in range(len(history.objectives)))
    if visit.server.shows_pressure:
        factor = min(max(factor, GROW_UNDER_PRESSURE[0]), GROW_UNDER_PRESSURE[1])
    else:
        factor = max(factor, GROW_LEAST)
    if any(part.exceedances for part in visit.evidence):
        factor = min(factor, GROW_AFTER_VIOLATION)
    return min(bounds.max_level, max(visit.level + 1, math.floor(visit.level * factor + 1e-9)))


def _aimed(passed: Sequence[Visit], index: int) -> float:
    """Growth after which the tail of this objective is expected at `AIM_RATIO` of its limit, at most `GROW_MOST`."""
    points = [(visit.level, visit.tail_ratio[index]) for visit in passed if index < len(visit.tail_ratio)]
    known = [(level, tail) for level, tail in points if tail is not None and tail > 0.0]
    if not known or known[-1][0] != passed[-1].level:
        return GROW_MOST
    level, tail = known[-1]
    power = 0.8  # the seed curve: P99 grows with about N^0.8
    if len(known) >= 2 and known[-2][0] < level:
        power = min(2.0, max(0.5, math.log(tail / known[-2][1]) / math.log(level / known[-2][0])))
    return min(GROW_MOST, float((AIM_RATIO / tail) ** (1.0 / power)))


# ---------------------------------------------------------------------------------------------------------- boundary
def _state(history: History, bounds: Bounds) -> _State:
    levels = sorted({visit.level for visit in judged(history)})
    kinds = {level: level_verdict(history, level).kind for level in levels}
    refuted = min((level for level in levels if kinds[level] is VerdictKind.EXCEEDED), default=None)
    within = (level for level in levels if kinds[level] is VerdictKind.WITHIN)
    certified = max((level for level in within if refuted is None or level < refuted), default=0)
    data = tuple(
        ObjectiveData(objective.allowance, _counts(history, index))
        for index, objective in enumerate(history.objectives)
    )
    return _State(
        history=history,
        bounds=bounds,
        posterior=capacity_posterior(data, bounds.min_level, bounds.max_level),
        certified=certified,
        refuted=refuted,
        locally_good=tuple(level for level in levels if _is_locally_good(data, level)),
    )


def _counts(history: History, index: int) -> tuple[Counts, ...]:
    effect = design_effect(history, index)
    totals: dict[int, tuple[int, int]] = {}
    for visit in judged(history):
        n, exceedances = totals.get(visit.level, (0, 0))
        part = visit.evidence[index]
        watched = visit.ramp[index] if visit.ramp_failed else None
        totals[visit.level] = (
            n + part.n + (watched.n if watched else 0),
            exceedances + part.exceedances + (watched.exceedances if watched else 0),
        )
    return tuple(Counts(level, *total, effect_at(level, effect)) for level, total in sorted(totals.items()))


def _is_locally_good(data: Sequence[ObjectiveData], level: int) -> bool:
    """No objective shows more than twice its allowance here, but for one violation."""
    return all(
        counts.exceedances <= 2.0 * each.allowance * counts.n + 1
        for each in data
        for counts in each.counts
        if counts.level == level
    )


def _approach(state: _State) -> Step:
    history, bounds, quantile = state.history, state.bounds, state.posterior.quantile
    current = history.visits[-1].level
    if current > state.certified and _is_undecided(state, current) and not _has_enough(history, current):
        low, high = (quantile(share) for share in STAY_BETWEEN)
        if low <= current <= high:
            return Measure(current, Test.VERDICT, _cohort(history, current), f"level {current} is still undecided")
    share = OVERDOSE_WHILE_WIDE if quantile(0.9) / quantile(0.1) > WIDE_RATIO else OVERDOSE
    level = math.floor(quantile(share) + 0.3)
    top = max(state.locally_good, default=bounds.min_level)
    level = min(level, max(top + 1, int(top * REACH_RATIO)), bounds.max_level)
    if state.refuted is not None:
        level = min(level, state.refuted - 1)
    level = max(level, state.certified + 1, bounds.min_level)
    if _has_enough(history, level) and _is_undecided(state, level):
        return _provisional(state, f"level {level} lies inside the indifference zone, where no affordable test decides")
    return Measure(level, Test.VERDICT, _cohort(history, level), f"the {share:.0%} quantile of the capacity")


def _is_undecided(state: _State, level: int) -> bool:
    return level_verdict(state.history, level).kind is VerdictKind.INCONCLUSIVE


def _has_enough(history: History, level: int) -> bool:
    """Has the objective with the fewest decided samples enough of them here?"""
    visits = [visit for visit in judged(history) if visit.level == level]
    seen = min(sum(visit.evidence[index].n for visit in visits) for index in range(len(history.objectives)))
    return seen >= _scaled(history, ENOUGH_SAMPLES)


def _conclude(state: _State) -> Conclusion | None:
    certified, refuted, quantile = state.certified, state.refuted, state.posterior.quantile
    lowest, highest = state.bounds.min_level, state.bounds.max_level
    if refuted is not None and refuted <= lowest:
        return _infeasible(state)
    if certified >= highest:
        capacity = Capacity(highest, highest, highest, certified)
        return Conclusion(
            SweepOutcome.CALIBRATED, Grade.AT_MAX, capacity, f"level {highest}, the highest allowed, holds"
        )
    if certified and refuted is not None and (refuted - certified <= 1 or refuted / certified <= BRACKET_RATIO):
        return _answer(state, f"level {certified} holds and level {refuted} does not")
    if certified and quantile(0.5) / certified <= TIGHT_RATIO:
        return _answer(state, f"level {certified} holds and the capacity is probably at most 15 % higher")
    if state.over:
        return _provisional(state, state.over)
    return None


def _infeasible(state: _State) -> Conclusion:
    lowest = state.bounds.min_level
    verdict = level_verdict(state.history, lowest)
    return Conclusion(
        SweepOutcome.INFEASIBLE,
        Grade.INFEASIBLE,
        Capacity(0, 0, max(0, lowest - 1)),
        f"even level {lowest} fails: {'; '.join(verdict.reasons)}",
    )


def _estimate(state: _State) -> int:
    """Without a closed bracket: the 20 % quantile, but not above what was seen to be good, nor below the certified."""
    top = max(state.locally_good, default=0)
    estimate = min(math.floor(state.posterior.quantile(PUBLISHED_QUANTILE) + 0.15), top, state.bounds.max_level)
    if state.refuted is not None:
        estimate = min(estimate, state.refuted - 1)
    return state.certified if estimate <= NEARLY * state.certified else estimate


def _capacity(state: _State, estimate: int) -> Capacity:
    """Estimate with the 90 % interval of the posterior, cut by what was certified and refuted."""
    top = state.bounds.max_level if state.refuted is None else state.refuted - 1
    low = max(state.certified, math.floor(state.posterior.quantile(0.05)))
    high = min(top, math.ceil(state.posterior.quantile(0.95)))
    return Capacity(estimate, min(estimate, low), max(estimate, high), state.certified)


def _answer(state: _State, reason: str) -> Conclusion:
    return Conclusion(SweepOutcome.CALIBRATED, Grade.CERTIFIED, _capacity(state, state.certified), reason)


def _provisional(state: _State, reason: str) -> Conclusion:
    """Something else than certainty ended the sweep; what is certified by then stays so."""
    estimate = _estimate(state)
    if estimate < state.bounds.min_level:
        return Conclusion(SweepOutcome.INCONCLUSIVE, None, None, f"{reason}, and no level is known to hold")
    grade = Grade.CERTIFIED if estimate <= state.certified else Grade.PROVISIONAL
    return Conclusion(SweepOutcome.CALIBRATED, grade, _capacity(state, estimate), reason)


# ------------------------------------------------------------------------------------------------------------- sizes
def _scaled(history: History, samples: int) -> int:
    """Samples of a P99 scaled to the strictest objective: a P99.9 needs ten times as many, a P95 a fifth."""
    strictest = min(objective.allowance for objective in history.objectives)
    return max(32, math.ceil(samples * 0.01 / strictest))


def _cohort(history: History, level: int) -> int:
    return _scaled(history, min(max(level, COHORT[0]), COHORT[1]))
