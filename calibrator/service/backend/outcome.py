"""What an ended sweep was: its record, in whatever way its task ended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import structlog

from calibrator.core.records.sweep import SweepOutcome, SweepRecord
from calibrator.errors import CalibratorError
from calibrator.ports.sweeps import BackendPlan


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
UNASKED = Ending(SweepOutcome.INTERRUPTED, "the sweep was cancelled")  # by its runner's own confusion


def cancelled_by(author: str) -> Ending:
    return Ending(SweepOutcome.CANCELLED, f"cancelled by {author}")


SAID_SOMETHING = (SweepOutcome.CALIBRATED, SweepOutcome.INFEASIBLE)
SAID_NOTHING = (SweepOutcome.ERROR, SweepOutcome.INTERRUPTED, SweepOutcome.CANCELLED)


def ended_record(
    task: asyncio.Task[SweepRecord], partial: SweepRecord, now: float, ending: Ending = UNASKED
) -> SweepRecord:
    """`partial`: the newest state that the sweep told of itself, kept where it could not tell its end."""
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
