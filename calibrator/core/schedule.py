"""When a sweep is due: every so often, jittered, inside allowed windows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """A weekly time window in a time zone. `start`/`end` are minutes of the day; end <= start runs past midnight.

    `weekdays`: 0 = Monday; the day on which the window starts.
    """

    weekdays: tuple[int, ...]
    start_minute: int
    end_minute: int
    time_zone: str = "UTC"


@dataclass(frozen=True, slots=True)
class Schedule:
    """`windows` empty: always allowed."""

    every_s: float = 21_600.0
    jitter_ratio: float = 0.1
    windows: tuple[Window, ...] = ()
    at_start: bool = True  # a backend without a valid measurement is swept as soon as a window allows
