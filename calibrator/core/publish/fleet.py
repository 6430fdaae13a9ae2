"""The replicas of a backend: which of them count, and one scrape of all of them.

Every second the service makes one `FleetScrape` of each backend and passes it to guard, triggers and traffic log.

| status | when | counts in the cap |
|---|---|---|
| ready | it answers, is of the fleet's kind, and shows live requests or has answered for `scale_up_delay` | yes |
| joining | it answers, but has had no live requests yet: the gateway may not know it | no |
| down | it stopped answering, or never answered while others do | no, from the first failed scrape |
| mismatched | its engine, model or version differs from the fleet's: the measured capacity does not apply to it | no |
| load_balanced | different processes answer at its URL: a load balancer | no, and it is not measured |
| standby | it is configured to be measured on and takes no users | no |

Replicas found when the service starts need not show live requests, because the stored cap counted them. Where no
replica shows metrics at all, each counts as ready: unknown is not down. The fleet's kind is the one measured last while
a replica of it remains, else the most common one; what a replica does not report matches everything. So in a rolling
update the new version is mismatched until none of the old is left, and then needs a sweep of its own.

A restart changes `process_start` once. A value that comes *back* after another was seen means that several processes
answer at one URL. The suspicion ends `SUSPICION_S` after the last such return. A replica is measured only after enough
scrapes to rule this out (`service.backend.fleet`).

**Live requests during probes.** Gauges are up to `LAG_S` old and count both, so while probes come and go they cannot
simply be subtracted. A sweep estimates the live load itself (`core.live.organic_load`) and reports it. Before it does,
and for `SETTLE_S` after its end, when the last probes may still be counted, the previous value is used, or the gauge if
that is lower.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from calibrator.core.live.organic_load import LAG_S, live_in_flight
from calibrator.core.publish.snapshot import ReplicaStatus, ReplicaView
from calibrator.core.records.server_load import ServerLoad

SUSPICION_S = 600.0
SETTLE_S = LAG_S + 2.0  # ended probes leave an engine within 2 s
STARTS_KEPT = 16  # processes behind one URL that are distinguished
BALANCED = "this URL is a load balancer; configure the engines' own URLs, or their headless service"

Kind = tuple[str | None, str | None, str | None]  # engine, model, version


class Balancing(StrEnum):
    """How gateways choose a replica, according to the configuration."""

    RANDOM = "random"
    ROUND_ROBIN = "round_robin"
    LEAST_REQUESTS = "least_requests"


@dataclass(frozen=True, slots=True)
class DnsPlan:
    """A headless service: every address behind a name is a replica."""

    name: str
    port: int = 0  # of the replicas; SRV records bring their own
    record: str = "a"  # "a": A and AAAA; "srv"
    period_s: float | None = None  # between two lookups; None: the records' TTL
    host_name: str | None = None  # Host header and TLS server name; None: the name, with SRV the target's


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    """Where the replicas of a backend are, and how they count."""

    urls: tuple[str, ...] = ()  # empty, without dns: the target's own
    dns: DnsPlan | None = None
    measure_on: tuple[str, ...] = ()  # out of rotation: measured for the whole fleet
    scale_up_delay_s: float = 60.0
    balancing: Balancing = Balancing.RANDOM
    weight: float = 1.0  # of this backend in its engine group


@dataclass(frozen=True, slots=True)
class ReplicaAddress:
    """Where a replica is reached."""

    url: str  # base URL, which identifies the replica
    host_name: str | None = None  # sent as Host and TLS server name where the URL has only an address


@dataclass(frozen=True, slots=True)
class Found:
    """A result of discovery."""

    replicas: tuple[ReplicaAddress, ...]
    valid_s: float  # until the next lookup


@dataclass(frozen=True, slots=True)
class Probes:
    """Ours on one replica, now or within the last `SETTLE_S`."""

    in_flight: int = 0
    organic: float | None = None  # live requests beside them, by the sweep's own estimate

    def organic_beside(self, in_flight: float, before: float | None) -> float:
        """Live requests among those on the gauge. `before`: at the previous scrape; None: there was none."""
        if self.organic is not None:
            return self.organic
        if self.in_flight or before is None:
            return live_in_flight(in_flight, self.in_flight)
        return min(before, in_flight)


@dataclass(frozen=True, slots=True)
class ReplicaScrape:
    """One replica at one scrape."""

    url: str
    load: ServerLoad | None  # None: it did not answer, or has no metrics
    probes_in_flight: int = 0  # ours on this replica at that time
    is_ready: bool = True  # counts in the cap
    organic: float | None = None  # a better estimate than the difference, if there is one

    @property
    def organic_in_flight(self) -> float | None:
        """Live requests in flight."""
        in_flight = None if self.load is None else self.load.in_flight_requests
        if in_flight is None or self.organic is not None:
            return self.organic
        return live_in_flight(in_flight, self.probes_in_flight)


@dataclass(frozen=True, slots=True)
class FleetScrape:
    """All replicas in rotation of one backend at one time."""

    at_s: float  # monotonic
    at: float  # Unix seconds
    replicas: tuple[ReplicaScrape, ...]
    cap: int  # being served, for all replicas together
    replica_cap: int

    @property
    def ready(self) -> tuple[ReplicaScrape, ...]:
        return tuple(replica for replica in self.replicas if replica.is_ready)

    @property
    def organic_in_flight(self) -> float | None:
        """Over the ready replicas; None unless all of them report it."""
        parts = [replica.organic_in_flight for replica in self.ready]
        known = [part for part in parts if part is not None]
        return sum(known) if known and len(known) == len(parts) else None

    @property
    def probes_in_flight(self) -> int:
        return sum(replica.probes_in_flight for replica in self.replicas)


@dataclass(frozen=True, slots=True)
class Member:
    """What is known of one replica after some scrapes."""

    address: ReplicaAddress
    found_s: float
    is_founder: bool = False  # found when the service started
    in_rotation: bool = True
    load: ServerLoad | None = None
    has_metrics: bool = False  # it has answered with metrics at least once
    answers_since_s: float | None = None
    is_known_to_users: bool = False  # found at the start, seen with live requests, or has answered for long enough
    organic_in_flight: float | None = None
    starts: tuple[str, ...] = ()  # distinct process starts, the current one last
    returned_s: float | None = None  # when an earlier process start came back

    @property
    def url(self) -> str:
        return self.address.url

    def after(self, load: ServerLoad | None, probes: Probes | None, at_s: float, delay_s: float) -> Member:
        """After one scrape. `probes` None: there are none."""
        if load is None:
            lost = replace(self, load=None, organic_in_flight=None)
            if not self.has_metrics:
                return replace(lost, is_known_to_users=self.is_founder or at_s - self.found_s >= delay_s)
            return replace(lost, answers_since_s=None, is_known_to_users=False, is_founder=False)
        organic = load.in_flight_requests
        if organic is not None and probes is not None:
            organic = probes.organic_beside(organic, self.organic_in_flight)
        since_s = at_s if self.answers_since_s is None else self.answers_since_s
        starts, returned_s = self._with_start(load.process_start, at_s)
        return replace(
            self,
            load=load,
            has_metrics=True,
            organic_in_flight=organic,
            answers_since_s=since_s,
            is_known_to_users=self.is_known_to_users
            or self.is_founder
            or (organic or 0.0) > 0.0
            or at_s - since_s >= delay_s,
            starts=starts,
            returned_s=returned_s,
        )

    def is_balanced(self, at_s: float) -> bool:
        return self.returned_s is not None and at_s - self.returned_s < SUSPICION_S

    def _with_start(self, start: str | None, at_s: float) -> tuple[tuple[str, ...], float | None]:
        if start is None or self.starts[-1:] == (start,):
            return self.starts, self.returned_s
        others = tuple(known for known in self.starts if known != start)
        returned_s = at_s if start in self.starts else self.returned_s
        return (*others, start)[-STARTS_KEPT:], returned_s


def kind_of(load: ServerLoad) -> Kind:
    return load.engine, load.model, load.version


def is_same_kind(one: Kind, other: Kind) -> bool:
    """What is not reported matches everything."""
    return all(a is None or b is None or a == b for a, b in zip(one, other, strict=True))


def fleet_kind(members: Sequence[Member], measured: Kind | None) -> Kind | None:
    """The kind that the fleet's capacity applies to; None: not reported. `measured`: that of the last measurement."""
    in_rotation = [member for member in members if member.in_rotation and member.load is not None]
    kinds = [kind_of(member.load) for member in in_rotation or members if member.load is not None]
    if measured is not None and any(is_same_kind(kind, measured) for kind in kinds):
        return measured
    return Counter(kinds).most_common(1)[0][0] if kinds else None  # of equals the first


def statuses(members: Sequence[Member], measured: Kind | None, at_s: float) -> dict[str, ReplicaStatus]:
    """By URL; the table above."""
    shows_metrics = any(member.has_metrics for member in members if member.in_rotation)
    kind = fleet_kind(members, measured)
    return {member.url: _status(member, kind, at_s, shows_metrics=shows_metrics) for member in members}


def _status(member: Member, kind: Kind | None, at_s: float, *, shows_metrics: bool) -> ReplicaStatus:
    if member.is_balanced(at_s):
        return ReplicaStatus.LOAD_BALANCED
    if member.load is None and (member.has_metrics or (member.in_rotation and shows_metrics)):
        return ReplicaStatus.DOWN
    if member.load is not None and kind is not None and not is_same_kind(kind_of(member.load), kind):
        return ReplicaStatus.MISMATCHED
    if not member.in_rotation:
        return ReplicaStatus.STANDBY
    return ReplicaStatus.READY if member.is_known_to_users else ReplicaStatus.JOINING


def replica_view(member: Member, status: ReplicaStatus) -> ReplicaView:
    load = member.load
    return ReplicaView(
        url=member.url,
        status=status,
        organic_in_flight=member.organic_in_flight,
        engine=None if load is None else load.engine,
        model=None if load is None else load.model,
        version=None if load is None else load.version,
    )
