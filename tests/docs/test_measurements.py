"""What the pages say in words about their measured tables is what the figures say."""

from __future__ import annotations

import pytest
from generate_docs import DOCS, README
from measurements import (
    LIMIT_S,
    POINT_REQUESTS,
    REQUESTS,
    mixed_level,
    parts,
    quantile,
    seed_level,
)

LONG = 1000  # tokens: between the short prompts and the long ones


def rates(users: int) -> tuple[float, float]:
    """Requests per second: completed, and completed within the SLA."""
    ttft_s, duration_s = seed_level(users)
    return len(ttft_s) / duration_s, sum(value <= LIMIT_S for value in ttft_s) / duration_s


def growth(share: float) -> float:
    return quantile(seed_level(64)[0], share) / quantile(seed_level(8)[0], share)


def test_eightfold_concurrency_is_more_than_fivefold_tail_and_twentyfold_median() -> None:
    assert 5.0 < growth(0.99) < 6.5
    assert growth(0.5) == pytest.approx(20, rel=0.1)


def test_beyond_16_in_flight_throughput_stands_still_and_goodput_collapses() -> None:
    throughput = [rates(users)[0] for users in (16, 32, 48, 64)]
    assert max(throughput) < 1.02 * min(throughput)
    assert rates(32)[1] > 0.99 * rates(32)[0]
    late = 1 - rates(64)[1] / rates(64)[0]
    assert late == pytest.approx(0.9, abs=0.03), "nine of ten answers come too late"


def short_tail(percent: int, users: int) -> float:
    return quantile((each.ttft_s for each in mixed_level(percent, users) if each.prompt_tokens < LONG), 0.99)


@pytest.mark.parametrize(("percent", "least", "most"), [(0, 2.5, 3.5), (5, 10.0, 20.0)])
def test_long_prompts_show_in_the_tail_of_the_short_ones(percent: int, least: float, most: float) -> None:
    one, eight = (
        [each.ttft_s for each in mixed_level(percent, users) if each.prompt_tokens < LONG] for users in (1, 8)
    )
    assert least < quantile(eight, 0.99) / quantile(one, 0.99) < most


def test_where_many_prompts_are_long_the_tail_of_all_is_flat() -> None:
    one, eight = ([each.ttft_s for each in mixed_level(5, users)] for users in (1, 8))
    assert quantile(eight, 0.99) < 1.3 * quantile(one, 0.99)


def test_a_third_of_short_tests_pass_a_level_that_one_request_in_five_breaks() -> None:
    ttft_s, _ = seed_level(48)
    assert sum(value > LIMIT_S for value in ttft_s) / REQUESTS == pytest.approx(0.2, abs=0.03)
    passed = [part for part in parts(ttft_s) if quantile(part, 0.99) <= LIMIT_S]
    assert len(passed) == pytest.approx(33, abs=5)
    assert all(len(part) == POINT_REQUESTS for part in passed)


def test_the_words_stand_in_the_pages() -> None:
    """So that this file is found by who changes them."""
    assert "a third of all tests with a hundred requests" in README.read_text()
    assert "nine of ten answers" in (DOCS / "measurements.md").read_text()
