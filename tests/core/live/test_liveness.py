"""The guard's rules for engines without histograms, one scrape at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.web_fakes import level

from calibrator.core.live.liveness import (
    QUEUE_S,
    Queue,
    Residence,
    Silence,
    certified_queue,
    finished_total,
    longest_silence_s,
)
from calibrator.core.records.server_load import Histogram, ServerLoad, ServerLoadPeak

BUSY = ServerLoad("llama.cpp", running_requests=4.0, waiting_requests=0.0, finished_total=100.0)


def silence_after(*pages: ServerLoad | None) -> Silence:
    silence = Silence()
    for second, page in enumerate(pages):
        silence = silence.after(page, float(second))
    return silence


def growing(seconds: int) -> list[ServerLoad]:
    """Users keep coming to an engine that hangs."""
    return [replace(BUSY, waiting_requests=float(min(second, 6))) for second in range(seconds)]


def test_residence_is_in_flight_over_throughput() -> None:
    residence = Residence()
    assert residence.mean_s is None
    for _ in range(600):
        residence = residence.after(in_flight=10.0, finished=2.0, elapsed_s=1.0)
    assert residence.mean_s == pytest.approx(5.0, rel=0.01)


def test_requests_that_run_for_implausibly_long_without_a_completion_are_noticed() -> None:
    silence = silence_after(*growing(100))
    assert not silence.is_implausible(59.0, 5.0)
    assert silence.is_implausible(60.0, 5.0)
    assert not silence.is_implausible(99.0, 12.0), "long requests have their time"
    assert not silence.is_implausible(99.0, None), "nothing is known of them: five minutes"


@pytest.mark.parametrize(
    "last",
    [
        replace(BUSY, finished_total=101.0),  # a completion
        replace(BUSY, output_tokens_total=1.0),  # a token, of a counter that appeared
        replace(BUSY, running_requests=0.0),  # nothing runs
        replace(BUSY, finished_total=3.0),  # a restart
        None,  # no answer
    ],
)
def test_a_sign_of_work_ends_the_silence(last: ServerLoad | None) -> None:
    assert not silence_after(*growing(100), last).is_implausible(200.0, 5.0)


def test_a_frozen_page_is_no_hanging_engine() -> None:
    assert not silence_after(*[BUSY] * 400).is_implausible(400.0, 1.0)


def test_an_engine_that_counts_nothing_is_never_silent() -> None:
    mute = [replace(page, finished_total=None) for page in growing(100)]
    assert silence_after(*mute).since_s is None


def test_the_longest_silence() -> None:
    assert [longest_silence_s(residence_s) for residence_s in (None, 1.0, 30.0)] == [300.0, 60.0, 300.0]


@pytest.mark.parametrize(
    ("load", "counts"),
    [
        (replace(BUSY, waiting_requests=1.0), True),
        (replace(BUSY, waiting_requests=4.0), True),  # 8 in flight: at the cap still
        (replace(BUSY, waiting_requests=5.0), False),  # above the cap a queue is no wonder
        (BUSY, False),
        (replace(BUSY, waiting_requests=None), False),
        (None, False),
    ],
)
def test_a_queue_below_the_cap(load: ServerLoad | None, *, counts: bool) -> None:
    queue = Queue().after(load, 0.0, 0.0, 8).after(load, QUEUE_S, 0.0, 8)
    assert queue.is_persistent(QUEUE_S) is counts


def test_a_queue_that_empties_once_is_not_persistent() -> None:
    waiting = replace(BUSY, waiting_requests=2.0)
    queue = Queue().after(waiting, 0.0, 0.0, 8).after(BUSY, 60.0, 0.0, 8).after(waiting, 61.0, 0.0, 8)
    assert not queue.is_persistent(QUEUE_S)


def test_a_queue_that_was_certified_is_allowed() -> None:
    levels = [
        replace(level(8), server=ServerLoadPeak(waiting_requests=3.0)),
        replace(level(16), server=ServerLoadPeak(waiting_requests=9.0)),
        replace(level(4), server=ServerLoadPeak()),
    ]
    allowed = certified_queue(levels, 8)
    assert allowed == 3.0
    assert certified_queue((), 8) == 0.0
    waiting = replace(BUSY, waiting_requests=3.0)
    assert Queue().after(waiting, 0.0, allowed, 8).since_s is None


def test_finished_requests_by_whichever_series_there_is() -> None:
    assert finished_total(BUSY) == 100.0
    assert finished_total(ServerLoad("x", e2e_s=Histogram((1.0, float("inf")), (2.0, 3.0)))) == 3.0
    assert finished_total(ServerLoad("x")) is None
