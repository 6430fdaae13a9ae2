"""A page that does not tell of our engine is said to be so, and a working one never is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calibrator.core.live.gauge_scale import BLIND_SCRAPES
from calibrator.core.live.metrics_sanity import BLIND, FROZEN, FROZEN_S, MetricsSanity
from calibrator.core.live.organic_load import LAG_S
from calibrator.core.records.server_load import ServerLoad

LOAD = ServerLoad("vllm", 8.0, 0.0, output_tokens_total=10.0)


def after(scrapes: list[tuple[ServerLoad | None, int]], trust: MetricsSanity | None = None) -> MetricsSanity:
    """One scrape per second."""
    trust = trust or MetricsSanity()
    for second, (load, probes) in enumerate(scrapes):
        trust = trust.after(load, probes, float(second))
    return trust


def test_a_page_that_never_changes_while_our_requests_come_and_go_is_frozen() -> None:
    scrapes: list[tuple[ServerLoad | None, int]] = [(LOAD, 4 + second % 3) for second in range(int(FROZEN_S) + 2)]
    assert after(scrapes[:10]).problem == ""
    assert after(scrapes).problem == FROZEN


def test_one_long_request_changes_nothing_and_that_is_no_sign() -> None:
    assert after([(LOAD, 1)] * 300).problem == ""


def test_an_idle_engine_is_not_frozen() -> None:
    assert after([(LOAD, 0)] * 300).problem == ""


def test_another_engines_page_shows_fewer_requests_than_ours() -> None:
    scrapes = [(replace(LOAD, output_tokens_total=float(second)), 16) for second in range(int(LAG_S) + BLIND_SCRAPES)]
    assert after([*scrapes[:-1]]).problem == ""
    assert after([*scrapes]).problem == BLIND


def test_gauges_that_lag_while_we_rise_are_believed() -> None:
    """The page shows what we had as long ago as a gauge may lag."""
    rise = int(LAG_S) * 8
    scrapes = [
        (replace(LOAD, running_requests=float(n), output_tokens_total=float(n)), n + rise) for n in range(8, 160, 8)
    ]
    assert after([*scrapes]).problem == ""


@pytest.mark.parametrize("gap", [None, LOAD])
def test_the_word_stays_until_a_page_with_our_requests_looks_right(gap: ServerLoad | None) -> None:
    frozen = MetricsSanity(FROZEN)
    assert after([(gap, 0)] * 5, frozen).problem == FROZEN
    assert after([(LOAD, 8), (replace(LOAD, output_tokens_total=11.0), 8)], frozen).problem == ""
