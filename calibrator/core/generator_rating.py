"""What this machine can measure, from a run of the generator against a loopback server that stamps what it sends.

Added latency is the client's stamp of a token minus the server's stamp of sending it, on one monotonic clock: kernel,
event loop and everything else in between. It includes the server's load on the machine, so it is an upper bound.
Events per second and core follow from CPU time per event; a level beyond `events_per_s` of all cores cannot be
measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STREAM_EVENTS_PER_S = 50.0  # of one stream of a fast engine
USABLE_RATIO = 0.5  # of what CPU time allows; beyond it, stamps wait behind other work
ADDED_ALLOWED_S, ADDED_ALLOWED_RATIO = 0.005, 0.1  # of the tightest limit; less than the former is never material
HELD_RATIO = 0.9  # of the requested streams


@dataclass(frozen=True, slots=True)
class SelfTestLevel:
    """The result for one number of streams."""

    streams: int
    processes: int
    held: float  # mean in flight
    wanted_events_per_s: float  # what the server would send to these streams
    events_per_s: float  # token events measured
    added_latency_p50_s: float | None  # None: no answer ended in time
    added_latency_p99_s: float | None
    cpu_us_per_event: float | None  # of all processes together
    loop_lag_p99_s: float


@dataclass(frozen=True, slots=True)
class SelfTest:
    """All levels, and the machine."""

    cores: int
    levels: tuple[SelfTestLevel, ...]

    @property
    def events_per_s_and_core(self) -> float | None:
        """From the busiest level, where fixed costs matter least."""
        busiest = max(self.levels, key=lambda level: level.events_per_s, default=None)
        return None if busiest is None or not busiest.cpu_us_per_event else 1e6 / busiest.cpu_us_per_event

    @property
    def events_per_s(self) -> float | None:
        """Of the whole machine if nothing else ran on it."""
        each = self.events_per_s_and_core
        return None if each is None else each * self.cores

    @property
    def streams(self) -> int | None:
        """How many streams of a fast engine all cores together can measure."""
        return None if self.events_per_s is None else int(USABLE_RATIO * self.events_per_s / STREAM_EVENTS_PER_S)


@dataclass(frozen=True, slots=True)
class SelfTestRun:
    """Raw counts while one number of streams was held for `seconds`."""

    streams: int
    processes: int
    seconds: float
    in_flight: Sequence[int]
    events: int
    cpu_s: float
    lags_s: Sequence[float]
    added_s: Sequence[float]


def summarise_level(run: SelfTestRun, wanted_events_per_s: float) -> SelfTestLevel:
    p50_s, p99_s = (float(q) for q in np.quantile(run.added_s, [0.5, 0.99])) if len(run.added_s) else (None, None)
    return SelfTestLevel(
        streams=run.streams,
        processes=run.processes,
        held=float(np.mean(run.in_flight)) if len(run.in_flight) else 0.0,
        wanted_events_per_s=wanted_events_per_s,
        events_per_s=run.events / run.seconds,
        added_latency_p50_s=p50_s,
        added_latency_p99_s=p99_s,
        cpu_us_per_event=run.cpu_s / run.events * 1e6 if run.events else None,
        loop_lag_p99_s=float(np.quantile(run.lags_s, 0.99)) if len(run.lags_s) else 0.0,
    )


def too_slow(test: SelfTest, tightest_limit_s: float) -> str:
    """Why a machine with this result cannot measure against this limit; empty: it can."""
    allowed_s = max(ADDED_ALLOWED_S, ADDED_ALLOWED_RATIO * tightest_limit_s)
    for level in test.levels:
        if level.held < HELD_RATIO * level.streams:
            return f"it held {level.held:.0f} of {level.streams} streams"
        if level.added_latency_p99_s is None:
            return f"none of {level.streams} streams ended in time"
        if level.added_latency_p99_s > allowed_s:
            added_ms, allowed_ms = level.added_latency_p99_s * 1e3, allowed_s * 1e3
            return f"it adds {added_ms:.1f} ms (P99) at {level.streams} streams; {allowed_ms:.1f} ms are allowed"
    return ""
