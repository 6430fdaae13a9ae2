"""Points in time of another machine, converted to our own monotonic clock.

The monotonic clocks of two machines have only their pace in common. Durations need no common clock: they are measured
where the request runs. Points in time (a start, a first token, a decided bit) order the evidence of several workers and
are converted:

    ours = theirs + offset        offset = least (received - sent) of the last `KEEP` reports

`sent` is the worker's clock when it made a report, `received` ours when it arrived: their difference is the true offset
plus the transit time. So a converted time is late by the transit time of the *fastest* recent report, never early, and
all times of one worker by the same amount, so their order and distances are preserved. On a usual network that
is a millisecond, far below one poll (`service.sweep.level_runner.POLL_S`), the resolution of the end of a ramp anyway.

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
        """A time of ours in its clock, never late; None: no report yet."""
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
