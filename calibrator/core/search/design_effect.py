"""Correlated violations: one stall hits several requests, which then are not independent evidence.

A cluster is a run of violations, each within `gap` of the one before (by first token or failure), and no longer than
one residence: what lasts longer is overload, not a stall.

    gap = residence * max(2 / N, min(1/6, 32 / N))

With N of our requests in flight, N complete per residence. So the gap is a sixth of a residence, but at least the time
of 2 and at most that of 32 requests: at high levels independent violations would otherwise be chained by chance.
Overlapping lifetimes are not a criterion: under overload all of them overlap, and nothing would ever be refuted.

Design effect: the variance of a compound-Poisson count against that of independent violations, d = E[s^2] / E[s] over
cluster sizes s. Violations are few, so it is shrunk, with the weight of 3 violations, toward an estimate from
slow spells in the latencies (`core.stats.autocorrelation`), which in turn is shrunk toward 2 with the weight of 100
latencies; it is kept within 1..32. Log-likelihood ratios are divided by d. Stages at or above 20 % exceedance are not
informative about clusters.

Source: runs declustering (extremal index); constants tuned by simulation, see `calibrator simulate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from calibrator.core.records.history import History

PRIOR = 2.0
PRIOR_WEIGHT = 3.0  # violations
PRIOR_SAMPLES = 100.0  # latencies
LARGEST = 32.0
INFORMATIVE_BELOW_RATIO = 0.2


def gap_s(in_flight: float, residence_s: float) -> float:
    """Longest pause between two violations of one stall."""
    return residence_s * max(2.0 / in_flight, min(1.0 / 6.0, 32.0 / in_flight))


def effect_at(level: int, effect: float) -> float:
    """Design effect at one level."""
    return min(effect, (2.0 * level + 1.0) / 3.0)


def clusters(times_s: Sequence[float], gap: float, longest_s: float) -> Iterator[int]:
    """Sizes of the clusters of `times_s` (any order)."""
    size, first_s, last_s = 0, 0.0, 0.0
    for at_s in sorted(times_s):
        if size and at_s - last_s <= gap and at_s - first_s <= longest_s:
            size += 1
        else:
            if size:
                yield size
            size, first_s = 1, at_s
        last_s = at_s
    if size:
        yield size


def design_effect(history: History, objective_index: int) -> float:
    """How many violations of this objective count as one."""
    prior = _expected_effect(history, objective_index)
    squares, total = prior * PRIOR_WEIGHT, PRIOR_WEIGHT
    for stage in history.stages:
        evidence = stage.evidence[objective_index]
        if stage.invalid_reasons or not 0 < evidence.exceedances < INFORMATIVE_BELOW_RATIO * evidence.n:
            continue
        for size in clusters(evidence.violation_at_s, gap_s(stage.probes, stage.residence_s), stage.residence_s):
            squares += size * size
            total += size
    return min(LARGEST, max(1.0, squares / total))


def _expected_effect(history: History, objective_index: int) -> float:
    """The estimate from latencies alone; long series weigh more, because short ones do not show whole spells."""
    newest = {stage.level: stage for stage in history.stages if objective_index < len(stage.correlation)}
    weighted, total = PRIOR * PRIOR_SAMPLES, PRIOR_SAMPLES
    for stage in newest.values():
        seen = stage.correlation[objective_index]
        if seen is not None:
            weight = seen.n * seen.n / (seen.n + PRIOR_SAMPLES)
            weighted += weight * seen.at_tail(history.objectives[objective_index].allowance)
            total += weight
    return weighted / total
