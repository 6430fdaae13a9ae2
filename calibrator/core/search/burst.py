"""Does a level also hold when all its requests arrive at once, after idle?

The capacity is that of the steady state. With `enforce`, bursts have to hold too: it comes down, x 0.8 a step,
until they do.

**Test.** As for a level (`core.search.verdict.zone`): sequential probability ratio test between half and twice the
allowance, 5 % nominal on both sides, for each objective. Requests of one burst wait for each other, so violations of
one burst are one cluster: the ratio is divided by d = sum e_b^2 / sum e_b over the bursts' violations e_b, and a
refutation needs violations in two bursts. At a P99 some 200 requests without a violation pass.

A test that its limits end undecided is answered by its point estimate, and the answer is at most provisional.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from calibrator.core.records.history import Capacity
from calibrator.core.records.objective import Objective, decide_final
from calibrator.core.records.sample import Sample
from calibrator.core.records.sweep import Grade, SweepOutcome, VerdictKind
from calibrator.core.search.steps import Conclusion
from calibrator.core.search.verdict import DECIDED, zone

STEP_DOWN = 0.8
FIRST_VISIT = 1_000_000  # labels of bursts: no stage of the search has them


@dataclass(frozen=True, slots=True)
class BurstBits:
    """One burst: decided bits and violations, for each objective."""

    decided: tuple[int, ...]
    violations: tuple[int, ...]


def burst_bits(objectives: Sequence[Objective], samples: Sequence[Sample]) -> BurstBits:
    bits = [
        [decide_final(one, sample) for sample in samples if one.applies_to(sample.wanted_prompt_tokens)]
        for one in objectives
    ]
    return BurstBits(
        decided=tuple(sum(bit is not None for bit in column) for column in bits),
        violations=tuple(sum(bit is True for bit in column) for column in bits),
    )


def burst_verdict(objectives: Sequence[Objective], bursts: Sequence[BurstBits]) -> VerdictKind:
    """Exceeded if one objective is, within if all are."""
    kinds = {_verdict(objective, index, bursts) for index, objective in enumerate(objectives)}
    if VerdictKind.EXCEEDED in kinds:
        return VerdictKind.EXCEEDED
    return VerdictKind.WITHIN if kinds == {VerdictKind.WITHIN} else VerdictKind.INCONCLUSIVE


def _verdict(objective: Objective, index: int, bursts: Sequence[BurstBits]) -> VerdictKind:
    n = sum(burst.decided[index] for burst in bursts)
    clusters = [burst.violations[index] for burst in bursts if burst.violations[index]]
    effect = sum(size * size for size in clusters) / sum(clusters) if clusters else 1.0
    ratio = zone(objective).llr(n, sum(clusters)) / effect
    if ratio >= DECIDED and len(clusters) > 1:
        return VerdictKind.EXCEEDED
    return VerdictKind.WITHIN if ratio <= -DECIDED else VerdictKind.INCONCLUSIVE


def passes_by_point_estimate(objectives: Sequence[Objective], bursts: Sequence[BurstBits]) -> bool:
    """The answer of a test that ended undecided."""
    return all(
        decided > 0 and sum(burst.violations[index] for burst in bursts) <= objective.allowance * decided
        for index, objective in enumerate(objectives)
        for decided in [sum(burst.decided[index] for burst in bursts)]
    )


def step_down(level: int, min_level: int) -> int | None:
    """The next level whose bursts to look at; None: there is none below."""
    return max(min_level, math.floor(level * STEP_DOWN)) if level > min_level else None


def unlimited(found: Conclusion) -> Conclusion:
    """The conclusion when no burst could be brought to its end."""
    return replace(found, grade=Grade.PROVISIONAL, reason=f"{found.reason}; bursts could not be measured")


def limited(found: Conclusion, capacity: Capacity, level: int | None, *, proven: bool) -> Conclusion:
    """The conclusion after the bursts: those of `level` hold; None: not even those of the lowest level do."""
    if level is None:
        return Conclusion(
            SweepOutcome.INFEASIBLE,
            Grade.INFEASIBLE,
            Capacity(0, 0, 0),
            f"{found.reason}; but not even the smallest burst after idle meets the SLA",
        )
    if level == capacity.estimate:
        grade = found.grade if proven else Grade.PROVISIONAL
        held = "hold" if proven else "probably hold"
        return replace(found, grade=grade, reason=f"{found.reason}; bursts of {level} {held}")
    lowered = Capacity(level, min(level, capacity.low), capacity.estimate, min(level, capacity.certified))
    grade = Grade.CERTIFIED if proven and capacity.certified >= level else Grade.PROVISIONAL
    reason = f"{found.reason}; bursts of {capacity.estimate} do not hold, those of {level} do"
    return Conclusion(found.outcome, grade, lowered, reason)
