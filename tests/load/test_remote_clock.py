"""Moments of another machine in our clock: late by the fastest report at most, never early; durations are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrator.core.records.sample import Label, Phase, Sample
from calibrator.load.remote_clock import KEEP, RemoteClock
from calibrator.ports.load import Batch, Decided, Started

LABEL = Label(1, Phase.COUNTED)
SAMPLE = Sample(7, LABEL, "c", stream=True, wanted_prompt_tokens=1, started_s=100.0, duration_s=2.0, ttft_s=0.5)
BATCH = Batch(
    started=(Started(7, LABEL, 100.0),),
    decided=(Decided(7, 0, violated=True, at_s=100.5),),
    ended=(SAMPLE,),
    in_flight=3,
)


def test_every_moment_moves_and_no_duration_does() -> None:
    carried = RemoteClock().ours(BATCH, told_s=102.0, heard_s=5002.001)
    assert carried.started[0].started_s == pytest.approx(5000.001)
    assert carried.decided[0].at_s == pytest.approx(5000.501)
    assert carried.ended[0] == replace(SAMPLE, started_s=carried.ended[0].started_s)
    assert carried.ended[0].started_s == pytest.approx(5000.001)
    assert carried.in_flight == 3


@given(
    st.floats(-1e6, 1e6),
    st.lists(st.floats(0.0001, 2.0), min_size=1, max_size=50),
)
def test_a_moment_is_late_by_the_fastest_report_so_far(offset_s: float, took_s: list[float]) -> None:
    clock = RemoteClock()
    for index, each_s in enumerate(took_s):
        told_s = 200.0 + index
        late_s = clock.ours(BATCH, told_s, told_s + offset_s + each_s).started[0].started_s - (100.0 + offset_s)
        assert late_s == pytest.approx(min(took_s[: index + 1]), abs=1e-6)


def test_a_clock_that_drifts_is_followed() -> None:
    clock, drift = RemoteClock(), 100e-6  # theirs is slow, so the offset grows
    for index in range(2 * KEEP):
        told_s = 0.05 * index
        carried = clock.ours(BATCH, told_s, told_s * (1.0 + drift) + 0.001)
    oldest_s = 0.05 * KEEP
    assert carried.started[0].started_s - 100.0 == pytest.approx(oldest_s * drift + 0.001, abs=1e-5)
