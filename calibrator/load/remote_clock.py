"""Moments of another machine, told in our own monotonic clock.

Two machines' monotonic clocks have nothing in common but their pace. Durations need no common clock: they are measured
where the request runs. Moments (a start, a first token, a decided bit) order the evidence of several workers, and are
carried over:

    ours = theirs + offset        offset = least (heard - told) of the last `KEEP` reports

`told` is the worker's clock when it made a report, `heard` ours when it arrived: their difference is the true offset
plus what the report took. So a carried moment is late by what the *fastest* recent report took, never early; and all
moments of one worker by the same, so that their order and their distances stay as they were. On a usual network that
is a millisecond, far below one poll (`service.sweep.level_runner.POLL_S`), which is how exactly the end of a ramp is
known anyway.

Only recent reports count, because clocks drift: 30 s at the 500 ppm that NTP allows at worst is 15 ms.

Caller: `pool`, for workers whose clock is not ours.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from calibrator.ports.load import Batch

KEEP = 600  # reports: half a minute


class RemoteClock:
    """The clock of one worker."""

    def __init__(self) -> None:
        self._offsets_s: deque[float] = deque(maxlen=KEEP)

    def theirs(self, moment_s: float) -> float | None:
        """A moment of ours in its clock, never late; None: it has told nothing yet."""
        return moment_s - min(self._offsets_s) if self._offsets_s else None

    def ours(self, batch: Batch, told_s: float, heard_s: float) -> Batch:
        """The same events in our clock."""
        self._offsets_s.append(heard_s - told_s)
        offset_s = min(self._offsets_s)
        return replace(
            batch,
            started=[replace(start, started_s=start.started_s + offset_s) for start in batch.started],
            decided=[replace(bit, at_s=bit.at_s + offset_s) for bit in batch.decided],
            ended=[replace(sample, started_s=sample.started_s + offset_s) for sample in batch.ended],
        )
