"""What the supervisor remembers about one backend between ticks, and its projection into the snapshot."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from calibrator.core.measurement import History, WarmStart
from calibrator.core.recalibration import looked_above, warm_start
from calibrator.core.sample import RequestOutcome
from calibrator.core.server_load import ServerLoad
from calibrator.core.snapshot import BackendView, Counters, Health, Progress, Recommendation, SweepSummary
from calibrator.core.sweep_record import Provenance, SweepOutcome, SweepRecord
from calibrator.ports import BackendPlan, SweepOrder


@dataclass(frozen=True, slots=True)
class Wanted:
    """A sweep that somebody asked for."""

    sweep_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the next scheduled sweep may start from."""

    history: History
    capacity: int  # per replica
    since_look: int  # sweeps since the last one that measured above the capacity


@dataclass(slots=True)
class BackendState:
    """Mutable, owned by the supervisor; nothing else writes to it."""

    plan: BackendPlan
    due_at: float = 0.0
    failures: int = 0  # sweeps in a row that said nothing
    wanted: Wanted | None = None
    running: asyncio.Task[SweepRecord] | None = None
    must_end_at_s: float = 0.0  # monotonic; a sweep that runs longer is ended from outside
    is_overdue: bool = False
    settling: asyncio.Task[None] | None = None  # an ended sweep on its way to the store
    looking: asyncio.Task[None] | None = None
    running_id: str | None = None
    progress: Progress | None = None
    partial: SweepRecord | None = None  # newest state of the running sweep
    health: Health = Health.OK
    health_reason: str = ""
    up: bool | None = None
    engine: str | None = None
    server_in_flight: float | None = None
    last: SweepSummary | None = None
    calibration: Calibration | None = None
    last_at: dict[str, float] = field(default_factory=dict)
    generator_lag_s: float | None = None
    sweeps: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    overload_s: float = 0.0
    polls: int = 0

    def learn(self, record: SweepRecord) -> None:
        """A calibrated sweep is what the next one starts from; after an infeasible one nothing is believed."""
        if record.outcome is SweepOutcome.INFEASIBLE:
            self.calibration = None
        if record.outcome is SweepOutcome.CALIBRATED and record.capacity is not None and record.capacity.estimate >= 1:
            before = 0 if self.calibration is None else self.calibration.since_look
            since_look = 0 if looked_above(record.history) else before + 1
            self.calibration = Calibration(record.history, record.capacity.estimate, since_look)

    def warm_start(self) -> WarmStart | None:
        """None: nothing is known, the sweep starts cold."""
        known = self.calibration
        if known is None:
            return None
        return warm_start(known.history, self.plan.bounds, known.capacity, known.since_look)

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
        lags_s = [visit.audit.loop_lag_p99_s for visit in record.history.visits]
        self.generator_lag_s = max(lags_s) if lags_s else self.generator_lag_s

    def look(self, load: ServerLoad | None) -> None:
        """An engine without metrics is unknown, not down; one that had them and stopped answering is down."""
        if load is not None:
            self.up, self.engine, self.server_in_flight = True, load.engine, load.in_flight_requests
        else:
            self.up, self.server_in_flight = (None if self.up is None else False), None

    def count(self, record: SweepRecord) -> None:
        """Add an ended sweep to the totals of this process."""
        self.sweeps[(record.outcome or SweepOutcome.INTERRUPTED).value] += 1
        self.requests.update(dict(record.outcomes))
        self.tokens.update({"prompt": record.prompt_tokens, "output": record.output_tokens})
        self.overload_s += record.overload_s

    def view(self, published: Recommendation) -> BackendView:
        probes = self.progress.in_flight if self.progress is not None else 0
        organic = None if self.server_in_flight is None else max(0.0, self.server_in_flight - probes)
        return BackendView(
            name=self.plan.name,
            model=self.plan.target.model,
            objectives=tuple(str(objective) for objective in self.plan.objectives),
            recommendation=published,
            health=self.health,
            health_reason=self.health_reason,
            counters=Counters(
                sweeps={outcome.value: self.sweeps[outcome.value] for outcome in SweepOutcome},
                probe_requests={outcome.value: self.requests[outcome.value] for outcome in RequestOutcome},
                probe_tokens={kind: self.tokens[kind] for kind in ("prompt", "output")},
                probe_overload_s=self.overload_s,
                gateway_polls=self.polls,
            ),
            fallback_cap=self.plan.policy.fallback_cap,
            up=self.up,
            engine=self.engine,
            ready_replicas=1,
            organic_in_flight=organic,
            probe_in_flight=probes,
            last_sweep=self.last,
            last_sweep_at=dict(self.last_at),
            next_sweep_at=None if self.running is not None else self.due_at,
            progress=self.progress,
        )


@dataclass(slots=True)
class Ear:
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
    )
