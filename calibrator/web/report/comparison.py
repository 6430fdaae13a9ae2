"""Comparison of two sweeps: differences in their conditions, and whether results differ significantly.

Every figure has a 95 % interval. If nothing has changed, two such intervals are disjoint less than once in a hundred
times, for each pair compared. Overlapping intervals show no difference, which does not mean "equal". Figures without a
bounded interval are not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from calibrator.core.records.objective import Objective
from calibrator.web.wire.sweeps import LatencyDocument, LevelDocument, SweepDocument


class Change(StrEnum):
    """Of this sweep relative to the other."""

    HIGHER = "higher"
    LOWER = "lower"
    WITHIN = "no significant difference"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Difference:
    """One condition that differs between two sweeps."""

    name: str
    ours: str
    theirs: str


@dataclass(frozen=True, slots=True)
class Pair:
    """One level of both; None where a sweep did not measure it. `changes`: of the P99, by objective."""

    concurrency: int
    ours: LevelDocument | None
    theirs: LevelDocument | None
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    other: SweepDocument
    differences: tuple[Difference, ...]
    pairs: tuple[Pair, ...]
    capacity: Change
    messages: tuple[str, ...]


def compare(ours: SweepDocument, theirs: SweepDocument) -> Comparison:
    objectives = ours.provenance.objectives
    mine = {level.concurrency: level for level in ours.levels}
    other = {level.concurrency: level for level in theirs.levels}
    pairs = tuple(
        Pair(level, mine.get(level), other.get(level), _changes(mine.get(level), other.get(level), objectives))
        for level in sorted({*mine, *other})
    )
    messages = (_of_capacities(ours, theirs), *_of_tails(objectives, pairs))
    return Comparison(theirs, tuple(differences(ours, theirs)), pairs, _capacity_change(ours, theirs), messages)


def differences(ours: SweepDocument, theirs: SweepDocument) -> list[Difference]:
    """Conditions that differ, so that a difference in results may not be due to the backend."""
    names: Mapping[str, Callable[[SweepDocument], str]] = {
        "URL": lambda one: one.provenance.url,
        "model": lambda one: one.provenance.model,
        "engine": lambda one: one.provenance.engine or "unknown",
        "objectives": lambda one: ", ".join(map(str, one.provenance.objectives)),
        "workload": lambda one: one.provenance.workload,
        "calibrator": lambda one: one.provenance.software,
    }
    both = ((name, of(ours), of(theirs)) for name, of in names.items())
    return [Difference(name, mine, other) for name, mine, other in both if mine != other]


def latency(level: LevelDocument, objective: Objective) -> LatencyDocument:
    summary: LatencyDocument = getattr(level, f"{objective.metric.value}_s")
    return summary


def _changes(
    ours: LevelDocument | None, theirs: LevelDocument | None, objectives: Sequence[Objective]
) -> tuple[Change, ...]:
    if ours is None or theirs is None:
        return (Change.UNKNOWN,) * len(objectives)
    return tuple(
        change(latency(ours, objective).p99_interval, latency(theirs, objective).p99_interval)
        for objective in objectives
    )


def change(ours: Sequence[float | None] | None, theirs: Sequence[float | None] | None) -> Change:
    """Of two intervals (low, high); a bound that is None may be anywhere."""
    if ours is None or theirs is None:
        return Change.UNKNOWN
    (low, high), (other_low, other_high) = ours, theirs
    if low is not None and other_high is not None and low > other_high:
        return Change.HIGHER
    if high is not None and other_low is not None and high < other_low:
        return Change.LOWER
    return Change.UNKNOWN if None in (low, high, other_low, other_high) else Change.WITHIN


def _capacity_change(ours: SweepDocument, theirs: SweepDocument) -> Change:
    mine, other = ours.capacity, theirs.capacity
    if mine is None or other is None:
        return Change.UNKNOWN
    return change((mine.low, mine.high), (other.low, other.high))


def _of_capacities(ours: SweepDocument, theirs: SweepDocument) -> str:
    mine, other = ours.capacity, theirs.capacity
    if mine is None or other is None:
        missing = "neither sweep has one" if mine is other else f"{'the other' if mine else 'this'} sweep has none"
        return f"Capacities cannot be compared: {missing}."
    figures = f"{mine.estimate} ({mine.low} to {mine.high}) vs. {other.estimate} ({other.low} to {other.high})"
    found = _capacity_change(ours, theirs)
    if found is Change.WITHIN:
        return f"No significant change of the capacity: {figures}; the intervals overlap."
    return f"The capacity is significantly {found}: {figures}; the intervals do not overlap."


_SENTENCES = {
    Change.HIGHER: "is significantly higher",
    Change.LOWER: "is significantly lower",
    Change.WITHIN: "does not differ significantly",
}


def _of_tails(objectives: Sequence[Objective], pairs: Sequence[Pair]) -> Iterator[str]:
    """One sentence per objective, over the levels that both sweeps measured."""
    for index, objective in enumerate(objectives):
        levels = {kind: [str(pair.concurrency) for pair in pairs if pair.changes[index] is kind] for kind in Change}
        found = [f"{text} at {_listed(levels[kind])} in flight" for kind, text in _SENTENCES.items() if levels[kind]]
        name = f"The P99 of {objective.metric.value}"
        yield f"{name} {'; '.join(found)}." if found else f"{name} cannot be compared at any level."


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
