"""The record of a sweep: at its start, and at its end in whatever way its task ended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import structlog

from calibrator.core.records.history import History
from calibrator.core.records.sweep import Provenance, SweepOutcome, SweepRecord
from calibrator.errors import CalibratorError
from calibrator.ports.sweeps import BackendPlan, SweepOrder


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a sweep was ended from outside."""

    outcome: SweepOutcome
    reason: str
    remedy: str = ""


OVERDUE = Ending(
    SweepOutcome.ERROR,
    "The sweep did not end long after its time budget; it was given up.",
    "See whether the backend answers, and whether this machine has time to measure.",
)
STOPPED = Ending(SweepOutcome.INTERRUPTED, "the service was stopped")
LEASE_LOST = Ending(SweepOutcome.INTERRUPTED, "the lease of its engine group could not be renewed in time")
UNASKED = Ending(SweepOutcome.INTERRUPTED, "the sweep was cancelled")  # by its runner, without our asking


def cancelled_by(author: str) -> Ending:
    return Ending(SweepOutcome.CANCELLED, f"cancelled by {author}")


CONCLUSIVE = (SweepOutcome.CALIBRATED, SweepOutcome.INFEASIBLE)
NOT_MEASURED = (SweepOutcome.ERROR, SweepOutcome.INTERRUPTED, SweepOutcome.CANCELLED)


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


def ended_record(
    task: asyncio.Task[SweepRecord], partial: SweepRecord, now: float, ending: Ending = UNASKED
) -> SweepRecord:
    """`partial`: the newest state that the sweep reported; it stands where the sweep could not report its end."""
    ended = replace(partial, outcome=SweepOutcome.ERROR, ended_at=now)
    if task.done() and not task.cancelled():
        error = task.exception()
        if error is None:
            return task.result()
        if isinstance(error, CalibratorError):
            return replace(ended, reason=error.cause, remedy=error.remedy, error_exit_code=int(error.exit_code))
        structlog.get_logger().error("sweep failed unexpectedly", backend=partial.backend, exc_info=error)
        return replace(ended, reason=f"unexpected {type(error).__name__}: {error}", remedy="Please report this bug.")
    return replace(ended, outcome=ending.outcome, reason=ending.reason, remedy=ending.remedy)


def is_about(record: SweepRecord, plan: BackendPlan) -> bool:
    """A sweep for other objectives, another model or other traffic does not put off the next one."""
    measured = record.provenance
    objectives = tuple(str(objective) for objective in plan.objectives)
    is_same_traffic = plan.mirror is not None or measured.workload == str(plan.workload)
    return is_same_traffic and (measured.model, measured.objectives) == (plan.target.model, objectives)


def what_changed(record: SweepRecord, plan: BackendPlan) -> str:
    """How the configuration differs from that of a sweep, in words; empty: it is the same."""
    measured = record.provenance
    bounds = None if measured.bounds is None else (measured.bounds.min_level, measured.bounds.max_level)
    pairs = (
        ("model", measured.model, plan.target.model),
        ("objectives", ", ".join(measured.objectives), ", ".join(str(objective) for objective in plan.objectives)),
        ("workload", measured.workload, measured.workload if plan.mirror is not None else str(plan.workload)),
        ("bounds", bounds, bounds and (plan.bounds.min_level, plan.bounds.max_level)),
    )
    return "; ".join(f"{name} was {then}, is {now}" for name, then, now in pairs if then != now)
