"""How much of a cap gives way to probes: enough, at most one replica's part, and seldom another number."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from calibrator.service.backend.view import RESERVED_STEPS, in_steps


@given(st.integers(0, 2000), st.integers(1, 1000))
def test_enough_and_no_more_than_the_part_in_few_steps(probes: int, part: int) -> None:
    reserved = in_steps(probes, part)
    assert min(probes, part) <= reserved <= min(part, probes + part // RESERVED_STEPS)
    assert (reserved == 0) == (probes == 0)
    assert len({in_steps(some, part) for some in range(part + 1)}) <= 2 * RESERVED_STEPS + 1
