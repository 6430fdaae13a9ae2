"""What a sweep will cost before it runs, and whether its budget can certify anything at all.

Verdicts come from Wald's sequential test between the ends of the indifference zone, p0 = a/2 and p1 = 2a for the
allowance a = 1 - quantile, at 5 % error both ways (`core.search.verdict`). Per sample the log-likelihood ratio moves by

    ln((1 - p1) / (1 - p0))   after a pass        (a = 1 %: -0.0152)
    ln(p1 / p0) = ln 4        after a violation

and the level is certified when it has fallen to ln(0.05 / 0.95) = -ln 19. Hence, with a design effect d (violations
come in clusters; every step is divided by d, which is 2 from level 3 on as long as nothing is violated:
`core.search.design_effect`):

    certain minimum   n_min = d ln 19 / ln((1 - p0) / (1 - p1))             a = 1 %: 194 d; a = 0.1 %: 1,947 d
    expected number   n(p)  = 0.9 ln 19 / |E_p[step]|  at p0 and at p1      a = 1 %: 324 and 206   (Wald)

A search needs about two passing verdicts and one failing one around the capacity, a screen of 24 requests at every
doubling on the way up, and about a third of its requests to warm levels up: 1,415 for P99 with bounds 1..512, where the
simulation of the search measured 1,479. Tokens follow from the workload's mix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from calibrator.core.records.history import Bounds
from calibrator.core.records.objective import Metric, Objective
from calibrator.core.search.design_effect import PRIOR, effect_at
from calibrator.core.search.verdict import DECIDED, SCREEN_LEAST, zone
from calibrator.core.workload.classes import Workload

WARM_UP_RATIO = 0.32  # of all requests sent
ORDINARY_LEVEL = 3  # from here on clusters count in full; levels 1 and 2 need fewer requests to be certified


@dataclass(frozen=True, slots=True)
class SweepCost:
    """`bound`: where the budget ends any sweep; `expected`: a typical search."""

    requests_expected: int
    requests_bound: int
    prompt_tokens_expected: int
    prompt_tokens_bound: int
    output_tokens_expected: int
    output_tokens_bound: int
    duration_bound_s: float


def sweep_cost(bounds: Bounds, objectives: Sequence[Objective], workload: Workload) -> SweepCost:
    """Cost of one search on one replica. `objectives` must not be empty."""
    bound = request_budget(bounds, bounds.max_level)
    expected = min(bound, max(_expected_requests(bounds, objective, workload) for objective in objectives))
    total_share = sum(cls.share for cls in workload.classes)
    prompt = sum(cls.share * cls.mean_prompt_tokens for cls in workload.classes) / total_share
    output = sum(cls.share * cls.output_tokens for cls in workload.classes) / total_share
    return SweepCost(
        requests_expected=expected,
        requests_bound=bound,
        prompt_tokens_expected=round(expected * prompt),
        prompt_tokens_bound=round(bound * prompt),
        output_tokens_expected=round(expected * output),
        output_tokens_bound=round(bound * output),
        duration_bound_s=bounds.duration_s,
    )


def can_certify(bounds: Bounds, objectives: Sequence[Objective], workload: Workload | None = None) -> str | None:
    """Why a sweep cannot certify every objective even at the cheapest ordinary level, and the remedy; None: it can.

    Assumes the best case: every user turns over once to warm up the level, and then nothing fails.
    """
    level = min(bounds.max_level, max(bounds.min_level, ORDINARY_LEVEL))
    budget = request_budget(bounds, level)
    for objective in sorted(objectives, key=lambda one: one.allowance):
        share = 1.0 if workload is None else judged_share(objective, workload)
        if share == 0.0:
            return (
                f"No class of the workload has a value for '{objective}'. "
                "Stream at least one class (without streaming there is only e2e) within the objective's prompt length."
            )
        needed = math.ceil(passes_needed(objective, level) / share) + level
        if needed > budget:
            return (
                f"'{objective}' takes at least {needed} requests to certify, all of them in time, but the budget is "
                f"{budget}. Allow {needed - bounds.requests_per_level * level} requests or more, "
                "or choose a lower quantile."
            )
    return None


def request_budget(bounds: Bounds, level: int) -> int:
    """Requests that a sweep may send when `level` is the highest one it has tried."""
    return bounds.requests + bounds.requests_per_level * level


def passes_needed(objective: Objective, level: int) -> int:
    """Samples without a violation after which the sequential test first answers "within"."""
    return math.ceil(effect_at(level, PRIOR) * DECIDED / -zone(objective).llr(1.0, 0.0))


def judged_share(objective: Objective, workload: Workload) -> float:
    """Share of probes that have this metric and are within the objective's scope."""
    total = sum(cls.share for cls in workload.classes)
    judged = sum(
        cls.share * cls.share_within(objective.applies_to)
        for cls in workload.classes
        if cls.stream or objective.metric is Metric.E2E
    )
    return judged / total


def _expected_samples(objective: Objective, true_ratio: float) -> float:
    return 0.9 * DECIDED / abs(zone(objective).llr(1.0, true_ratio))  # llr is linear: of one average sample


def _expected_requests(bounds: Bounds, objective: Objective, workload: Workload) -> int:
    ends = zone(objective)
    verdicts = 2 * _expected_samples(objective, ends.p0) + _expected_samples(objective, ends.p1)
    doublings = math.log2(max(2.0, math.sqrt(bounds.max_level / bounds.min_level)))  # to the middle of the range
    share = judged_share(objective, workload) or 1.0
    return math.ceil((verdicts / share + SCREEN_LEAST * doublings) / (1.0 - WARM_UP_RATIO))
