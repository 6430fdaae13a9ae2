"""What a history says about the capacity: recomputed from the values, never carried along.

certified and refuted are distribution-free (`core.search.verdict`); the posterior (`core.search.posterior`) says where
to look, and what to answer where no test was finished. Budgets are read here too, because a budget that has ended is
knowledge.

**Warm-ups.** A watched warm-up may fail a level, never pass it: its counts enter the posterior where it was aborted,
and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from calibrator.core.records.history import Bounds, Capacity, History, RampCount, Stage
from calibrator.core.records.sweep import VerdictKind
from calibrator.core.records.unmeasured import is_unmeasured, merged
from calibrator.core.search.design_effect import design_effect, effect_at
from calibrator.core.search.posterior import Counts, ObjectiveData, Posterior, capacity_posterior
from calibrator.core.search.verdict import judged, level_verdict, zone

CLOSING_QUANTILE = 0.3  # of the capacity: the level that gets the closing test
PUBLISHED_QUANTILE = 0.20  # where no test was finished
MIDDLE = 0.5
WARM_BUDGET_RATIO = 0.5
ENOUGH_SAMPLES = 700  # of a P99: an undecided level is given up after this many


@dataclass(frozen=True, slots=True)
class SearchState:
    """What is known after the last stage."""

    history: History
    bounds: Bounds
    posterior: Posterior
    certified: int  # highest level that passed its own test below every refuted one; 0: none
    refuted: int | None  # lowest
    locally_good: tuple[int, ...]  # levels whose own evidence does not speak against them, ascending

    @property
    def spent(self) -> str:
        """The budget that ended the sweep, in words; empty while none has."""
        history = self.history
        if history.requests >= self.request_budget:
            return f"the request budget ended ({history.requests} sent)"
        if history.elapsed_s >= self.duration_budget_s:
            return f"the time budget ended ({history.elapsed_s:.0f} s)"
        return ""

    @property
    def request_budget(self) -> float:
        bounds = self.bounds
        expected = min(max(self.certified, self.posterior.quantile(MIDDLE)), bounds.max_level)
        return self._share * bounds.requests + bounds.requests_per_level * expected

    @property
    def duration_budget_s(self) -> float:
        return self._share * self.bounds.duration_s

    @property
    def _share(self) -> float:
        """A warm sweep starts from what is known."""
        return 1.0 if self.history.warm is None else WARM_BUDGET_RATIO

    def estimate(self, share: float) -> int:
        """A quantile, but not above what was seen to be good, nor at a refuted level; 0: none."""
        top = max(self.locally_good, default=0)
        estimate = min(math.floor(self.posterior.quantile(share) + 0.15), top, self.bounds.max_level)
        return estimate if self.refuted is None else min(estimate, self.refuted - 1)

    def is_undecided(self, level: int) -> bool:
        return level_verdict(self.history, level).kind is VerdictKind.INCONCLUSIVE

    def capacity(self, estimate: int) -> Capacity:
        """With the 90 % interval of the posterior, cut by what was certified and refuted."""
        top = self.bounds.max_level if self.refuted is None else self.refuted - 1
        low = max(self.certified, math.floor(self.posterior.quantile(0.05)))
        high = min(top, math.ceil(self.posterior.quantile(0.95)))
        return Capacity(estimate, min(estimate, low), max(estimate, high), self.certified)


def candidates(history: History, bounds: Bounds) -> Bounds:
    """Without the levels that live traffic fills by itself; the highest always stays."""
    lowest = min(max(bounds.min_level, history.organic_floor + 1), bounds.max_level)
    return replace(bounds, min_level=lowest)


def know(history: History, bounds: Bounds) -> SearchState:
    """Everything that `history` says."""
    levels = sorted({stage.level for stage in judged(history)})
    kinds = {level: level_verdict(history, level).kind for level in levels}
    refuted = min((level for level in levels if kinds[level] is VerdictKind.EXCEEDED), default=None)
    within = (level for level in levels if kinds[level] is VerdictKind.WITHIN)
    certified = max((level for level in within if refuted is None or level < refuted), default=0)
    data = _data(history)
    posterior = capacity_posterior(data, bounds.min_level, bounds.max_level)
    if history.warm is not None:
        posterior = posterior.given(history.warm.capacities, history.warm.weights)
    return SearchState(
        history=history,
        bounds=candidates(history, bounds),
        posterior=posterior,
        certified=certified,
        refuted=refuted,
        locally_good=tuple(
            level for level in levels if _is_locally_good(data, level) and not _is_unmeasured(history, level)
        ),
    )


def overload_s(history: History, live: Sequence[tuple[float, float]] = ()) -> float:
    """Seconds above the zone caused by us. `live`: spells in which live requests were, each counted once."""
    probed = [stage for stage in history.stages if _is_overloaded(history, stage)]
    shared_s = sum(
        max(0.0, min(end_s, stage.ended_at_s) - max(start_s, stage.started_at_s))
        for start_s, end_s in live
        for stage in probed
    )
    return sum(stage.duration_s for stage in probed) + sum(end_s - start_s for start_s, end_s in live) - shared_s


def _is_overloaded(history: History, stage: Stage) -> bool:
    """Two violations or more, at a ratio above the zone's upper end."""
    return stage.ramp_failed or any(
        part.exceedances >= 2 and part.exceedances > zone(objective).p1 * part.n
        for objective, part in zip(history.objectives, stage.evidence, strict=True)
    )


def must_leave(history: History, bounds: Bounds) -> bool:
    """Is the running stage, last in `history`, to end whatever its test says?

    Requests need no such limit: a stage asks for few. Once the overload budget is spent, stages that do no harm go on.
    """
    running = history.stages[-1]
    if running.ramp_failed or running.ended_at_s >= bounds.duration_s:
        return True
    return overload_s(history) >= bounds.overload_s and _is_overloaded(history, running)


def samples_at(history: History, level: int) -> int:
    """Decided samples that may be judged, of the objective with the fewest."""
    stages = [stage for stage in judged(history) if stage.level == level]
    return min(sum(stage.evidence[index].n for stage in stages) for index in range(len(history.objectives)))


def scaled(history: History, samples: int) -> int:
    """Samples of a P99 scaled to the strictest objective: a P99.9 needs ten times as many, a P95 a fifth."""
    strictest = min(objective.allowance for objective in history.objectives)
    return max(32, math.ceil(samples * 0.01 / strictest))


def _data(history: History) -> tuple[ObjectiveData, ...]:
    return tuple(
        ObjectiveData(objective.allowance, _counts(history, index))
        for index, objective in enumerate(history.objectives)
    )


def _counts(history: History, index: int) -> tuple[Counts, ...]:
    effect = design_effect(history, index)
    totals: dict[int, tuple[int, int]] = {}
    for stage in judged(history):
        n, exceedances = totals.get(stage.level, (0, 0))
        part = stage.evidence[index]
        watched = _aborted(history.objectives[index].allowance, stage, index)
        totals[stage.level] = (n + part.n + watched.n, exceedances + part.exceedances + watched.exceedances)
    return tuple(Counts(level, *total, effect_at(level, effect)) for level, total in sorted(totals.items()))


def _aborted(allowance: float, stage: Stage, index: int) -> RampCount:
    """What a warm-up showed that speaks against its level; nothing where the level itself was measured."""
    count = stage.ramp[index] if index < len(stage.ramp) else RampCount()
    bad = stage.ramp_failed or count.exceedances > 2.0 * allowance * count.n
    return count if bad and not stage.evidence[index].n else RampCount()


def _is_unmeasured(history: History, level: int) -> bool:
    """Of one objective too little was seen at this level."""
    stages = [stage for stage in judged(history) if stage.level == level]
    parts = zip(*(stage.evidence for stage in stages), strict=True)
    return any(is_unmeasured(sum(one.n for one in part), merged(one.missing for one in part)) for part in parts)


def _is_locally_good(data: Sequence[ObjectiveData], level: int) -> bool:
    """No objective shows more than twice its allowance here, but for one violation."""
    return all(
        counts.exceedances <= 2.0 * each.allowance * counts.n + 1
        for each in data
        for counts in each.counts
        if counts.level == level
    )
