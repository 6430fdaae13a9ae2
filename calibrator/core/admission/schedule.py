"""When a sweep is due: periodically, with jitter, inside allowed windows, and with growing pauses after failures.

    due = last end + every * (1 + jitter * (2 draw - 1)),  then the next moment at which a window is open

`draw` in [0, 1) comes from the caller and stays the same until the sweep has run, so that the due time does not move.
Windows are weekly and in the wall time of their zone: 22:00 stays 22:00 through a change of daylight saving time. A
wall time that the change skips is read with the offset from before it; of one that occurs twice the first counts. So a
window inside the skipped hour is empty that week, and one around the repeated hour is an hour longer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

RETRY_FIRST_S = 60.0
RETRY_DOUBLINGS = 10
DAY_MINUTES = 24 * 60


@dataclass(frozen=True, slots=True)
class Window:
    """A weekly time window in a time zone. `start`/`end` are minutes of the day; end <= start runs past midnight.

    `weekdays`: 0 = Monday; the day on which the window starts; not empty.
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
    at_start: bool = True  # a backend without a valid measurement is swept as soon as a window is open


def next_due_at(schedule: Schedule, last_ended_at: float | None, now: float, draw: float) -> float:
    """Unix seconds, not before `now`. A backend that was never swept is due at the next opening."""
    if last_ended_at is None:
        wanted = now if schedule.at_start else now + schedule.every_s * draw
    else:
        ended_at = min(last_ended_at, now)  # a clock that was wrong then must not postpone sweeps for years
        wanted = ended_at + schedule.every_s * (1.0 + schedule.jitter_ratio * (2.0 * draw - 1.0))
    return next_open_at(schedule, max(wanted, now))


def retry_at(schedule: Schedule, failures: int, now: float, took_s: float = 0.0) -> float:
    """After `failures` (>= 1) consecutive sweeps without a result: a minute, doubling, at most the usual interval.

    `took_s`: duration of the last one. The pause is no shorter, so that at most half of the time is spent on probing.
    """
    pause_s = max(took_s, RETRY_FIRST_S * 2.0 ** min(failures - 1, RETRY_DOUBLINGS))
    pause_s = min(schedule.every_s, pause_s)
    return next_open_at(schedule, now + pause_s)


def is_allowed(schedule: Schedule, now: float) -> bool:
    return next_open_at(schedule, now) <= now


def next_open_at(schedule: Schedule, at: float) -> float:
    """`at` itself if a window is open then, else the next opening after it."""
    if not schedule.windows:
        return at
    spans = [span for window in schedule.windows for span in _spans(window, at)]
    return min(max(at, opens) for opens, closes in spans if closes > max(at, opens))


def next_close_at(schedule: Schedule, at: float) -> float:
    """When the windows that are open at `at` have closed; infinity without windows, `at` if none is open."""
    if not schedule.windows:
        return math.inf
    spans = [span for window in schedule.windows for span in _spans(window, at)]
    closes_at = at
    while later := [closes for opens, closes in spans if opens <= closes_at < closes]:
        closes_at = max(later)
    return closes_at


def _spans(window: Window, at: float) -> Iterator[tuple[float, float]]:
    """Unix (opening, closing), from yesterday's, which may run past midnight, to those of two weeks ahead."""
    zone = ZoneInfo(window.time_zone)
    today = datetime.fromtimestamp(at, zone).date()
    for offset in range(-1, 16):
        day = today + timedelta(days=offset)
        if day.weekday() in window.weekdays:
            ends_tomorrow = window.end_minute <= window.start_minute
            last = day + timedelta(days=1) if ends_tomorrow else day
            yield _unix(day, window.start_minute, zone), _unix(last, window.end_minute, zone)


def _unix(day: date, minute: int, zone: ZoneInfo) -> float:
    if minute >= DAY_MINUTES:
        return _unix(day + timedelta(days=1), minute - DAY_MINUTES, zone)
    return datetime.combine(day, time(minute // 60, minute % 60), zone).timestamp()
