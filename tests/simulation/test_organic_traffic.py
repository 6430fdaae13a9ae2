"""The capacity beside live traffic is the capacity: total concurrency is measured, whoever the requests belong to.

On virtual time, five sweeps a row; `pytest -s` prints the table, with what the same sweeps find that do not look at the
engine's gauges. `tests/benchmarks/bench_organic_traffic.py` has every shape at every lag.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.organic_cases import ENGINES, MOVING, PREFILL, SLOTS, STEADY, Row, Traffic, row, truth_of
from support.organic_sweep import Engine

TOLERANCE_RATIO = 0.10

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def truths() -> dict[str, int]:
    return {engine.name: truth_of(engine) for engine in ENGINES}


@pytest.fixture(scope="module")
def table() -> Iterator[list[Row]]:
    rows: list[Row] = []
    yield rows
    print("", *rows, sep="\n")


@pytest.mark.parametrize("traffic", STEADY, ids=lambda traffic: traffic.name)
@pytest.mark.parametrize("lag_s", [0.0, 2.0])
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_the_capacity_is_that_of_all_requests_together(
    engine: Engine, traffic: Traffic, lag_s: float, truths: dict[str, int], table: list[Row]
) -> None:
    result = row(engine, traffic, lag_s, truths[engine.name], blind_seeds=(1, 2, 3) if lag_s == 0.0 else ())
    table.append(result)
    assert abs(result.error_ratio) <= TOLERANCE_RATIO, str(result)
    if traffic.mean > 0 and result.ignoring:
        blind = result.ignoring[len(result.ignoring) // 2]
        assert blind <= result.truth - traffic.mean / 2, f"the test must be able to fail: {result}"


@pytest.mark.parametrize(
    ("engine", "traffic", "lag_s"),
    [(SLOTS, MOVING[0], 2.0), (SLOTS, MOVING[3], 0.0), (PREFILL, MOVING[1], 0.0), (PREFILL, MOVING[2], 2.0)],
    ids=lambda value: getattr(value, "name", f"lag {value}"),
)
def test_moving_traffic_is_followed(
    engine: Engine, traffic: Traffic, lag_s: float, truths: dict[str, int], table: list[Row]
) -> None:
    result = row(engine, traffic, lag_s, truths[engine.name], blind_seeds=(1,))
    table.append(result)
    assert abs(result.error_ratio) <= TOLERANCE_RATIO, str(result)
