"""Does a level also hold when all its requests arrive at once on an idle backend?

The capacity is that of the steady state. With `enforce`, bursts must hold too: the capacity is lowered, x 0.8 per step,
until they do.

**Test.** As for a level (`core.search.verdict.zone`): a sequential probability ratio test between half and twice the
allowance, at a nominal 5 % on both sides, for each objective. Requests of one burst queue behind each other, so the
violations of one burst are one cluster: the ratio is divided by d = sum e_b^2 / sum e_b over the bursts' violations
e_b, and a refutation needs violations in two bursts. For a P99, about 200 requests without a violation pass.

A test that reaches its limits undecided is answered by its point estimate, and the result is at most provisional.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from calibrator.core.records.history import Capacity
from calibrator.core.records.objective import Objective, decide_final
from calibrator.core.records.sample import Sample
from calibrator.core.records.sweep import EndReason, Grade, SweepOutcome, VerdictKind
from calibrator.core.search.steps import Conclusion, Ending
from calibrator.core.search.verdict import DECIDED, zone

LOWER_RATIO = 0.8
FIRST_BURST_STAGE = 1_000_000  # stage numbers in the labels of bursts; no stage of the search has them


@dataclass(frozen=True, slots=True)
class BurstBits:
    """One burst: decided bits and violations of each objective."""

    decided: tuple[int, ...]
    violations: tuple[int, ...]


def burst_bits(objectives: Sequence[Objective], samples: Sequence[Sample]) -> BurstBits:
    bits = [[decide_final(objective, sample) for sample in samples] for objective in objectives]
    return BurstBits(
        decided=tuple(sum(bit is not None for bit in column) for column in bits),
        violations=tuple(sum(bit is True for bit in column) for column in bits),
    )


def burst_verdict(objectives: Sequence[Objective], bursts: Sequence[BurstBits]) -> VerdictKind:
    """Exceeded if any objective is, within if all are."""
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
    """The result of a test that ended undecided."""
    return all(
        decided > 0 and sum(burst.violations[index] for burst in bursts) <= objective.allowance * decided
        for index, objective in enumerate(objectives)
        for decided in [sum(burst.decided[index] for burst in bursts)]
    )


def next_lower_level(level: int, min_level: int) -> int | None:
    """The next level to test with bursts; None: this is the lowest."""
    return max(min_level, math.floor(level * LOWER_RATIO)) if level > min_level else None


def unlimited(found: Conclusion) -> Conclusion:
    """The conclusion when no burst could be completed."""
    return replace(found, grade=Grade.PROVISIONAL, why=_also(found, "bursts could not be measured"))


def limited(found: Conclusion, capacity: Capacity, level: int | None, *, proven: bool) -> Conclusion:
    """The conclusion after the bursts: those of `level` hold; None: not even those of the lowest level do."""
    if level is None:
        why = _also(found, "even the smallest burst on an idle backend breaks the SLA", EndReason.BURSTS)
        return Conclusion(SweepOutcome.INFEASIBLE, Grade.INFEASIBLE, Capacity(0, 0, 0), why)
    if level == capacity.estimate:
        grade = found.grade if proven else Grade.PROVISIONAL
        held = "hold" if proven else "probably hold"
        return replace(found, grade=grade, why=_also(found, f"bursts of {level} {held}"))
    lowered = Capacity(level, min(level, capacity.low), capacity.estimate, min(level, capacity.certified))
    grade = Grade.CERTIFIED if proven and capacity.certified >= level else Grade.PROVISIONAL
    why = _also(found, f"bursts of {capacity.estimate} do not hold, those of {level} do", EndReason.BURSTS)
    return Conclusion(found.outcome, grade, lowered, why)


def _also(found: Conclusion, words: str, code: EndReason | None = None) -> Ending:
    return Ending(code or found.why.code, f"{found.reason}; {words}")
