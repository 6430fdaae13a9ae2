"""Due times: jitter, back-off, and weekly windows through midnight and both changes of daylight saving time."""

from __future__ import annotations

import math
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrator.core.admission.schedule import (
    Schedule,
    Window,
    is_allowed,
    next_close_at,
    next_due_at,
    next_open_at,
    retry_at,
)

HOUR_S = 3600.0
ALL_DAYS = tuple(range(7))
BERLIN = "Europe/Berlin"
NIGHT = Window(ALL_DAYS, 22 * 60, 6 * 60, BERLIN)


def at(text: str, zone: str = BERLIN, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def windows(*given_windows: Window) -> Schedule:
    return Schedule(windows=given_windows)


@pytest.mark.parametrize(
    ("window", "asked", "opens"),
    [
        # inside: now
        (Window(ALL_DAYS, 120, 300, BERLIN), "2027-06-02T03:00", "2027-06-02T03:00"),
        # the opening itself belongs to the window, the closing does not
        (Window(ALL_DAYS, 120, 300, BERLIN), "2027-06-02T02:00", "2027-06-02T02:00"),
        (Window(ALL_DAYS, 120, 300, BERLIN), "2027-06-02T05:00", "2027-06-03T02:00"),
        # past midnight: yesterday's window is still open
        (NIGHT, "2027-06-02T03:00", "2027-06-02T03:00"),
        (NIGHT, "2027-06-02T12:00", "2027-06-02T22:00"),
        # a weekday names the day on which the window starts: Friday 22:00 (2027-06-04) to Saturday 06:00
        (Window((4,), 22 * 60, 6 * 60, BERLIN), "2027-06-05T05:59", "2027-06-05T05:59"),
        (Window((4,), 22 * 60, 6 * 60, BERLIN), "2027-06-04T05:59", "2027-06-04T22:00"),
        (Window((4,), 22 * 60, 6 * 60, BERLIN), "2027-06-05T06:00", "2027-06-11T22:00"),
        # start = end: the whole day; 24:00 is the next midnight
        (Window((2,), 0, 0, BERLIN), "2027-06-02T23:59", "2027-06-02T23:59"),
        (Window((2,), 0, 24 * 60, BERLIN), "2027-06-02T23:59", "2027-06-02T23:59"),
        (Window((2,), 0, 24 * 60, BERLIN), "2027-06-03T00:00", "2027-06-09T00:00"),
        # spring forward (Sunday 2027-03-28, 02:00 -> 03:00): the wall time of opening stays
        (NIGHT, "2027-03-27T21:00", "2027-03-27T22:00"),
        (NIGHT, "2027-03-28T21:00", "2027-03-28T22:00"),
        # a window inside the skipped hour is empty that week, even if no other day has one
        (Window((6,), 135, 180, BERLIN), "2027-03-28T01:00", "2027-04-04T02:15"),
        (Window((6,), 135, 180, BERLIN), "2027-03-26T12:00", "2027-04-04T02:15"),
        # fall back (Sunday 2027-10-31, 03:00 -> 02:00)
        (NIGHT, "2027-10-31T21:00", "2027-10-31T22:00"),
        (Window((6,), 180, 240, BERLIN), "2027-10-31T01:00", "2027-10-31T03:00"),
    ],
)
def test_next_opening(window: Window, asked: str, opens: str) -> None:
    assert next_open_at(windows(window), at(asked)) == at(opens)


def test_window_over_the_repeated_hour_is_an_hour_longer() -> None:
    schedule = windows(Window((6,), 120, 180, BERLIN))
    opens = at("2027-10-31T02:00")
    assert is_allowed(schedule, opens + 2 * HOUR_S - 1)
    assert not is_allowed(schedule, opens + 2 * HOUR_S)


def test_window_ending_in_the_skipped_hour_keeps_its_length() -> None:
    schedule = windows(Window((6,), 60, 150, BERLIN))
    opens = at("2027-03-28T01:00")
    assert is_allowed(schedule, opens + 1.5 * HOUR_S - 1)
    assert not is_allowed(schedule, opens + 1.5 * HOUR_S)


def test_earliest_of_several_windows_in_several_zones() -> None:
    schedule = windows(Window(ALL_DAYS, 22 * 60, 23 * 60, BERLIN), Window(ALL_DAYS, 60, 120, "Asia/Tokyo"))
    # 17:00 in Berlin (CEST) is midnight in Tokyo: Tokyo's 01:00 comes first
    assert next_open_at(schedule, at("2027-06-02T17:00")) == at("2027-06-03T01:00", "Asia/Tokyo")


WINDOWS = st.builds(
    Window,
    weekdays=st.sets(st.integers(0, 6), min_size=1).map(lambda days: tuple(sorted(days))),
    start_minute=st.integers(0, 1439),
    end_minute=st.integers(0, 1440),
    time_zone=st.sampled_from(["UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
)
TIMES = st.floats(1.7e9, 2.0e9) | st.integers(-100, 100).map(lambda m: at("2027-03-28T02:00") + 60.0 * m)


@given(st.lists(WINDOWS, max_size=3).map(tuple), TIMES)
def test_next_opening_is_now_or_later_open_and_idempotent(some: tuple[Window, ...], now: float) -> None:
    schedule = Schedule(windows=some)
    opens = next_open_at(schedule, now)
    assert opens >= now
    assert next_open_at(schedule, opens) == opens
    assert is_allowed(schedule, opens)


@given(WINDOWS, TIMES)
def test_open_means_that_the_wall_clock_stands_inside(window: Window, now: float) -> None:
    """Independent of how openings are computed: read the clock on the wall at the opening, away from clock changes."""
    opens = next_open_at(windows(window), now)
    wall = datetime.fromtimestamp(opens, ZoneInfo(window.time_zone))
    shift = wall.utcoffset() != datetime.fromtimestamp(opens - 90_000, ZoneInfo(window.time_zone)).utcoffset()
    minute = wall.hour * 60 + wall.minute
    starts_today = wall.weekday() in window.weekdays and minute >= window.start_minute
    started_yesterday = (wall.weekday() - 1) % 7 in window.weekdays
    if window.end_minute > window.start_minute:
        assert shift or (starts_today and minute < window.end_minute)
    else:
        assert shift or starts_today or (started_yesterday and minute < window.end_minute)


@given(st.floats(0.0, 1.0, exclude_max=True), st.floats(0.0, 0.5))
def test_jitter_stays_within_its_ratio(draw: float, jitter_ratio: float) -> None:
    due = next_due_at(Schedule(100.0, jitter_ratio), last_ended_at=1000.0, now=1000.0, draw=draw)
    assert 100.0 * (1 - jitter_ratio) - 1e-9 <= due - 1000.0 <= 100.0 * (1 + jitter_ratio) + 1e-9


@pytest.mark.parametrize(
    ("last_ended_at", "at_start", "due"),
    [
        (None, True, 5000.0),  # never swept: now
        (None, False, 5050.0),  # never swept, not at start: somewhere in the first interval
        (4990.0, True, 5090.0),  # counts from the last sweep, not from the start
        (100.0, True, 5000.0),  # overdue: now, not in the past
        (9e9, True, 5100.0),  # the clock was wrong when it ended
    ],
)
def test_due_time(last_ended_at: float | None, at_start: bool, due: float) -> None:  # noqa: FBT001 - a table's column
    schedule = Schedule(100.0, 0.1, at_start=at_start)
    assert next_due_at(schedule, last_ended_at, now=5000.0, draw=0.5) == pytest.approx(due)


def test_due_time_is_moved_into_the_window() -> None:
    schedule = Schedule(HOUR_S, 0.0, (NIGHT,))
    ended = at("2027-06-02T05:30")
    assert next_due_at(schedule, ended, ended, 0.5) == at("2027-06-02T22:00")


def test_retries_back_off_to_the_usual_pace() -> None:
    schedule = Schedule(every_s=1000.0)
    pauses = [retry_at(schedule, failures, 0.0) for failures in (1, 2, 3, 4, 5, 6, 10_000)]
    assert pauses == [60.0, 120.0, 240.0, 480.0, 960.0, 1000.0, 1000.0]


def test_retries_respect_the_windows() -> None:
    assert retry_at(windows(NIGHT), 1, at("2027-06-02T06:00")) == at("2027-06-02T22:00")


def test_the_pause_is_no_shorter_than_the_failed_sweep() -> None:
    """Twenty-minute sweeps that say nothing must not keep an engine under load most of the time."""
    assert retry_at(Schedule(), 1, 0.0, took_s=1200.0) == 1200.0
    assert retry_at(Schedule(every_s=600.0), 1, 0.0, took_s=1200.0) == 600.0


@pytest.mark.parametrize(
    ("some", "asked", "closes"),
    [
        ((NIGHT,), "2027-06-02T23:00", "2027-06-03T06:00"),
        ((NIGHT,), "2027-06-03T05:59", "2027-06-03T06:00"),
        # none is open: it closed already
        ((NIGHT,), "2027-06-03T06:00", "2027-06-03T06:00"),
        # one window goes on where the other ends
        ((NIGHT, Window(ALL_DAYS, 5 * 60, 8 * 60, BERLIN)), "2027-06-03T01:00", "2027-06-03T08:00"),
        ((NIGHT, Window(ALL_DAYS, 6 * 60, 8 * 60, BERLIN)), "2027-06-03T01:00", "2027-06-03T08:00"),
        ((NIGHT, Window(ALL_DAYS, 7 * 60, 8 * 60, BERLIN)), "2027-06-03T01:00", "2027-06-03T06:00"),
    ],
)
def test_closing(some: tuple[Window, ...], asked: str, closes: str) -> None:
    assert next_close_at(Schedule(windows=some), at(asked)) == at(closes)


def test_without_windows_nothing_closes() -> None:
    assert next_close_at(Schedule(), 5.0) == math.inf
