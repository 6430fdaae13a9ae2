"""What the supervisor remembers about one backend between ticks, and its projection into the snapshot."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from calibrator.core.sample import RequestOutcome
from calibrator.core.snapshot import BackendView, Counters, Health, Progress, Recommendation, SweepSummary
from calibrator.core.sweep_record import SweepOutcome, SweepRecord
from calibrator.ports import BackendPlan


@dataclass(frozen=True, slots=True)
class Wanted:
    """A sweep that somebody asked for."""

    sweep_id: str
    reason: str


@dataclass(slots=True)
class BackendState:
    """Mutable, owned by the supervisor; nothing else writes to it."""

    plan: BackendPlan
    due_at: float = 0.0
    failures: int = 0  # sweeps in a row that said nothing
    wanted: Wanted | None = None
    running: asyncio.Task[SweepRecord] | None = None
    running_id: str | None = None
    progress: Progress | None = None
    partial: SweepRecord | None = None  # newest state of the running sweep
    partial_is_saved: bool = True
    health: Health = Health.OK
    health_reason: str = ""
    up: bool | None = None
    engine: str | None = None
    server_in_flight: float | None = None
    last: SweepSummary | None = None
    last_at: dict[str, float] = field(default_factory=dict)
    generator_lag_s: float | None = None
    sweeps: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    overload_s: float = 0.0
    polls: int = 0

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
    """Port `SweepListener`: keeps the newest words of a running sweep; the supervisor saves them at its next tick."""

    state: BackendState

    def progress(self, progress: Progress) -> None:
        self.state.progress = progress

    def partial(self, record: SweepRecord) -> None:
        self.state.partial, self.state.partial_is_saved = record, False
