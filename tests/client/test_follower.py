"""What a poller believes after each kind of answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from calibrator.client.follower import MAX_WAIT_S, PAUSE_S, Follower, own_name
from calibrator.errors import ConfigurationError

DATE = "Fri, 15 Jan 2027 08:00:00 GMT"
DATE_S = 1_800_000_000.0
ANSWER: dict[str, Any] = {"share": 12, "state": "calibrated", "valid_until": "2027-01-15T08:10:00.000Z"}


def told(follower: Follower, *, now_s: float = 100.0, wall: float = DATE_S, date: str = DATE, **changes: Any) -> float:
    headers = {"etag": '"12-37-2-4-calibrated"', **({"date": date} if date else {})}
    return follower.answered(200, headers, json.dumps({**ANSWER, **changes}).encode(), now_s, wall)


def test_the_static_cap_holds_until_the_first_answer() -> None:
    follower = Follower(8)
    assert (follower.limit(0.0), follower.headers()) == (8, {})
    told(follower)
    assert (follower.limit(100.0), follower.state) == (12, "calibrated")
    assert follower.headers() == {"If-None-Match": '"12-37-2-4-calibrated"'}


def test_the_last_good_value_outlives_every_failure_until_it_is_no_longer_valid() -> None:
    follower = Follower(8)
    told(follower, now_s=100.0)
    follower.failed("no connection")
    follower.answered(503, {"retry-after": "2"}, b"", 150.0, DATE_S)
    follower.answered(500, {}, b"", 160.0, DATE_S)
    follower.answered(304, {}, b"", 170.0, DATE_S)
    assert follower.limit(699.9) == 12
    assert follower.limit(700.0) == 8


@pytest.mark.parametrize("skew_s", [-86_400.0, -5.0, 5.0, 86_400.0])
def test_a_skewed_clock_of_ours_changes_nothing(skew_s: float) -> None:
    follower = Follower(8)
    told(follower, wall=DATE_S + skew_s)
    assert (follower.limit(699.9), follower.limit(700.1)) == (12, 8)


def test_without_a_date_of_the_server_our_own_clock_must_do() -> None:
    follower = Follower(8)
    told(follower, wall=DATE_S + 300.0, date="")
    assert (follower.limit(399.9), follower.limit(400.1)) == (12, 8)


def test_a_cap_that_never_ages_holds_for_ever() -> None:
    follower = Follower(8)
    told(follower, valid_until=None)
    assert follower.limit(1e12) == 12


def test_a_stale_answer_is_the_static_cap() -> None:
    follower = Follower(8)
    told(follower, state="stale", valid_until="2027-01-15T07:59:00.000Z")
    assert (follower.limit(100.0), follower.state) == (8, "stale")


@pytest.mark.parametrize(
    "changes",
    [
        {"share": 0}, {"share": -5}, {"share": True}, {"share": 12.0}, {"share": "12"}, {"share": None},
        {"share": 10**12}, {"valid_until": "tomorrow"}, {"valid_until": 5}, {"valid_until": "2027-01-15T08:10:00"},
    ],
)  # fmt: skip
def test_a_value_that_makes_no_sense_changes_nothing(changes: dict[str, Any]) -> None:
    follower = Follower(8)
    told(follower)
    told(follower, **changes)
    assert follower.limit(100.0) == 12
    assert follower.problem
    told(follower)
    assert follower.problem == ""


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"share": 3', b"\xff", b"{}"])
def test_a_body_that_is_no_answer_changes_nothing(body: bytes) -> None:
    follower = Follower(8)
    told(follower)
    follower.answered(200, {}, body, 101.0, DATE_S)
    assert (follower.limit(101.0), bool(follower.problem)) == (12, True)


def test_polls_are_spread_and_a_long_poll_follows_at_once() -> None:
    usual = Follower(8, poll_s=5.0)
    pauses = [told(usual) for _ in range(200)]
    assert 4.5 <= min(pauses) < 4.7
    assert 5.3 < max(pauses) <= 5.5
    long = Follower(8, wait_s=30.0)
    assert all(PAUSE_S <= told(long) <= 2 * PAUSE_S for _ in range(50))
    assert 4.5 <= long.failed("no connection") <= 5.5, "but not where nobody answers"


@pytest.mark.parametrize(
    ("retry_after", "least_s", "most_s"),
    [("1", 0.9, 1.1), ("0", 0.1, 0.3), ("1e9", 54, 66), ("soon", 4.5, 5.5), (None, 4.5, 5.5)],
)
def test_a_503_says_when_to_ask_again(retry_after: str | None, least_s: float, most_s: float) -> None:
    headers = {} if retry_after is None else {"retry-after": retry_after}
    assert least_s <= Follower(8).answered(503, headers, b"", 0.0, 0.0) <= most_s


def test_what_it_asks() -> None:
    assert Follower(8, "gw-1").query(5, 2) == {"client": "gw-1", "in_flight": "5", "rejected": "2"}
    assert Follower(8, "gw-1", wait_s=30.0).query(0, 0)["wait"] == "30"
    assert Follower(8).query(0, 0)["client"] == own_name()


@pytest.mark.parametrize(
    "options", [{"static_cap": 0}, {"static_cap": True}, {"poll_s": 0.0}, {"wait_s": -1.0}, {"wait_s": MAX_WAIT_S + 1}]
)
def test_values_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Follower(**{"static_cap": 8, **options})


def test_a_smaller_share_is_acknowledged_soon_and_a_larger_one_at_the_usual_pace() -> None:
    follower = Follower(8, poll_s=5.0)
    assert told(follower, share=12) >= 4.5
    assert told(follower, share=6) <= 2 * PAUSE_S, "somebody waits for the other 6"
    assert told(follower, share=6) >= 4.5
    assert told(follower, share=7) >= 4.5


def test_who_has_more_running_than_its_share_says_so_at_once_and_again_at_the_usual_pace() -> None:
    follower = Follower(8, poll_s=5.0, wait_s=30.0)
    told(follower, share=6)
    assert follower.query(6, 0)["wait"] == "30"
    assert "wait" not in follower.query(7, 0), "else it would be heard of only after the wait"
    assert 4.5 <= follower.answered(304, {}, b"", 100.0, DATE_S) <= 5.5, "no hot loop until they end"
    assert follower.query(6, 0)["wait"] == "30"
    assert follower.answered(304, {}, b"", 100.0, DATE_S) <= 2 * PAUSE_S
