"""How numbers and times are written."""

from __future__ import annotations

import math

import pytest

from calibrator.core.report.formats import number, timestamp


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.1 + 0.2, 0.3), (1 / 3, 0.333333), (0.0, 0.0), (1234567, 1234567), (math.nan, None), (-math.inf, None)],
)
def test_numbers_have_six_digits_and_counts_all_of_theirs(value: float, shown: float | None) -> None:
    assert number(value) == shown


def test_times_are_utc() -> None:
    assert timestamp(0.0) == "1970-01-01T00:00:00.000Z"
    assert timestamp(1_800_000_000.25) == "2027-01-15T08:00:00.250Z"
    assert timestamp(None) is None
