"""The guard between sweeps: scrapes of a backend's replicas go in, what to do about the cap comes out.

    scrape ─▶ growth on each replica ─▶ tests of `core.live.change_test`, signals of `core.live.liveness` ─▶ GuardEvent

| found | in flight | event |
|---|---|---|
| alarm | near the cap (70 %) on the replicas that broke the objective | cut; nothing counts while the cut settles |
| alarm | below | report `breach_not_concurrency`: a lower cap would not help |
| `clean_s` of traffic without a breach | any | a step back up if guarded; the report ends |

Clean is a period whose exceedances stay within what the test's null allows, with no signal up. Time without traffic
is neither clean nor a breach.

**What never counts:** scrapes while a sweep runs or probes are in flight, and one residence after; the time between two
scrapes further apart than `GAP_S`; what a replica counted before a restart or while it did not answer. Differences are
taken on one replica and only then added up, so counters of two replicas are never mixed. The tests keep what they knew
over such a pause.

Owned by the supervisor, one per backend. Times are monotonic; the caller passes scrapes in order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from calibrator.core.live.change_test import (
    ChangeTest,
    GuardAction,
    GuardEvent,
    GuardPolicy,
    GuardReason,
    above,
    alarm_at_s,
    histogram_of,
    next_bound_s,
    null_ratio,
)
from calibrator.core.live.liveness import Queue, Residence, Silence, finished_total
from calibrator.core.publish.checkpoint import GuardCheckpoint
from calibrator.core.publish.fleet import FleetLook, ReplicaLook
from calibrator.core.publish.snapshot import GuardView
from calibrator.core.records.objective import Objective, format_duration
from calibrator.core.records.server_load import ServerLoad, grown

GAP_S = 30.0  # scrapes are a second apart; over a longer gap anything may have happened in between
AFTER_PROBES_S = 10.0  # at least, and one residence
PRESSURE_MEMORY_S = 120.0  # exceedances weigh by their age: about the time in which a breach is found


@dataclass(slots=True)
class _Watched:
    """One objective under test."""

    objective: Objective
    test: ChangeTest = field(default_factory=ChangeTest)
    bound_s: float | None = None  # of the histogram in use; None: no replica has shown a usable one
    pressure: float = 0.0  # in flight / cap of the replica, averaged over the exceedances it served
    weight: float = 0.0
    clean_allowed: float = 0.0
    clean_exceeding: float = 0.0


@dataclass(slots=True)
class _Replica:
    load: ServerLoad | None = None
    silence: Silence = field(default_factory=Silence)
    queue: Queue = field(default_factory=Queue)


class GuardWatch:
    """Finds out from live users that the cap is wrong."""

    def __init__(self, policy: GuardPolicy, objectives: Sequence[Objective]) -> None:
        self._policy = policy
        self._watched = tuple(_Watched(objective) for objective in objectives)
        self._replicas: dict[str, _Replica] = {}
        self._residence = Residence()
        self._seen_s: float | None = None
        self._ignore_until_s = float("-inf")
        self._resweep_from_s = float("-inf")
        self._clean_s = 0.0
        self._breach: tuple[GuardReason, float] | None = None  # reported and not over, since (Unix seconds)
        self.trips = dict.fromkeys(GuardReason, 0)

    def view(self) -> GuardView:
        bounds = {str(one.objective): one.bound_s for one in self._watched}
        reason, since = self._breach or (None, None)
        return GuardView(
            is_watching=self._policy.enabled,
            bounds_s=bounds,
            breach_reason=None if reason is None else reason.value,
            breach_since=since,
            trips={reason.value: count for reason, count in self.trips.items()},
        )

    @property
    def stamp(self) -> object:
        """Differs when there is something new to store."""
        return self._resweep_from_s

    def checkpoint(self, now_s: float) -> GuardCheckpoint:
        return GuardCheckpoint(max(0.0, self._resweep_from_s - now_s))

    def restore(self, checkpoint: GuardCheckpoint, now_s: float) -> None:
        """After a restart of the service; the tests begin anew."""
        wait_s = min(checkpoint.resweep_wait_s, self._policy.resweep_s)
        self._resweep_from_s = max(self._resweep_from_s, now_s + wait_s)

    def reset(self) -> None:
        """A sweep has settled the matter: what was counted against the cap before it is void."""
        for one in self._watched:
            one.test, one.weight = ChangeTest(), 0.0
        self._breach = None
        self._begin_clean_period()

    def observe(
        self, scrape: FleetLook, *, is_guarded: bool = False, is_sweeping: bool = False, queue_allowed: float = 0.0
    ) -> GuardEvent | None:
        """One scrape later. `queue_allowed`: queued requests on a replica that the last sweep found within the SLA."""
        if not self._policy.enabled:
            return None
        elapsed_s = GAP_S + 1.0 if self._seen_s is None else scrape.at_s - self._seen_s
        self._seen_s = scrape.at_s
        before, self._replicas = (
            self._replicas,
            {one.url: self._follow(one, scrape, queue_allowed) for one in scrape.ready},
        )
        if is_sweeping or scrape.probes_in_flight > 0:
            pause_s = max(AFTER_PROBES_S, self._residence.mean_s or 0.0)
            self._ignore_until_s = max(self._ignore_until_s, scrape.at_s + pause_s)
        if scrape.at_s < self._ignore_until_s or not 0.0 < elapsed_s <= GAP_S:
            self._skip()
            return None
        has_traffic = self._count(before, scrape, elapsed_s)
        if (reason := self._alarm(scrape)) is not None:
            return self._tripped(reason, scrape)
        return self._clean(elapsed_s if has_traffic else 0.0, is_guarded=is_guarded)

    # ---------------------------------------------------------------------------------------------- counting
    def _follow(self, scrape: ReplicaLook, fleet: FleetLook, queue_allowed: float) -> _Replica:
        known = self._replicas.get(scrape.url, _Replica())
        return _Replica(
            scrape.load,
            known.silence.after(scrape.load, fleet.at_s),
            known.queue.after(scrape.load, fleet.at_s, queue_allowed, fleet.replica_cap),
        )

    def _skip(self) -> None:
        """This scrape and the block it falls into do not count; signals begin anew."""
        for one in self._watched:
            one.test = one.test.without_block()
        for replica in self._replicas.values():
            replica.silence, replica.queue = Silence(), Queue()

    def _count(self, before: Mapping[str, _Replica], scrape: FleetLook, elapsed_s: float) -> bool:
        """Take in what grew since the last scrape; True if users were being served."""
        pairs = [
            (one, one.load, earlier)
            for one in scrape.ready
            if one.load is not None and (earlier := before.get(one.url, _Replica()).load) is not None
            and one.load.process_start == earlier.process_start
        ]  # fmt: skip
        in_flight = sum(load.in_flight_requests or 0.0 for _, load, _ in pairs)
        finished = sum(grown(finished_total(load), finished_total(earlier)) or 0.0 for _, load, earlier in pairs)
        self._residence = self._residence.after(in_flight, finished, elapsed_s)
        observed = [self._count_objective(watched, pairs, scrape, elapsed_s) for watched in self._watched]
        is_silent = any(one.silence.outlasts(scrape.at_s, self._residence.mean_s) for one in self._replicas.values())
        return (in_flight > 0.0 or any(observed)) and not is_silent

    def _count_objective(
        self,
        watched: _Watched,
        pairs: Sequence[tuple[ReplicaLook, ServerLoad, ServerLoad]],
        scrape: FleetLook,
        elapsed_s: float,
    ) -> bool:
        n = exceeding = 0.0
        watched.weight *= math.exp(-elapsed_s / PRESSURE_MEMORY_S)
        for one, load, earlier in pairs:
            now, then = (histogram_of(page, watched.objective.metric) for page in (load, earlier))
            delta = None if now is None or then is None else now.since(then)
            bound_s = None if delta is None else next_bound_s(watched.objective, delta.bounds)
            if delta is None or bound_s is None:
                continue
            watched.bound_s = bound_s
            finished, exceeded = above(delta, bound_s)
            n, exceeding = n + finished, exceeding + exceeded
            _weigh(watched, exceeded, _share_of_cap(one, scrape))
        if watched.bound_s is None:
            return False
        p0 = null_ratio(watched.objective, watched.bound_s)
        watched.test = watched.test.after(n, exceeding, elapsed_s, p0)
        watched.clean_allowed += n * p0
        watched.clean_exceeding += exceeding
        return n > 0.0

    # ---------------------------------------------------------------------------------------------- deciding
    def _alarm(self, scrape: FleetLook) -> GuardReason | None:
        usable = [one for one in self._watched if one.bound_s is not None]
        threshold_s = alarm_at_s(self._policy, len(usable))
        if any(one.test.evidence_s >= threshold_s for one in usable):
            return GuardReason.LATENCY
        if any(one.silence.is_implausible(scrape.at_s, self._residence.mean_s) for one in self._replicas.values()):
            return GuardReason.NO_COMPLETIONS
        if not usable and any(one.queue.is_persistent(scrape.at_s) for one in self._replicas.values()):
            return GuardReason.QUEUE
        return None

    def _tripped(self, reason: GuardReason, scrape: FleetLook) -> GuardEvent | None:
        share, words = self._share(reason, scrape), self._words(reason)
        for one in self._watched:
            one.test, one.weight = ChangeTest(), 0.0
        self._skip()
        self._begin_clean_period()
        near = f"{share:.0%} of the cap in flight"
        if share < self._policy.near_cap_ratio:
            is_new = self._breach is None
            self._breach = self._breach or (reason, scrape.at)
            if not is_new:
                return None
            self.trips[GuardReason.NOT_CONCURRENCY] += 1
            return GuardEvent(GuardAction.REPORT, reason, f"{words} with only {near}: a lower cap would not help")
        self.trips[reason] += 1
        self._breach = None
        self._ignore_until_s = scrape.at_s + max(self._policy.settle_s, self._residence.mean_s or 0.0)
        # A sweep beside an engine that hangs would find nothing out, and a sweep after each cut would never end.
        wants_sweep = reason is not GuardReason.NO_COMPLETIONS and scrape.at_s >= self._resweep_from_s
        if wants_sweep:
            self._resweep_from_s = scrape.at_s + self._policy.resweep_s
        return GuardEvent(GuardAction.CUT, reason, f"{words} with {near}", wants_sweep=wants_sweep)

    def _share(self, reason: GuardReason, scrape: FleetLook) -> float:
        """In flight / cap where it went wrong."""
        if reason is GuardReason.LATENCY:
            worst = max(self._watched, key=lambda one: one.test.evidence_s)
            return worst.pressure
        loud = [
            one for one in scrape.ready
            if (known := self._replicas.get(one.url)) is not None
            and (known.silence.since_s is not None or known.queue.since_s is not None)
        ]  # fmt: skip
        return max((_share_of_cap(one, scrape) for one in loud), default=0.0)

    def _words(self, reason: GuardReason) -> str:
        if reason is GuardReason.LATENCY:
            worst = max(self._watched, key=lambda one: one.test.evidence_s)
            bound = "" if worst.bound_s is None else f" (counted above {format_duration(worst.bound_s)})"
            return f"live requests break {worst.objective}{bound}"
        if reason is GuardReason.QUEUE:
            return "the engine queues requests below the cap"
        return "requests run but none is completed"

    # ------------------------------------------------------------------------------------------------- clean
    def _clean(self, elapsed_s: float, *, is_guarded: bool) -> GuardEvent | None:
        has_histogram = any(one.bound_s is not None for one in self._watched)
        if not has_histogram and any(one.queue.since_s is not None for one in self._replicas.values()):
            self._begin_clean_period()
            return None
        self._clean_s += elapsed_s
        if self._clean_s < self._policy.clean_s:
            return None
        is_clean = all(one.clean_exceeding <= one.clean_allowed for one in self._watched)
        self._begin_clean_period()
        if not is_clean:
            return None
        self._breach = None
        if not is_guarded:
            return None
        return GuardEvent(
            GuardAction.RAISE, None, f"{format_duration(self._policy.clean_s)} of traffic within the objectives"
        )

    def _begin_clean_period(self) -> None:
        self._clean_s = 0.0
        for one in self._watched:
            one.clean_allowed = one.clean_exceeding = 0.0


def _share_of_cap(one: ReplicaLook, scrape: FleetLook) -> float:
    """The fuller of the replica against its own cap and the fleet against the whole one."""
    fleet = scrape.organic_in_flight
    return max((one.organic_in_flight or 0.0) / scrape.replica_cap, 0.0 if fleet is None else fleet / scrape.cap)


def _weigh(watched: _Watched, exceeded: float, share: float) -> None:
    if exceeded > 0.0:
        watched.weight += exceeded
        watched.pressure += (share - watched.pressure) * exceeded / watched.weight
