"""Entries for sweeps in child processes; the child imports this module by name."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from calibrator.core.publish.snapshot import Progress
from calibrator.core.records.history import Bounds, History
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sweep import Provenance, SweepOutcome, SweepRecord
from calibrator.core.workload.classes import Workload
from calibrator.errors import ConfigurationError
from calibrator.ports.sweeps import Permit, SweepListener, SweepOrder, Target


def order(note: str = "", sweep_id: str = "s1") -> SweepOrder:
    """`note` travels as the model name."""
    objectives = (parse_objective("ttft p99 <= 200ms"),)
    return SweepOrder(sweep_id, "chat", Target("http://x/v1", note), objectives, Workload(), Bounds(), seed=1)


def record_of(order: SweepOrder, outcome: SweepOutcome | None, reason: str = "") -> SweepRecord:
    return SweepRecord(
        sweep_id=order.sweep_id, backend=order.backend, mode="search", started_at=0.0, ended_at=1.0, outcome=outcome,
        grade=None, capacity=None, reason=reason, requests=1, duration_s=1.0, overload_s=0.0, prompt_tokens=0,
        output_tokens=0, levels=(), warnings=(),
        provenance=Provenance("chat", "http://x/v1", "m", None, "", None, None, 1, "0"),
        history=History(order.objectives),
    )  # fmt: skip


def progress_of(order: SweepOrder, level: int) -> Progress:
    return Progress(order.sweep_id, level, "ramp", 0, 0, "", None, None, 0, 100, 0.0, 60.0, level)


async def succeeds(order: SweepOrder, listener: SweepListener, permit: Permit) -> SweepRecord:
    for level in (2, 4):
        listener.progress(progress_of(order, level))
        listener.partial(record_of(order, None, f"pid {os.getpid()}"))
    return record_of(order, SweepOutcome.CALIBRATED, f"pid {os.getpid()}")


async def takes_a_moment(order: SweepOrder, listener: SweepListener, permit: Permit) -> SweepRecord:
    await asyncio.sleep(0.5)
    return await succeeds(order, listener, permit)


async def says_much(order: SweepOrder, listener: SweepListener, permit: Permit) -> SweepRecord:
    """Far more than a socket buffer holds, in every message, on uvloop and back to back."""
    for level in range(1, 6):
        listener.partial(record_of(order, None, "x" * 3_000_000))
        listener.progress(progress_of(order, level))
        await asyncio.sleep(0)
    return record_of(order, SweepOutcome.CALIBRATED, "y" * 3_000_000)


async def is_misconfigured(order: SweepOrder, listener: SweepListener, permit: Permit) -> SweepRecord:
    raise ConfigurationError("The cause.", "The remedy.")


async def dies(order: SweepOrder, listener: SweepListener, permit: Permit) -> SweepRecord:
    listener.progress(progress_of(order, 2))
    os.kill(os.getpid(), signal.SIGKILL)
    return record_of(order, None)


async def runs_until_cancelled(order: SweepOrder, listener: SweepListener, permit: Permit) -> SweepRecord:
    """Writes "started PID", then "cancelled", to the file named by the order's model."""
    marker = Path(order.target.model)
    marker.write_text(f"started {os.getpid()}")
    listener.progress(progress_of(order, 2))
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        marker.write_text(f"cancelled {os.getpid()}")
        raise
    return record_of(order, None)


async def ignores_cancellation(order: SweepOrder, listener: SweepListener, permit: Permit) -> SweepRecord:
    Path(order.target.model).write_text(f"started {os.getpid()}")
    listener.progress(progress_of(order, 2))
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue
