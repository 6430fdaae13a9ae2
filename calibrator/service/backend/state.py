"""What the service knows of one backend. Each part has exactly one writer; everybody reads all of them.

| part | what | written by |
|---|---|---|
| `slot` | the sweep that runs, the one that is asked for, when the next is due | `service.sweep_scheduler` |
| `results` | what ended sweeps found, health, totals of this process | `service.sweep_scheduler` |
| `lease` | whether this instance holds it; else what the holder's sweep does | `service.replication` |
| `gateways` | who polls | `service.supervisor` |
| `fleet`, `guard`, `triggers`, `traffic`, `admission` | own what they know | themselves |
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import dataclass, field

from calibrator.core.publish.balance import FleetSize
from calibrator.core.publish.fleet import SETTLE_S, Probes
from calibrator.core.publish.snapshot import Health, Progress, SweepSummary
from calibrator.core.records.history import History, WarmStart
from calibrator.core.records.sweep import SweepOutcome, SweepRecord
from calibrator.core.search.recalibration import looked_above, warm_start
from calibrator.core.workload.classes import prompt_lengths
from calibrator.core.workload.mirror import Mirrored, mirrored
from calibrator.ports.store import SweepStatus
from calibrator.ports.sweeps import BackendPlan, Target
from calibrator.service.backend.admission import AdmissionController
from calibrator.service.backend.fleet import Fleet
from calibrator.service.backend.guard import GuardWatch
from calibrator.service.backend.outcome import Ending, is_about
from calibrator.service.backend.traffic import TrafficLog
from calibrator.service.backend.triggers import TriggerWatch

NEVER = ("", -math.inf)


@dataclass(frozen=True, slots=True)
class RequestedSweep:
    """A sweep that somebody asked for."""

    sweep_id: str
    reason: str
    by_person: bool = False
    may_raise: bool = True
    is_warm: bool = False  # what was measured before is still believed


@dataclass(slots=True)
class RunningSweep:
    """From its start until it was taken in."""

    sweep_id: str
    target: Target
    partial: SweepRecord  # its newest state
    must_end_at_s: float  # monotonic; a sweep that runs longer is ended from outside
    task: asyncio.Task[SweepRecord] = field(init=False)
    progress: Progress | None = None
    ending: Ending | None = None  # why it was ended from outside


@dataclass(slots=True)
class SweepSlot:
    """Written by `service.sweep_scheduler` alone."""

    due_at: float = 0.0
    failures: int = 0  # sweeps in a row without a result
    requested: RequestedSweep | None = None
    running: RunningSweep | None = None
    may_raise: bool = True  # the running sweep, or the last one
    probed: tuple[str, float] = NEVER  # where the last sweep measured, and when it ended (monotonic)
    settling: asyncio.Task[None] | None = None  # an ended sweep on its way to the store


@dataclass(slots=True)
class LeaseView:
    """Written by `service.replication` alone."""

    is_held: bool = True  # by this instance, at its last tick
    elsewhere: SweepStatus | None = None  # the holder's sweep, while another instance holds the lease
    probed: tuple[str, float] = NEVER  # where that last measured, and when it ended (monotonic)


@dataclass(slots=True)
class GatewayCounts:
    """Written by `service.supervisor` alone."""

    polls: int = 0
    clients: int = 0
    clients_over_cap: int = 0


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the next scheduled sweep may start from."""

    history: History
    capacity: int  # per replica
    sweeps_since_upward_probe: int  # sweeps since the last one that measured above the capacity


@dataclass(slots=True)
class SweepTotals:
    """Of this process; they only grow."""

    sweeps: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    aborts: Counter[str] = field(default_factory=Counter)
    overload_s: float = 0.0
    live_exceedances: int = 0

    def add(self, record: SweepRecord) -> None:
        self.sweeps[(record.outcome or SweepOutcome.INTERRUPTED).value] += 1
        self.requests.update(dict(record.outcomes))
        self.tokens.update({"prompt": record.prompt_tokens, "output": record.output_tokens})
        self.overload_s += record.overload_s
        self.live_exceedances += record.harm.live_exceedances
        if record.aborted is not None:
            self.aborts[record.aborted.reason.value] += 1


@dataclass(slots=True)
class SweepResults:
    """Written by `service.sweep_scheduler` alone."""

    health: Health = Health.OK
    health_reason: str = ""
    calibration: Calibration | None = None
    last: SweepSummary | None = None
    last_at: dict[str, float] = field(default_factory=dict)  # by outcome
    generator_lag_s: float | None = None
    totals: SweepTotals = field(default_factory=SweepTotals)

    def calibrate(self, record: SweepRecord) -> None:
        """A calibrated sweep is what the next one starts from; after an infeasible one nothing is believed."""
        if record.aborted is not None:
            return
        if record.outcome is SweepOutcome.INFEASIBLE:
            self.calibration = None
        if record.outcome is SweepOutcome.CALIBRATED and record.capacity is not None and record.capacity.estimate >= 1:
            before = 0 if self.calibration is None else self.calibration.sweeps_since_upward_probe
            sweeps_since_upward_probe = 0 if looked_above(record.history) else before + 1
            self.calibration = Calibration(record.history, record.capacity.estimate, sweeps_since_upward_probe)

    def show(self, record: SweepRecord) -> None:
        """Make it the last sweep in the snapshot."""
        outcome = record.outcome or SweepOutcome.INTERRUPTED
        ended_at = record.ended_at if record.ended_at is not None else record.started_at + record.duration_s
        self.last = SweepSummary(
            sweep_id=record.sweep_id,
            outcome=outcome,
            grade=record.grade,
            capacity=record.capacity,
            started_at=record.started_at,
            ended_at=ended_at,
            duration_s=record.duration_s,
            requests=record.requests,
            reason=record.reason,
            levels=record.levels,
        )
        self.last_at[outcome.value] = ended_at
        lags_s = [stage.audit.loop_lag_p99_s for stage in record.history.stages]
        self.generator_lag_s = max(lags_s) if lags_s else self.generator_lag_s


@dataclass(frozen=True, slots=True, eq=False)
class BackendState:
    """Its parts never change places; `primary` measures for all that share its engines (None: itself)."""

    plan: BackendPlan
    fleet: Fleet
    guard: GuardWatch
    admission: AdmissionController
    traffic: TrafficLog
    triggers: TriggerWatch
    primary: BackendState | None = None
    share: float = 1.0  # of what the primary measures
    slot: SweepSlot = field(default_factory=SweepSlot)
    results: SweepResults = field(default_factory=SweepResults)
    lease: LeaseView = field(default_factory=LeaseView)
    gateways: GatewayCounts = field(default_factory=GatewayCounts)

    @classmethod
    def of(
        cls, plan: BackendPlan, fleet: Fleet, primary: BackendState | None = None, share: float = 1.0
    ) -> BackendState:
        """Nothing is known of it yet."""
        mirror, policy = plan.mirror, plan.triggers
        traffic = TrafficLog(max(policy.drift_over_s, 0.0 if mirror is None else mirror.over_s))
        lengths = () if mirror is not None else prompt_lengths(plan.workload)
        return cls(
            plan,
            fleet,
            GuardWatch(plan.guard, plan.objectives),
            AdmissionController(plan, fleet.clock),
            traffic,
            TriggerWatch(policy, traffic, lengths),
            primary,
            share,
        )

    # ------------------------------------------------------------------------------------------------------ sweeps
    def record_sweep(self, record: SweepRecord, *, is_new: bool) -> None:
        """A sweep ended: what the next one starts from, what each replica holds, and what was spent.

        `is_new`: it has just ended here, so it counts in the totals and the day's budget, and is shown (`results.show`)
        once it had its chance to be stored; else it is shown at once.
        """
        if is_about(record, self.plan):
            self.results.calibrate(record)
            is_whole = record.outcome is SweepOutcome.CALIBRATED and record.aborted is None
            found = record.capacity if is_whole else None
            ended_at = record.started_at if record.ended_at is None else record.ended_at
            self.fleet.measured(record.provenance.url, ended_at, None if found is None else found.estimate)
        if is_new:
            self.results.totals.add(record)
            self.admission.spend(record)
        else:
            self.results.show(record)

    @property
    def group_primary(self) -> BackendState:
        return self if self.primary is None else self.primary

    @property
    def may_start(self) -> bool:
        """Whether there is a replica to measure that was scraped already, and this backend measures it."""
        fleet = self.fleet
        return (
            self.primary is None and not fleet.refusal and fleet.newest is not None and fleet.next_target() is not None
        )

    def warm_start(self) -> WarmStart | None:
        """None: nothing is known, the sweep starts cold."""
        known = self.results.calibration
        if known is None:
            return None
        return warm_start(known.history, self.plan.bounds, known.capacity, known.sweeps_since_upward_probe)

    def workload_at(self, now_s: float) -> Mirrored:
        """What probes look like now; `now_s` is monotonic."""
        policy = self.plan.mirror
        if policy is None:
            return Mirrored(self.plan.workload, "as configured")
        return mirrored(self.traffic.slices(now_s, policy.over_s), policy, self.plan.workload)

    def size(self, measuring: str | None = None) -> FleetSize:
        """`measuring`: the replica whose own capacity is being published."""
        return self.group_primary.fleet.size(self.share, measuring)

    # ------------------------------------------------------------------------------------------------------ probes
    @property
    def is_swept(self) -> bool:
        """By whichever instance."""
        return self.slot.running is not None or self.lease.elsewhere is not None

    @property
    def progress(self) -> Progress | None:
        """Of our own sweep, or of the holder's."""
        if self.lease.elsewhere is not None:
            return self.lease.elsewhere.progress
        return None if self.slot.running is None else self.slot.running.progress

    @property
    def measured_url(self) -> str | None:
        """The replica that is being swept."""
        if self.lease.elsewhere is not None:
            return self.lease.elsewhere.url
        return None if self.slot.running is None else self.slot.running.target.url

    @property
    def probes_in_flight(self) -> int:
        return 0 if self.progress is None else self.progress.in_flight

    def probes_on(self, url: str, now_s: float) -> Probes | None:
        """Of its sweep, or of one that has just ended; None: neither is there."""
        if url == self.measured_url:
            progress = self.progress
            return Probes() if progress is None else Probes(progress.in_flight, progress.organic)
        probed = (self.slot.probed, self.lease.probed)
        return Probes() if any(url == where and now_s < ended_s + SETTLE_S for where, ended_s in probed) else None

    @property
    def reserved_for_probes(self) -> int:
        """This backend's part of the probes, while a replica in rotation is swept."""
        if self.lease.elsewhere is not None:
            return self.lease.elsewhere.reserved_for_probes
        running = self.group_primary.slot.running
        if running is None or not self.fleet.is_in_rotation(running.target.url):
            return 0
        return math.ceil(self.group_primary.probes_in_flight * self.share)
