"""The capacity beside live traffic is the capacity: total concurrency is measured, whoever the requests belong to.

On virtual time, five sweeps a row or nine; `pytest -s` prints the table, with what a sweep finds that does not look
at the engine's gauges. `tests/benchmarks/bench_organic_traffic.py` has every shape at every lag.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.organic_cases import ENGINES, MOVING, PREFILL, RUNS, STEADY, Row, Traffic, exceedance_ratio, row, truth_of
from support.organic_sweep import Engine

TOLERANCE_RATIO = 0.10


@pytest.fixture(scope="module")
def truths() -> dict[str, int]:
    return {engine.name: truth_of(engine) for engine in ENGINES}


@pytest.fixture(scope="module")
def table() -> Iterator[list[Row]]:
    rows: list[Row] = []
    yield rows
    print("", *rows, sep="\n")


ROWS = [
    pytest.param(engine, traffic, lag_s, id=f"{engine.name}, {traffic.name}, lag {lag_s:g} s")
    for engine in ENGINES
    for traffic in STEADY
    for lag_s in (0.0, 2.0)
    if traffic.mean > 0 or lag_s == 0.0
]
ROWS.append(pytest.param(PREFILL, MOVING[2], 2.0, id="prefill, seen late in bursts"))  # the hardest of the table


@pytest.mark.parametrize(("engine", "traffic", "lag_s"), ROWS)
def test_the_capacity_is_that_of_all_requests_together(
    engine: Engine, traffic: Traffic, lag_s: float, truths: dict[str, int], table: list[Row]
) -> None:
    runs = 9 if engine is PREFILL else RUNS  # its sweeps scatter more
    result = row(engine, traffic, lag_s, truths[engine.name], runs=runs, ignoring=1 if lag_s == 0.0 else 0)
    table.append(result)
    assert abs(result.error_ratio) <= TOLERANCE_RATIO, str(result)
    if traffic.mean > 0 and result.ignoring:
        assert result.ignoring[0] <= result.truth - traffic.mean / 2, f"the test must be able to fail: {result}"


@pytest.mark.parametrize(
    ("traffic", "lag_s"),
    [(MOVING[0], 2.0), (MOVING[1], 0.0), (MOVING[2], 2.0), (MOVING[3], 0.0)],
    ids=lambda value: getattr(value, "name", f"lag {value} s"),
)
def test_moving_traffic_does_not_bias_what_is_seen_at_a_level(
    traffic: Traffic, lag_s: float, truths: dict[str, int]
) -> None:
    """Just below the true capacity at most 1 % exceed, above it more do, whatever the traffic does meanwhile."""
    capacity = truths[PREFILL.name]
    assert exceedance_ratio(PREFILL, traffic, lag_s, capacity - 1, 1500) <= 0.01
    assert exceedance_ratio(PREFILL, traffic, lag_s, capacity + 5, 500) > 0.01
