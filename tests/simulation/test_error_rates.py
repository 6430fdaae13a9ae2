"""Monte-Carlo error rates of the verdict at both ends of the zone, evaluated after every few requests.

Nominal 5 % each. Independent violations and clusters of mean size 1.5 (design effect 2, the prior) keep it. Clusters of
mean size 3 (design effect 5, worse than nine in ten simulated backends) do not: the design effect is estimated from a
handful of violations, and 389 requests without any pass a level that has one cluster in 150. The rate is stated here so
that a change of it is noticed. Bounds carry three standard errors of the runs made.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.synthetic import Player, Synthetic

from calibrator.core.records.history import History
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sweep import VerdictKind
from calibrator.core.search.steps import Measure, Test
from calibrator.core.search.verdict import level_verdict, zone

RUNS = 150


def verdicts(quantile: str, ratio: float, *, level: int, cluster: float, most: int, seed: int) -> list[VerdictKind]:
    objective = parse_objective(f"ttft {quantile} <= 1s")
    found = []
    for run in range(RUNS):
        source = Synthetic(lambda _: ratio, np.random.default_rng([seed, run]), cluster=cluster)
        player = Player(source, (objective,))
        player.level = level  # no warm-up: the test itself is on trial
        history = History((objective,))
        stage = player.stage(history, Measure(level, Test.VERDICT, most, ""))
        found.append(level_verdict(History((objective,), (stage,)), level).kind)
    return found


def at_most(nominal: float) -> float:
    return RUNS * nominal + 3.0 * math.sqrt(RUNS * nominal * (1.0 - nominal))


@pytest.mark.parametrize("level", [4, 32, 128])
@pytest.mark.parametrize(("cluster", "nominal"), [(1.0, 0.05), (1.5, 0.05), (3.0, 0.10)])
def test_a_level_at_the_good_end_is_rarely_refuted(level: int, cluster: float, nominal: float) -> None:
    found = verdicts("p99", 0.005, level=level, cluster=cluster, most=3000, seed=1)
    assert found.count(VerdictKind.EXCEEDED) <= at_most(nominal)
    assert found.count(VerdictKind.WITHIN) >= 0.6 * RUNS


@pytest.mark.parametrize("level", [4, 32, 128])
@pytest.mark.parametrize(("cluster", "nominal"), [(1.0, 0.05), (1.5, 0.05), (3.0, 0.25)])
def test_a_level_at_the_bad_end_is_rarely_certified(level: int, cluster: float, nominal: float) -> None:
    found = verdicts("p99", 0.02, level=level, cluster=cluster, most=3000, seed=2)
    assert found.count(VerdictKind.WITHIN) <= at_most(nominal)
    assert found.count(VerdictKind.EXCEEDED) >= 0.6 * RUNS


@pytest.mark.parametrize("end", ["good", "bad"])
def test_other_quantiles_err_as_rarely(end: str) -> None:
    test = zone(parse_objective("ttft p95 <= 1s"))
    ratio, wrong = (test.p0, VerdictKind.EXCEEDED) if end == "good" else (test.p1, VerdictKind.WITHIN)
    found = verdicts("p95", ratio, level=32, cluster=1.0, most=1000, seed=3)
    assert found.count(wrong) <= at_most(0.05)
    assert found.count(VerdictKind.INCONCLUSIVE) <= 0.1 * RUNS


class Stalled(Synthetic):
    """All requests in flight are caught by one stall, once, somewhere in the first few hundred."""

    def __init__(self, ratio: float, rng: np.random.Generator, hit: int) -> None:
        super().__init__(lambda _: ratio, rng)
        self.hit = hit
        self.from_request = int(rng.integers(0, 300))
        self.seen = 0

    def sample(self, level: int, n: int) -> np.ndarray:
        values = super().sample(level, n)
        places = np.arange(self.seen, self.seen + n)
        self.seen += n
        return np.where((places >= self.from_request) & (places < self.from_request + self.hit), 2.0, values)


@pytest.mark.parametrize(("background", "nominal"), [(0.0, 0.0), (0.005, 0.05)])
@pytest.mark.parametrize("level", [8, 64])
def test_one_giant_stall_does_not_refute_a_good_level(background: float, nominal: float, level: int) -> None:
    """Half of a residence is lost at once; without any other violation the level is never refuted."""
    refuted = 0
    for run in range(RUNS):
        source = Stalled(background, np.random.default_rng([4, run]), hit=level // 2)
        player = Player(source)
        player.level = level
        history = History(player.objectives)
        stage = player.stage(history, Measure(level, Test.VERDICT, 1000, ""))
        refuted += level_verdict(History(player.objectives, (stage,)), level).kind is VerdictKind.EXCEEDED
    assert refuted <= at_most(nominal)
