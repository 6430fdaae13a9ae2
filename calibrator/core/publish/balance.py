"""How many requests a fleet may have in flight so that its busiest replica stays within one replica's cap.

A gateway that limits the whole fleet does not decide where requests go; some replica always has more than the mean. So
n replicas of cap k together carry less than n k:

    cap = n k f,    f = balance factor, such that P(busiest > k) <= 1 %

| balancing | busiest of n replicas with T in flight together |
|---|---|
| random | counts are multinomial(T, 1/n): P(busiest > k) <= n P(Bin(T, 1/n) > k), nearly exact this far out |
| round_robin | every n-th request: arrivals at a replica have the squared variation 1/n instead of 1, so the variance \
in flight is (1 + 1/n) / 2 of the random one (GI/M/oo, exponential residence) |
| least_requests | the better of two random choices: the busiest is above the mean by about 1 + log2 log2 n requests |
| measured | f = 1 / r, r the P99 of busiest / mean, seen while at least half of the cap was in use |

Residence that grows with load widens the random counts, because a busy replica drains slowly. Several gateways with
independent round-robin are together close to random. The measured ratio includes both effects, and replaces the table
once there are enough samples; the ratio is larger at low load, so a measurement at half of the cap is conservative.

Source: Whitt, Heavy-traffic limits for the GI/M/oo queue (1982); Mitzenmacher, The power of two choices (2001).
Called by `core.publish.recommendation` and `service.backend.fleet`.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from calibrator.core.publish.fleet import Balancing, FleetScrape

MISS_RATIO = 0.01  # share of the time for which the busiest replica may be above its cap
RATIOS_KEPT = 3600
RATIOS_NEEDED = 900  # for the P99 of a correlated series: about ten exceedances
RATIOS_BETWEEN = 600  # the measured ratio changes a cap at most every ten minutes
STEP = 0.05  # and by no less than this
BUSY_RATIO = 0.5  # of the cap in use, for a scrape to count


@dataclass(frozen=True, slots=True)
class Balance:
    """How evenly gateways distribute requests."""

    stated: Balancing = Balancing.RANDOM
    busiest_to_mean: float | None = None  # measured, P99

    def fleet_cap(self, replica_cap: int, replicas: int) -> int:
        """The most requests in flight over all replicas; at least one replica's cap, at most the sum."""
        if replicas <= 1:
            return replica_cap
        if self.busiest_to_mean is not None:
            return max(replica_cap, math.floor(replicas * replica_cap / max(1.0, self.busiest_to_mean) + 1e-9))
        low, high = replica_cap, replicas * replica_cap
        while low < high:  # the busiest grows with the total
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._fits(middle, replica_cap, replicas) else (low, middle - 1)
        return low

    def factor(self, replica_cap: int, replicas: int) -> float:
        return self.fleet_cap(replica_cap, replicas) / (replica_cap * max(1, replicas))

    def _fits(self, total: int, replica_cap: int, replicas: int) -> bool:
        from scipy.special import bdtrc  # here: `calibrator --help` reads defaults, and needs no numerics

        mean = total / replicas
        if self.stated is Balancing.LEAST_REQUESTS:
            return mean + 1 + math.log2(max(1.0, math.log2(replicas))) <= replica_cap
        # Regular arrivals narrow the distribution: the same tail is reached nearer to the mean.
        narrow = math.sqrt((1.0 + 1.0 / replicas) / 2.0) if self.stated is Balancing.ROUND_ROBIN else 1.0
        reach = math.floor(mean + (replica_cap - mean) / narrow)
        return replicas * float(bdtrc(min(reach, total), total, 1.0 / replicas)) <= MISS_RATIO


@dataclass(frozen=True, slots=True)
class FleetSize:
    """Turns one replica's capacity into the cap of a backend."""

    replicas: int = 1  # ready ones
    balance: Balance = Balance()
    share: float = 1.0  # of this backend in the capacity of its engine group
    smallest_other: int | None = None  # capacity measured on another replica of this kind

    def cap(self, replica_cap: int) -> int:
        """The whole backend's cap, for a replica's cap before it is shared with the engine group."""
        return max(1, math.floor(self.balance.fleet_cap(replica_cap, max(1, self.replicas)) * self.share + 1e-9))

    def replica_cap_within(self, cap: int, measured: int) -> int:
        """The largest cap of a replica, before it is shared, with which the backend's does not exceed `cap`.

        No more than `measured`, unless only a larger one makes up `cap`.
        """
        low, high = 1, measured if self.cap(measured) >= cap else math.ceil((cap + 1) / self.share)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.cap(middle) <= cap else (low, middle - 1)
        return low

    def own(self, replica_cap: int) -> int:
        """This backend's share of a replica's cap; at least 1."""
        return max(1, math.floor(replica_cap * self.share + 1e-9))

    def whole(self, own: int, measured: int) -> int:
        """A replica's cap before it is shared, from this backend's share of it; never more than was measured."""
        return min(measured, max(1, math.ceil(own / self.share - 1e-9)))

    def factor(self, replica_cap: int) -> float:
        return self.balance.factor(replica_cap, max(1, self.replicas))


@dataclass(slots=True)
class BalanceWatch:
    """Busiest / mean over the scrapes of one set of ready replicas."""

    busiest_to_mean: float | None = None  # P99; None: too few samples yet
    _urls: tuple[str, ...] = ()
    _ratios: deque[float] = field(default_factory=lambda: deque(maxlen=RATIOS_KEPT))
    _since_update: int = 0

    def add(self, scrape: FleetScrape) -> None:
        """Only scrapes count in which every ready replica answers, no probes run and much of the cap is in use."""
        urls = tuple(replica.url for replica in scrape.ready)
        if urls != self._urls:
            self._urls, self.busiest_to_mean, self._since_update = urls, None, 0
            self._ratios.clear()
        total = scrape.organic_in_flight
        if len(urls) < 2 or total is None or scrape.probes_in_flight or total < BUSY_RATIO * scrape.cap or total <= 0.0:
            return
        busiest = max(replica.organic_in_flight or 0.0 for replica in scrape.ready)
        self._ratios.append(busiest * len(urls) / total)
        self._since_update += 1
        if len(self._ratios) >= RATIOS_NEEDED and self._since_update >= RATIOS_BETWEEN:
            self._since_update = 0
            ascending = sorted(self._ratios)
            ratio = ascending[math.ceil((1.0 - MISS_RATIO) * len(ascending)) - 1]
            self.busiest_to_mean = math.ceil(ratio / STEP - 1e-9) * STEP
