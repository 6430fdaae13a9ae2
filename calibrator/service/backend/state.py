"""What the supervisor remembers about one backend between ticks, and its projection into the snapshot."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from calibrator.core.publish.balance import Balance, FleetSize
from calibrator.core.publish.fleet import SETTLE_S, Probes
from calibrator.core.publish.override import overlaid
from calibrator.core.publish.recommendation import fallback
from calibrator.core.publish.snapshot import (
    BackendView,
    CapPoint,
    Counters,
    Health,
    Override,
    Progress,
    Recommendation,
    SweepSummary,
)
from calibrator.core.records.harm import AbortReason
from calibrator.core.records.history import History, WarmStart
from calibrator.core.records.sample import RequestOutcome
from calibrator.core.records.sweep import Provenance, SweepOutcome, SweepRecord
from calibrator.core.search.recalibration import probed_above, warm_start
from calibrator.core.workload.classes import prompt_lengths
from calibrator.core.workload.mirror import Mirrored, mirrored
from calibrator.ports.store import SweepStatus
from calibrator.ports.sweeps import BackendPlan, SweepOrder, Target
from calibrator.service.backend.admission import AdmissionController
from calibrator.service.backend.fleet import Fleet
from calibrator.service.backend.guard import GuardWatch
from calibrator.service.backend.outcome import Ending
from calibrator.service.backend.traffic import TrafficLog
from calibrator.service.backend.triggers import TriggerWatch

RESERVED_STEPS = 8


@dataclass(frozen=True, slots=True)
class Wanted:
    """A sweep that somebody asked for."""

    sweep_id: str
    reason: str
    by_person: bool = False
    may_raise: bool = True
    is_warm: bool = False  # what was measured before is still believed


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the next scheduled sweep may start from."""

    history: History
    capacity: int  # per replica
    sweeps_since_upward_probe: int  # sweeps since the last one that measured above the capacity


@dataclass(slots=True)
class BackendState:
    """Mutable, owned by the supervisor; nothing else writes to it."""

    plan: BackendPlan
    fleet: Fleet
    guard: GuardWatch = field(init=False)
    door: AdmissionController = field(init=False)
    traffic: TrafficLog = field(init=False)
    triggers: TriggerWatch = field(init=False)
    may_raise: bool = True  # the running sweep, or the last one
    due_at: float = 0.0
    failures: int = 0  # sweeps in a row that said nothing
    wanted: Wanted | None = None
    running: asyncio.Task[SweepRecord] | None = None
    must_end_at_s: float = 0.0  # monotonic; a sweep that runs longer is ended from outside
    ending: Ending | None = None  # why the running sweep was ended from outside
    settling: asyncio.Task[None] | None = None  # an ended sweep on its way to the store
    group_primary: BackendState = field(init=False)  # measures for all that share its engines; often itself
    share: float = 1.0  # of what the leader measures
    sized: tuple[int, Balance] | None = None  # ready replicas and balance that the published cap was made for
    target: Target | None = None  # the replica that the running sweep measures, or the last one did
    running_id: str | None = None
    progress: Progress | None = None
    partial: SweepRecord | None = None  # newest state of the running sweep
    probed: tuple[str, float] = ("", -math.inf)  # where the last sweep measured, and when it ended (monotonic)
    elsewhere: SweepStatus | None = None  # what the holder's sweep does, while another instance holds the lease
    is_led: bool = True  # by this instance, at its last tick
    health: Health = Health.OK
    health_reason: str = ""
    last: SweepSummary | None = None
    calibration: Calibration | None = None
    last_at: dict[str, float] = field(default_factory=dict)
    generator_lag_s: float | None = None
    sweeps: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    overload_s: float = 0.0
    aborts: Counter[str] = field(default_factory=Counter)
    live_exceedances: int = 0
    polls: int = 0
    gateways: tuple[int, int] = (0, 0)  # live clients, and those of them beyond the cap

    def __post_init__(self) -> None:
        self.group_primary = self
        self.guard = GuardWatch(self.plan.guard, self.plan.objectives)
        self.door = AdmissionController(self.plan, self.fleet.clock)
        mirror, policy = self.plan.mirror, self.plan.triggers
        self.traffic = TrafficLog(max(policy.drift_over_s, 0.0 if mirror is None else mirror.over_s))
        self.triggers = TriggerWatch(
            policy, self.traffic, () if mirror is not None else prompt_lengths(self.plan.workload)
        )

    def learn(self, record: SweepRecord) -> None:
        """A calibrated sweep is what the next one starts from; after an infeasible one nothing is believed."""
        if record.aborted is not None:
            return
        if record.outcome is SweepOutcome.INFEASIBLE:
            self.calibration = None
        if record.outcome is SweepOutcome.CALIBRATED and record.capacity is not None and record.capacity.estimate >= 1:
            before = 0 if self.calibration is None else self.calibration.sweeps_since_upward_probe
            sweeps_since_upward_probe = 0 if probed_above(record.history) else before + 1
            self.calibration = Calibration(record.history, record.capacity.estimate, sweeps_since_upward_probe)

    def warm_start(self) -> WarmStart | None:
        """None: nothing is known, the sweep starts cold."""
        known = self.calibration
        if known is None:
            return None
        return warm_start(known.history, self.plan.bounds, known.capacity, known.sweeps_since_upward_probe)

    def workload_at(self, now_s: float) -> Mirrored:
        """What probes look like now; `now_s` is monotonic."""
        policy = self.plan.mirror
        if policy is None:
            return Mirrored(self.plan.workload, "as configured")
        return mirrored(self.traffic.slices(now_s, policy.over_s), policy, self.plan.workload)

    def heed(self, record: SweepRecord) -> None:
        """Which replica was measured, and what it holds."""
        is_whole = record.outcome is SweepOutcome.CALIBRATED and record.aborted is None
        found = record.capacity if is_whole else None
        ended_at = record.started_at if record.ended_at is None else record.ended_at
        self.fleet.measured(record.provenance.url, ended_at, None if found is None else found.estimate)

    def size(self, measuring: str | None = None) -> FleetSize:
        """`measuring`: the replica whose own capacity is being published."""
        return self.group_primary.fleet.size(self.share, measuring)

    def remember(self, record: SweepRecord) -> None:
        """Keep the summary of an ended sweep."""
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

    @property
    def probes_in_flight(self) -> int:
        progress = self.shown_progress
        return 0 if progress is None else progress.in_flight

    @property
    def shown_progress(self) -> Progress | None:
        """Of our own sweep, or of the holder's."""
        return self.progress if self.elsewhere is None else self.elsewhere.progress

    @property
    def is_swept(self) -> bool:
        """Whoever does it."""
        return self.running is not None or self.elsewhere is not None

    def probes_on(self, url: str, now_s: float) -> Probes | None:
        """Of its sweep, or of the one that has just ended; None: neither is there."""
        if url == self._measured_url:
            progress = self.shown_progress
            return Probes() if progress is None else Probes(progress.in_flight, progress.organic)
        measured_url, ended_s = self.probed
        return Probes() if url == measured_url and now_s < ended_s + SETTLE_S else None

    @property
    def _measured_url(self) -> str | None:
        if self.elsewhere is not None:
            return self.elsewhere.url
        return None if self.running is None or self.target is None else self.target.url

    def sweep_ends(self, now_s: float) -> None:
        """Its own or the holder's; called before what is known of it is forgotten."""
        url = self._measured_url
        if url is not None:
            self.probed = url, now_s

    @property
    def may_start(self) -> bool:
        """Whether there is a replica to measure, whose users were looked for, and this backend measures it."""
        fleet = self.fleet
        return (
            self.group_primary is self
            and not fleet.refusal
            and fleet.look is not None
            and fleet.next_target() is not None
        )

    @property
    def reserved_for_probes(self) -> int:
        """This backend's part of the probes, while a replica in rotation is swept."""
        if self.elsewhere is not None:
            return self.elsewhere.reserved_for_probes
        group_primary = self.group_primary
        if (
            group_primary.running is None
            or group_primary.target is None
            or not self.fleet.is_in_rotation(group_primary.target.url)
        ):
            return 0
        return math.ceil(group_primary.probes_in_flight * self.share)

    def count(self, record: SweepRecord) -> None:
        """Add an ended sweep to the totals of this process."""
        self.sweeps[(record.outcome or SweepOutcome.INTERRUPTED).value] += 1
        self.requests.update(dict(record.outcomes))
        self.tokens.update({"prompt": record.prompt_tokens, "output": record.output_tokens})
        self.overload_s += record.overload_s
        self.live_exceedances += record.harm.live_exceedances
        if record.aborted is not None:
            self.aborts[record.aborted.reason.value] += 1
        self.door.spend(record)

    def _shadow(self, published: Recommendation) -> Recommendation:
        """What gateways get while nothing that was measured is enforced: the same for as long as the fallback is."""
        resting = fallback(self.plan.name, self.plan.policy, published.published_at, published.version)
        return replace(resting, reason="publish: shadow; gateways get the configured fallback")

    def view(
        self,
        underlying: Recommendation,
        override: Override | None = None,
        trend: tuple[CapPoint, ...] = (),
        store_problem: str = "",
    ) -> BackendView:
        published = underlying if override is None else overlaid(underlying, override, self.plan.policy)
        fleet = self.fleet
        refusal, limits = fleet.refusal, self.plan.limits
        return BackendView(
            name=self.plan.name,
            model=self.plan.target.model,
            objectives=tuple(str(objective) for objective in self.plan.objectives),
            recommendation=published,
            health=Health.ERROR if refusal else Health.OBSERVE if limits.observe else self.health,
            health_reason=refusal or self.health_reason,
            counters=Counters(
                sweeps={outcome.value: self.sweeps[outcome.value] for outcome in SweepOutcome},
                probe_requests={outcome.value: self.requests[outcome.value] for outcome in RequestOutcome},
                probe_tokens={kind: self.tokens[kind] for kind in ("prompt", "output")},
                probe_overload_s=self.overload_s,
                gateway_polls=self.polls,
                sweep_aborts={reason.value: self.aborts[reason.value] for reason in AbortReason},
                live_exceedances=self.live_exceedances,
            ),
            fallback_cap=self.plan.policy.fallback_cap,
            up=fleet.up,
            engine=fleet.engine,
            ready_replicas=fleet.ready_replicas,
            organic_in_flight=fleet.organic_in_flight,
            probe_in_flight=self.probes_in_flight,
            last_sweep=self.last,
            last_sweep_at=dict(self.last_at),
            next_sweep_at=None if self.group_primary.is_swept else self.group_primary.due_at,
            progress=self.group_primary.shown_progress,
            override=override,
            underlying=None if override is None else underlying,
            gateway_clients=self.gateways[0],
            gateway_clients_over_cap=self.gateways[1],
            lease_held=self.is_led,
            store_problem=store_problem,
            # At most the swept replica's part of the cap: beyond it, users of the others would give way for nothing.
            reserved_for_probes=in_steps(self.reserved_for_probes, -(-published.cap // max(1, fleet.ready_replicas))),
            measured_by=self.group_primary.plan.name,
            replicas=fleet.views(),
            discovery_problem=fleet.problem,
            metrics_problem=fleet.metrics_problem,
            traffic_note=self.triggers.unlike,
            in_flight_peak=fleet.in_flight_peak,
            headroom_min_ratio=fleet.headroom_min_ratio,
            guard=self.guard.view(),
            queued="" if self.group_primary.wanted is None else self.group_primary.wanted.reason,
            deferred=None if self.group_primary.running is not None else self.group_primary.door.held,
            trend=trend,
            shadow=self._shadow(published) if limits.shadow else None,
        )


@dataclass(slots=True)
class ProgressRecorder:
    """Port `SweepListener`: keeps the newest words of a running sweep; records go to `keep` as well."""

    state: BackendState
    keep: Callable[[SweepRecord], None]

    def progress(self, progress: Progress) -> None:
        if progress.sweep_id == self.state.running_id:  # not of a sweep that was given up
            self.state.progress = progress

    def partial(self, record: SweepRecord) -> None:
        if record.sweep_id == self.state.running_id:
            self.state.partial = record
            self.keep(record)


def in_steps(probes: int, part: int) -> int:
    """What probes take of one replica's part of the cap, rounded up to an eighth of it.

    Their number moves with each look; a cap that moved with it would be news to every gateway once a second, and some
    start their count again with every change (Traefik).
    """
    step = max(1, part // RESERVED_STEPS)
    return min(part, -(-probes // step) * step)


def begun(order: SweepOrder) -> SweepRecord:
    """The record of a sweep that has only begun: it makes a killed one visible."""
    return SweepRecord(
        sweep_id=order.sweep_id,
        backend=order.backend,
        mode="search",
        started_at=order.started_at,
        ended_at=None,
        outcome=None,
        grade=None,
        capacity=None,
        reason="",
        requests=0,
        duration_s=0.0,
        overload_s=0.0,
        prompt_tokens=0,
        output_tokens=0,
        levels=(),
        warnings=(),
        provenance=Provenance(
            backend=order.backend,
            url=order.target.url,
            model=order.target.model,
            engine=None,
            objectives=tuple(str(objective) for objective in order.objectives),
            workload=str(order.workload),
            prompt_tokens_achieved=None,
            output_tokens_achieved=None,
            seed=order.seed,
            software="",
        ),
        history=History(order.objectives),
        trigger=order.trigger,
    )
