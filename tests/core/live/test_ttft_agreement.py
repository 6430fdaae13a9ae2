"""Two views of one distribution: the engine's buckets and our own numbers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrator.core.live.ttft_agreement import MIN_REQUESTS, compare, warning
from calibrator.core.records.server_load import Histogram

BOUNDS_S = (0.01, 0.02, 0.04, 0.08, 0.25, 0.5, 1.0, inf)


def histogram(times_s: Sequence[float]) -> Histogram:
    counts = [0] * len(BOUNDS_S)
    for time_s in times_s:
        counts[bisect_left(BOUNDS_S, time_s)] += 1
    return Histogram(BOUNDS_S, tuple(map(float, accumulate(counts))))


def times(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(np.log(0.05), 0.4, n)


@pytest.mark.parametrize(
    ("engine", "ours", "words"),
    [
        # the same requests, seen alike; over a network; by clients a bucket's width late
        (times(300), times(300), ""),
        (times(300), times(300) + 0.003, ""),
        # a queue of 300 ms in front of the engine, and a histogram of something slower
        (times(300), times(300) + 0.3, "we measure 364 ms (P80), the engine's own histogram says 40 to 80 ms"),
        (times(300) + 0.5, times(300), "another engine"),
        # live users in the same histogram: nothing can be said, however far apart
        (times(400), times(300) + 0.3, ""),
        # fewer of them than STRANGERS, but all of them slow: our own are still seen to agree
        (np.concatenate((times(300), np.full(25, 0.9))), times(300), ""),
        # too few
        (times(MIN_REQUESTS - 1), times(MIN_REQUESTS - 1) + 0.3, ""),
        # beyond the last bound the engine says only "more than 1 s"
        (times(300) + 2.0, times(300) + 9.0, ""),
        (times(300) + 2.0, times(300) - 0.001, "1000 to any number of ms"),
    ],
)
def test_what_disagrees_is_said(engine: np.ndarray, ours: np.ndarray, words: str) -> None:
    text = warning(compare(64, histogram(list(engine)), list(ours)))
    assert words in text
    assert bool(text) == bool(words)


def test_nothing_to_compare_is_no_disagreement() -> None:
    assert compare(8, None, list(times(100))) == ()
    assert warning(()) == ""


def test_the_clearest_case_is_told() -> None:
    found = [
        *compare(8, histogram(list(times(300))), list(times(300) + 0.2)),
        *compare(16, histogram(list(times(300))), list(times(300) + 2.0)),
    ]
    assert "at 16 in flight" in warning(found)


@given(st.lists(st.floats(0.001, 3.0), min_size=MIN_REQUESTS, max_size=200))
def test_a_truthful_client_is_never_accused(times_s: list[float]) -> None:
    assert compare(1, histogram(times_s), times_s) == ()
