"""What the evidence says about a level: within the SLA, exceeded, or not known yet.

"P99 <= limit" is a binomial statement: at most the allowance a = 1 % of requests exceed the limit. Near 1 % no
affordable test can tell (1 % from 1.2 % takes some 30,000 requests), so the contract names an indifference zone:

    within <= a / 2   ..  either answer is right  ..   exceeded >= 2 a          (0.5 % and 2 % for P99)

**Test.** Wald's sequential probability ratio test between the ends of the zone, nominal 5 % on both sides, valid at
every look:  L(n, e) = e ln(p1/p0) + (n-e) ln((1-p1)/(1-p0)), divided by the design effect d
(`core.search.design_effect`); exceeded at L >= ln 19, within at L <= -ln 19. For quantiles below P67 the upper end is
(1+a)/2.

**One stall never decides.** `exceeded` also needs
 - violations at least one residence apart, and
 - that the test still says so when the largest cluster counts as a single violation,
or, alone: gross overload, at least 25 % in each quarter of a whole residence. A watched warm-up that failed
(`Stage.ramp_failed`) is gross overload as well.

**Pooling.** More concurrency is never better for the user, so evidence at higher levels helps a pass and evidence at
lower levels helps a fail; every pool starts at the level itself. A fail wins over a pass.

**Screen.** The ramp's cheap question is only "grossly overloaded?": SPRT a against 8 a, alpha 5 %, beta 20 %, on the
running stage alone; 0 of 24 passes a P99 (0 of 32 from level 64), the second early violation fails. The watched warm-up
may fail it as well, at half its weight. It refutes nothing.

**Sentinel.** "Does what held still hold?": SPRT 0.7 a against 4 a at 5 %, on the stages at that level alone.

**Unmeasured.** A request that does not show the metric has no bit (`records.unmeasured`). A level with no bit at all,
or with many such holes, is never `within`, whatever its bits or higher levels say; a fail stands.

Stages whose audit has reasons, or whose level live traffic changed, are not judged. A level with no other stage is
inconclusive for those reasons.
Called by the stage every 50 ms (`is_settled`), by the search and by the curve (`level_verdict`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from calibrator.core.records.history import Evidence, History, RampCount, Stage
from calibrator.core.records.objective import Objective
from calibrator.core.records.sweep import ObjectiveVerdict, Verdict, VerdictKind
from calibrator.core.records.unmeasured import is_unmeasured, merged, words
from calibrator.core.search.design_effect import PRIOR, clusters, design_effect, effect_at, gap_s
from calibrator.core.search.steps import Measure, Test
from calibrator.core.stats.quantile import ratio_interval

DECIDED = math.log(19.0)  # Wald's bounds ln((1-b)/a) for a = b = 5 %
SCREEN_FAILS = math.log(0.80 / 0.05)  # alpha 5 %, beta 20 %
SCREEN_PASSES = math.log(0.20 / 0.95)
SCREEN_LEAST = 24  # samples, so that the step is aimed by something; 32 from SCREEN_WIDE on
SCREEN_LEAST_WIDE = 32
SCREEN_WIDE = 64
SCREEN_TOLERATED = 3.0  # undecided at its last sample, a screen passes up to this multiple of the allowance
SENTINEL_PASSES = math.log(0.95 / 0.10)  # alpha 5 %, beta 10 %: the guard and the next sweep look again
SENTINEL_ENDS = (0.7, 4.0)  # in allowances; wider than the zone: cheap, and blind to small changes
SENTINEL_TOLERATED = 1.5
GROSS_RATIO = 0.25
GROSS_COUNT = 4
QUARTERS = 4


@dataclass(frozen=True, slots=True)
class Sprt:
    """Log-likelihood ratio of "p1" against "p0" for n bits with e ones."""

    p0: float
    p1: float

    def llr(self, n: float, exceedances: float) -> float:
        return exceedances * math.log(self.p1 / self.p0) + (n - exceedances) * math.log((1 - self.p1) / (1 - self.p0))


def zone(objective: Objective) -> Sprt:
    """The ends of the indifference zone: half and twice the allowance."""
    allowance = objective.allowance
    return Sprt(allowance / 2.0, min(2.0 * allowance, (1.0 + allowance) / 2.0))


def level_verdict(history: History, level: int) -> Verdict:
    """Over all objectives: exceeded if any is, within if all are. A level without stages is judged by the others."""
    here = history.at_level(level)
    invalid_reasons = [reason for stage in here for reason in stage.invalid_reasons]
    if here and all(stage.invalid_reasons for stage in here):
        return Verdict(VerdictKind.INCONCLUSIVE, tuple(dict.fromkeys(invalid_reasons)))
    each = tuple(_objective_verdict(history, level, index) for index in range(len(history.objectives)))
    kinds = {verdict.kind for verdict in each}
    if VerdictKind.EXCEEDED in kinds:
        kind = VerdictKind.EXCEEDED
    elif kinds == {VerdictKind.WITHIN}:
        kind = VerdictKind.WITHIN
    else:
        kind = VerdictKind.INCONCLUSIVE
    reasons = (verdict.reason for verdict in each if verdict.kind is kind)
    return Verdict(kind, tuple(dict.fromkeys(reasons)), each)


def is_settled(history: History, measure: Measure) -> bool:
    """May the running stage, last in `history`, end? The sample limit ends any test, a failed ramp all but `fixed`."""
    running = history.stages[-1]
    if min(evidence.n for evidence in running.evidence) >= measure.max_samples:
        return True
    if measure.test is Test.FIXED:
        return False
    if running.ramp_failed or running.is_given_up:
        return True
    if measure.test is Test.SCREEN:
        return screen_result(history.objectives, running) is not None
    if measure.test is Test.SENTINEL:
        return sentinel_result(history, measure.level) is not None
    return level_verdict(history, measure.level).kind is not VerdictKind.INCONCLUSIVE


# ------------------------------------------------------------------------------------------------------------ screen
def screen_result(objectives: Sequence[Objective], stage: Stage) -> bool | None:
    """Not grossly overloaded? None: not known yet."""
    if stage.ramp_failed:
        return False
    results = [
        _screen(objective, stage.level, part, watched)
        for objective, part, watched in zip(objectives, stage.evidence, stage.ramp, strict=True)
    ]
    return _all(results)


def _all(results: Sequence[bool | None]) -> bool | None:
    return False if False in results else None if None in results else True


def _screen(objective: Objective, level: int, evidence: Evidence, watched: RampCount) -> bool | None:
    allowance = objective.allowance
    test = Sprt(allowance, min(8.0 * allowance, (1.0 + allowance) / 2.0))
    ratio = test.llr(evidence.n, evidence.exceedances)
    if max(ratio, test.llr(watched.n, watched.exceedances) / PRIOR) >= SCREEN_FAILS:
        return False
    least = SCREEN_LEAST if level < SCREEN_WIDE else SCREEN_LEAST_WIDE
    return True if ratio <= SCREEN_PASSES and evidence.n >= least else None


def screen_passes_by_point_estimate(objectives: Sequence[Objective], stage: Stage) -> bool:
    """The answer of a screen that ended undecided: by its point estimate."""
    return all(
        part.n > 0 and part.exceedances <= SCREEN_TOLERATED * objective.allowance * part.n
        for objective, part in zip(objectives, stage.evidence, strict=True)
    )


# ---------------------------------------------------------------------------------------------------------- sentinel
def sentinel_result(history: History, level: int) -> bool | None:
    """Does the level still hold? None: not known yet."""
    stages = [stage for stage in judged(history) if stage.level == level]
    if any(stage.ramp_failed for stage in stages):
        return False
    return _all([_sentinel(history, stages, level, index) for index in range(len(history.objectives))])


def _sentinel(history: History, stages: Sequence[Stage], level: int, index: int) -> bool | None:
    allowance = history.objectives[index].allowance
    good, bad = SENTINEL_ENDS
    test = Sprt(good * allowance, min(bad * allowance, (1.0 + 2.0 * allowance) / 3.0))
    n, exceedances = _totals(stages, index)
    ratio = test.llr(n, exceedances) / effect_at(level, design_effect(history, index))
    return False if ratio >= DECIDED else True if ratio <= -SENTINEL_PASSES else None


def sentinel_passes_by_point_estimate(history: History, level: int) -> bool:
    """The answer of a sentinel that ended undecided: by its point estimate."""
    stages = [stage for stage in judged(history) if stage.level == level]
    return all(
        n > 0 and exceedances <= SENTINEL_TOLERATED * objective.allowance * n
        for index, objective in enumerate(history.objectives)
        for n, exceedances in [_totals(stages, index)]
    )


def _totals(stages: Sequence[Stage], index: int) -> tuple[int, int]:
    parts = [stage.evidence[index] for stage in stages]
    return sum(part.n for part in parts), sum(part.exceedances for part in parts)


# ----------------------------------------------------------------------------------------------------------- verdict
def judged(history: History) -> list[Stage]:
    """The stages that may be judged."""
    return [stage for stage in history.stages if not stage.invalid_reasons]


def _objective_verdict(history: History, level: int, index: int) -> ObjectiveVerdict:
    objective = history.objectives[index]
    effect = design_effect(history, index)
    stages = judged(history)
    kind, why = _judge(objective, stages, level, index, effect)
    here = [stage for stage in stages if stage.level == level]
    n, exceedances = _totals(here, index)
    missing = merged(stage.evidence[index].missing for stage in here)
    if kind is not VerdictKind.EXCEEDED and is_unmeasured(n, missing):
        kind, why = VerdictKind.INCONCLUSIVE, words(objective, n, missing)
    effective_n = n / effect_at(level, effect)
    low, high = ratio_interval(exceedances, n, effective_n)
    seen = f"{objective}: {exceedances} of {n} requests exceeded at concurrency {level}"
    return ObjectiveVerdict(str(objective), kind, n, effective_n, exceedances, low, high, f"{seen}; {why}", missing)


def _judge(
    objective: Objective, stages: Iterable[Stage], level: int, index: int, effect: float
) -> tuple[VerdictKind, str]:
    below: dict[int, list[Stage]] = {}
    above: dict[int, list[Stage]] = {}
    for stage in stages:
        if stage.level <= level:
            below.setdefault(stage.level, []).append(stage)
        if stage.level >= level and not stage.evidence[index].is_unmeasured:
            above.setdefault(stage.level, []).append(stage)
    test = zone(objective)
    why = _exceeded(objective, below, index, effect)
    if why:
        return VerdictKind.EXCEEDED, why
    why = _within(test, above, index, effect)
    if why:
        return VerdictKind.WITHIN, why
    return VerdictKind.INCONCLUSIVE, f"too few to tell {test.p0:.3g} from {test.p1:.3g} (ratio of exceeding requests)"


def _within(test: Sprt, above: dict[int, list[Stage]], index: int, effect: float) -> str:
    n, exceedances, ratio = 0, 0, 0.0
    for level in sorted(above):
        for stage in above[level]:
            part = stage.evidence[index]
            n, exceedances = n + part.n, exceedances + part.exceedances
            ratio += test.llr(part.n, part.exceedances) / effect_at(level, effect)
        if ratio <= -DECIDED:
            pooled = "" if len(above) == 1 else f" ({exceedances} of {n} from here up to {level})"
            return f"the test for at most {test.p0:.3g} passed{pooled}"
    return ""


def _exceeded(objective: Objective, below: dict[int, list[Stage]], index: int, effect: float) -> str:
    test = zone(objective)
    n, exceedances, ratio = 0, 0, 0.0
    pool: list[Stage] = []
    for level in sorted(below, reverse=True):
        latest = below[level][-1]
        if latest.ramp_failed and ramp_has_failed(objective, latest.ramp[index]):
            return f"the watched warm-up at {level} failed"
        if any(_is_gross(stage, index, test) for stage in below[level]):
            return f"at least {_gross_ratio(test):.0%} exceeded over a whole residence at {level}"
        pool.extend(below[level])
        for stage in below[level]:
            part = stage.evidence[index]
            n, exceedances = n + part.n, exceedances + part.exceedances
            ratio += test.llr(part.n, part.exceedances) / effect_at(level, effect)
        if ratio >= DECIDED and _outlasts_a_stall(test, pool, index, effect):
            pooled = "" if len(below) == 1 else f" ({exceedances} of {n} from {level} up to here)"
            return f"the test for at least {test.p1:.3g} passed{pooled}"
    return ""


def has_failed_warm_up(objectives: Sequence[Objective], ramp: Sequence[RampCount]) -> bool:
    """Gross overload of any objective in a watched warm-up; `ramp`: one count per objective, same order."""
    return any(map(ramp_has_failed, objectives, ramp))


def ramp_has_failed(objective: Objective, count: RampCount) -> bool:
    """Gross overload of one objective in a watched warm-up."""
    return count.exceedances >= max(GROSS_COUNT, _gross_ratio(zone(objective)) * count.n)


def _gross_ratio(test: Sprt) -> float:
    """25 %, or the upper end of the zone where that is higher: below P90 a quarter is nothing gross."""
    return max(GROSS_RATIO, test.p1)


def _is_gross(stage: Stage, index: int, test: Sprt) -> bool:
    """Enough violations in each quarter of one whole residence; counted from the stage's first violation."""
    evidence = stage.evidence[index]
    per_quarter = _gross_ratio(test) * stage.probes / QUARTERS
    if stage.residence_s <= 0.0 or evidence.exceedances < max(GROSS_COUNT, QUARTERS * per_quarter):
        return False
    first_s = min(evidence.violation_at_s)
    counts: dict[int, int] = {}
    for at_s in evidence.violation_at_s:
        quarter = int((at_s - first_s) / stage.residence_s * QUARTERS)
        counts[quarter] = counts.get(quarter, 0) + 1
    run = 0
    for quarter in range(max(counts) + 1):
        run = run + 1 if counts.get(quarter, 0) >= max(1.0, per_quarter) else 0
        if run >= QUARTERS:
            return True
    return False


def _outlasts_a_stall(test: Sprt, pool: Sequence[Stage], index: int, effect: float) -> bool:
    """Violations a residence apart, and the test decided even if the largest cluster counts as one violation."""
    times_s = [at_s for stage in pool for at_s in stage.evidence[index].violation_at_s]
    residence_s = max((stage.residence_s for stage in pool if stage.evidence[index].exceedances), default=0.0)
    if residence_s <= 0.0 or max(times_s) - min(times_s) < residence_s:
        return False
    ratio, most = 0.0, 0.0
    for level in {stage.level for stage in pool}:
        stay = [stage for stage in pool if stage.level == level]  # a stall may outlast one stage of a level
        here = effect_at(level, effect)
        ratio += sum(test.llr(stage.evidence[index].n, stage.evidence[index].exceedances) for stage in stay) / here
        surplus = _largest_cluster(stay, index) - 1
        most = max(most, test.llr(surplus, surplus) / here)
    return ratio - most >= DECIDED


def _largest_cluster(stages: Sequence[Stage], index: int) -> int:
    residence_s = max(stage.residence_s for stage in stages)
    times_s = [at_s for stage in stages for at_s in stage.evidence[index].violation_at_s]
    return max(clusters(times_s, gap_s(stages[0].probes, residence_s), residence_s), default=1)
