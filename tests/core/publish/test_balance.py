"""The cap of a fleet against an independent simulation of gateways that choose replicas."""

from __future__ import annotations

import random

import pytest

from calibrator.core.publish.balance import RATIOS_NEEDED, Balance, BalanceWatch, FleetSize
from calibrator.core.publish.fleet import Balancing, FleetScrape, ReplicaScrape
from calibrator.core.records.server_load import ServerLoad


def time_above(
    balancing: Balancing, total: int, replicas: int, caps: tuple[int, ...], growth: float = 0.0
) -> list[float]:
    """Share of time that the busiest of `replicas` is above each of `caps`, with `total` requests always in flight.

    A request that ends is followed at once by the next, on a replica that `balancing` chooses. Residence is exponential
    with mean 1 + growth * (in flight on its replica) / caps[0].
    """
    rng = random.Random(5)
    counts = [total // replicas + (index < total % replicas) for index in range(replicas)]
    above, time, turn = [0.0] * len(caps), 0.0, 0
    for event in range(60_000):
        rates = [count / (1.0 + growth * count / caps[0]) for count in counts]
        lasts = rng.expovariate(sum(rates))
        if event > 5_000:
            time += lasts
            above = [seen + lasts * (max(counts) > cap) for seen, cap in zip(above, caps, strict=True)]
        counts[rng.choices(range(replicas), rates)[0]] -= 1
        if balancing is Balancing.RANDOM:
            chosen = rng.randrange(replicas)
        elif balancing is Balancing.ROUND_ROBIN:
            chosen = turn = (turn + 1) % replicas
        else:
            chosen = min(rng.sample(range(replicas), 2), key=counts.__getitem__)
        counts[chosen] += 1
    return [seen / time for seen in above]


@pytest.mark.parametrize("balancing", Balancing)
@pytest.mark.parametrize(("replica_cap", "replicas"), [(4, 3), (18, 2), (36, 4), (36, 12)])
def test_the_busiest_replica_stays_within_its_cap_at_p99(balancing: Balancing, replica_cap: int, replicas: int) -> None:
    total = Balance(balancing).fleet_cap(replica_cap, replicas)
    (busiest_above,) = time_above(balancing, total, replicas, (replica_cap,))
    assert busiest_above <= 0.013, "1 %, and the simulation's own error"


@pytest.mark.parametrize("balancing", Balancing)
def test_the_capacity_holds_where_load_slows_a_replica_down(balancing: Balancing) -> None:
    """Residence half as long again at the cap as when idle; the safety margin of 10 % stands above the cap."""
    replica_cap, capacity = 36, 40
    total = Balance(balancing).fleet_cap(replica_cap, 4)
    _, above_capacity = time_above(balancing, total, 4, (replica_cap, capacity), growth=0.5)
    assert above_capacity <= 0.013


def test_a_fleet_cap_without_the_factor_would_not_hold() -> None:
    (above,) = time_above(Balancing.RANDOM, 4 * 36, 4, (36,))
    assert above > 0.5


@pytest.mark.parametrize("balancing", Balancing)
@pytest.mark.parametrize("replicas", [1, 2, 5, 40])
@pytest.mark.parametrize("replica_cap", [1, 2, 7, 64, 500])
def test_bounds_and_order(balancing: Balancing, replicas: int, replica_cap: int) -> None:
    balance = Balance(balancing)
    cap = balance.fleet_cap(replica_cap, replicas)
    assert replica_cap <= cap <= replicas * replica_cap
    assert cap <= balance.fleet_cap(replica_cap + 1, replicas)
    assert 0.0 < balance.factor(replica_cap, replicas) <= 1.0
    assert balance.factor(replica_cap, 1) == 1.0


def test_a_measured_ratio_replaces_the_table() -> None:
    assert Balance(Balancing.RANDOM, busiest_to_mean=1.25).fleet_cap(40, 4) == 128
    assert Balance(Balancing.RANDOM, busiest_to_mean=1.0).fleet_cap(40, 4) == 160
    assert Balance(Balancing.RANDOM, busiest_to_mean=9.0).fleet_cap(40, 4) == 40, "never below one replica's"


def scrape(*in_flight: float, cap: int = 40, probes: int = 0) -> FleetScrape:
    replicas = tuple(
        ReplicaScrape(f"http://r{index}/v1", ServerLoad("vllm", count), probes) for index, count in enumerate(in_flight)
    )
    return FleetScrape(0.0, 0.0, replicas, cap, cap)


def test_the_balance_is_measured_while_much_of_the_cap_is_in_use() -> None:
    watch = BalanceWatch()
    for _ in range(RATIOS_NEEDED):
        watch.add(scrape(0.0, 3.0))  # hardly any requests: extremely uneven, and meaningless
        watch.add(scrape(30.0, 8.0, probes=2))
    assert watch.busiest_to_mean is None
    for _ in range(RATIOS_NEEDED):
        watch.add(scrape(22.0, 18.0))
    assert watch.busiest_to_mean == pytest.approx(1.1)
    watch.add(scrape(22.0, 18.0, 20.0))
    assert watch.busiest_to_mean is None, "another set of replicas"


def test_one_replica_or_one_that_does_not_tell_measures_nothing() -> None:
    watch = BalanceWatch()
    silent = FleetScrape(0.0, 0.0, (*scrape(30.0).replicas, ReplicaScrape("http://x/v1", None)), 40, 40)
    for _ in range(2 * RATIOS_NEEDED):
        watch.add(scrape(30.0))
        watch.add(silent)
    assert watch.busiest_to_mean is None


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (1.0, 2.0, 5.0), (1.0,) * 7])
@pytest.mark.parametrize("replica_cap", [1, 5, 36, 99])
@pytest.mark.parametrize("replicas", [1, 3])
def test_the_members_of_a_group_share_its_cap_by_weight(
    weights: tuple[float, ...], replica_cap: int, replicas: int
) -> None:
    whole = FleetSize(replicas).cap(replica_cap)
    parts = [FleetSize(replicas, share=weight / sum(weights)).cap(replica_cap) for weight in weights]
    assert all(part >= 1 for part in parts)
    assert sum(part for part in parts if part > 1) <= whole, "only the floor of 1 may exceed it"
    if whole >= 10 * len(weights):
        assert sum(parts) <= whole
        assert parts == [int(whole * weight / sum(weights) + 1e-9) for weight in weights]
