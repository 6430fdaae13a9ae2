"""From a sweep to what is published: the only place where a measurement becomes a cap.

    replica_cap = max(1, floor(capacity * (1 - safety_margin_ratio)))
    cap         = replica_cap * ready replicas * balance factor (`core.publish.balance`), clamped to [min_cap, max_cap]

| sweep | effect on the published cap |
|---|---|
| certified, at_max | lowers at once; raises by at most `max_increase_ratio` |
| provisional | lowers at once; raises no further than its own highest certified level supports, and likewise bounded |
| the first one with a result | published as it is, because any measurement is better than the fallback's guess |
| aborted to protect users | lowers at once, never raises |
| infeasible | the fallback, or what is published if that is lower: no level was shown to be safe |
| anything else | no change |

A cap is never 0, negative or null: gateways read those as "block all" or "no limit". An error never removes a valid
cap. Lowering needs no certificate, because a cap that is too low costs throughput, whereas one that is too high costs
every user's SLA. A cap that is held up by the configured minimum alone is at most provisional.

Called by `service.supervisor`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from calibrator.core.publish.balance import FleetSize
from calibrator.core.publish.snapshot import Rates, Recommendation, State
from calibrator.core.records.objective import Metric, Objective
from calibrator.core.records.sweep import Grade, LevelReport, SweepOutcome, SweepRecord
from calibrator.core.stats.quantile import LatencySummary

P99 = 0.99
ONE_REPLICA = FleetSize()


@dataclass(frozen=True, slots=True)
class PublishPolicy:
    """How a capacity becomes a cap (DESIGN section 4)."""

    fallback_cap: int
    min_cap: int = 1
    max_cap: int = 1_000_000
    safety_margin_ratio: float = 0.1
    max_increase_ratio: float = 1.5
    valid_for_s: float = 64_800.0

    def clamp(self, cap: int) -> int:
        return max(1, self.min_cap, min(cap, self.max_cap))


def replica_cap(capacity: int, safety_margin_ratio: float) -> int:
    """At least 1, whatever the measurement."""
    return max(1, math.floor(capacity * (1.0 - safety_margin_ratio) + 1e-9))


def fallback(backend: str, policy: PublishPolicy, now: float, version: int = 1) -> Recommendation:
    """What is served until the first measurement. It does not become stale, because it never was a measurement."""
    cap = policy.clamp(policy.fallback_cap)
    return Recommendation(
        backend=backend,
        version=version,
        cap=cap,
        replica_cap=cap,
        state=State.FALLBACK,
        grade=None,
        capacity=None,
        reason="nothing has been measured yet: the configured fallback",
        published_at=now,
    )


def under_policy(known: Recommendation, policy: PublishPolicy, now: float) -> Recommendation:
    """A stored recommendation under the current configuration; the same object if that changes nothing.

    A fallback follows the configured one, but only downwards after `infeasible`.
    """
    cap, reason = policy.clamp(known.cap), known.reason
    if known.state is State.FALLBACK:
        configured = policy.clamp(policy.fallback_cap)
        cap = configured if known.grade is None else min(cap, configured)
    elif cap != known.cap:
        reason = f"{reason}; clamped to the configured {policy.min_cap}..{policy.max_cap}"
    if cap == known.cap:
        return known
    return replace(
        known,
        version=known.version + 1,
        cap=cap,
        replica_cap=max(1, known.replica_cap * cap // known.cap),
        rates=None if known.rates is None else scaled(known.rates, min(1.0, cap / known.cap)),
        published_at=now,
        reason=reason,
    )


def decide(
    record: SweepRecord,
    previous: Recommendation,
    policy: PublishPolicy,
    now: float,
    fleet: FleetSize = ONE_REPLICA,
    *,
    may_raise: bool = True,
) -> Recommendation | None:
    """The recommendation after a sweep; None: no change."""
    limited = policy if may_raise else replace(policy, max_cap=max(1, min(policy.max_cap, previous.cap)))
    decided = _decided(record, previous, limited, now, fleet)
    if record.aborted is not None and decided is not None and decided.cap >= previous.cap:
        return None
    return decided


def _decided(
    record: SweepRecord, previous: Recommendation, policy: PublishPolicy, now: float, fleet: FleetSize
) -> Recommendation | None:
    if record.mode != "search":
        return None
    if record.outcome is SweepOutcome.INFEASIBLE:
        return _infeasible(record, previous, policy, now)
    if record.outcome is not SweepOutcome.CALIBRATED or record.capacity is None or record.capacity.estimate < 1:
        return None

    def replica_cap_of(capacity: int) -> int:
        return replica_cap(min(capacity, fleet.smallest_other or capacity), policy.safety_margin_ratio)

    def cap_of(capacity: int) -> int:
        return policy.clamp(fleet.cap(replica_cap_of(capacity)))

    capacity = record.capacity
    is_first = previous.state in (State.FALLBACK, State.GUARDED) and previous.grade is None
    is_proven = record.grade in (Grade.CERTIFIED, Grade.AT_MAX)
    supported = capacity.estimate if is_proven or is_first else capacity.certified
    wanted, safe = cap_of(capacity.estimate), cap_of(supported) if supported else 0
    limit = wanted if is_first else _raised(previous.cap, policy.max_increase_ratio)
    cap = policy.clamp(_toward(wanted, safe, limit, previous.cap))
    per_replica = fleet.replica_cap_within(cap, replica_cap_of(capacity.estimate))
    own = fleet.own(per_replica)
    grade, reason = record.grade, f"{record.reason}{_fleet_words(fleet, capacity.estimate)}"
    if cap < wanted:
        reason = f"{reason}; the sweep supports {wanted}, raised no further than {cap} at once"
    if per_replica > capacity.estimate:
        grade, reason = Grade.PROVISIONAL, f"{reason}; lifted to the configured minimum of {policy.min_cap}"
    elif capacity.certified and fleet.cap(replica_cap(capacity.certified, policy.safety_margin_ratio)) >= cap:
        grade = Grade.CERTIFIED if grade is Grade.PROVISIONAL else grade  # what is published passed its own test
    level = _level_for(record.levels, per_replica)
    return Recommendation(
        backend=previous.backend,
        version=previous.version + 1,
        cap=cap,
        replica_cap=own,
        state=State.CALIBRATED,
        grade=grade,
        capacity=capacity,
        reason=reason,
        published_at=now,
        measured_at=record.ended_at,
        valid_until=now + policy.valid_for_s,
        sweep_id=record.sweep_id,
        rates=None if level is None else _rates(level, cap, max(1, fleet.replicas)),
        max_queue_wait_s=None if level is None else _queue_wait_s(level, record.history.objectives),
        replicas=max(1, fleet.replicas),
        balance_factor=fleet.factor(fleet.whole(own, replica_cap_of(capacity.estimate))),
    )


def for_fleet(known: Recommendation, policy: PublishPolicy, fleet: FleetSize, now: float) -> Recommendation:
    """The same measurement for another number of replicas, or another balance; the same object if nothing changes.

    Without a ready replica the last cap stays. A fallback is a guess about the whole backend: its cap stays, and a
    replica's part of it only falls.
    """
    replicas = fleet.replicas
    if replicas < 1 or known.state is State.OVERRIDDEN:
        return known
    if known.state is State.FALLBACK or (known.before_cut is not None and known.before_cut.state is State.FALLBACK):
        per_replica = min(known.replica_cap, max(1, known.cap // replicas))
        if per_replica == known.replica_cap:
            return known
        return replace(known, version=known.version + 1, replica_cap=per_replica, replicas=replicas, published_at=now)
    estimate = known.replica_cap if known.capacity is None else known.capacity.estimate
    measured = replica_cap(min(estimate, fleet.smallest_other or estimate), policy.safety_margin_ratio)
    factor = fleet.factor(fleet.whole(known.replica_cap, measured))
    if (replicas, factor) == (known.replicas, known.balance_factor):
        return known

    def cap_of(own: int) -> int:
        return policy.clamp(fleet.cap(fleet.whole(own, measured)))

    cap, before_cut = cap_of(known.replica_cap), known.before_cut
    return replace(
        known,
        version=known.version + 1,
        cap=cap,
        rates=None if known.rates is None else scaled(known.rates, cap / known.cap),
        before_cut=None if before_cut is None else replace(before_cut, cap=cap_of(before_cut.replica_cap)),
        published_at=now,
        replicas=replicas,
        balance_factor=factor,
    )


def _fleet_words(fleet: FleetSize, capacity: int) -> str:
    words = ""
    if fleet.smallest_other is not None and fleet.smallest_other < capacity:
        words += f"; the smallest replica measured holds {fleet.smallest_other}"
    if fleet.share < 1.0:
        words += f"; {fleet.share:.0%} of the engine group's"
    return words


def _toward(wanted: int, safe: int, limit: int, previous: int) -> int:
    """Down at once; up no further than the evidence supports, and than one sweep may raise."""
    return wanted if wanted <= previous else min(limit, max(previous, min(wanted, safe)))


def _raised(cap: int, max_increase_ratio: float) -> int:
    """The highest next cap; by at least one, or a small cap could never grow, unless no growth is wanted at all."""
    return max(cap + 1, math.floor(cap * max_increase_ratio + 1e-9)) if max_increase_ratio > 1.0 else cap


def _infeasible(
    record: SweepRecord, previous: Recommendation, policy: PublishPolicy, now: float
) -> Recommendation | None:
    resting = fallback(previous.backend, policy, now, previous.version + 1)
    cap = policy.clamp(min(resting.cap, previous.cap))
    if previous.grade is Grade.INFEASIBLE and previous.cap == cap and previous.before_cut is None:
        return None  # after a guard's cut it is published again, or the guard would step up to an unsafe cap
    return replace(
        resting,
        cap=cap,
        replica_cap=cap,
        grade=Grade.INFEASIBLE,
        capacity=record.capacity,
        reason=f"the SLA cannot be met: {record.reason}",
        measured_at=record.ended_at,
        sweep_id=record.sweep_id,
    )


def _level_for(levels: Sequence[LevelReport], concurrency: int) -> LevelReport | None:
    """The measured level nearest to what is published: the lowest at or above it, else the highest below."""
    seen = [level for level in levels if level.n > 0 and level.requests_per_second > 0]
    above = [level for level in seen if level.concurrency >= concurrency]
    return min(above, key=lambda level: level.concurrency, default=max(seen, key=_concurrency, default=None))


def _concurrency(level: LevelReport) -> int:
    return level.concurrency


def _rates(level: LevelReport, cap: int, replicas: int) -> Rates:
    """Throughput at the cap, in proportion to concurrency below the measured level: never more than was measured."""
    share = min(1.0, cap / replicas / level.concurrency) * replicas
    full = Rates(
        requests_per_second=level.requests_per_second,
        prompt_tokens_per_minute=60.0 * level.prompt_tokens_per_second,
        output_tokens_per_minute=60.0 * level.output_tokens_per_second,
    )
    return scaled(full, share)


def scaled(rates: Rates, factor: float) -> Rates:
    return Rates(
        requests_per_second=rates.requests_per_second * factor,
        prompt_tokens_per_minute=rates.prompt_tokens_per_minute * factor,
        output_tokens_per_minute=rates.output_tokens_per_minute * factor,
    )


def _queue_wait_s(level: LevelReport, objectives: Sequence[Objective]) -> float | None:
    """How long a gateway may queue: the smallest difference between limit and P99 at the cap (DESIGN section 1).

    None unless every objective that a queue adds to has a P99 that bounds it, because a partial answer would be too
    long.
    """
    left = []
    for objective in objectives:
        if objective.metric not in (Metric.TTFT, Metric.TTFC, Metric.E2E):
            continue
        summary: LatencySummary = getattr(level, objective.metric.value)
        if summary.p99 is None or objective.quantile > P99:
            return None
        left.append(max(0.0, objective.limit_s - summary.p99.value_s))
    return min(left, default=None)
