"""One backend's replicas at run time: discover them, scrape each once a second, report all of them together.

A scrape of the fleet is a task of its own, so that a slow engine delays neither the tick nor other backends; within it
each replica has `SCRAPE_LIMIT_S`. So is discovery, which no scrape waits for. What a scrape means is decided in
`core.publish.fleet`. Discovery that fails, or finds nothing, keeps the last set and says so: a name server that is down
must not be taken for a fleet that is gone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

import structlog

from calibrator.core.live.metrics_sanity import PageTrust
from calibrator.core.publish.balance import Balance, BalanceWatch, FleetSize
from calibrator.core.publish.fleet import (
    BALANCED,
    FleetLook,
    Found,
    Kind,
    Member,
    Probes,
    ReplicaAddress,
    ReplicaLook,
    fleet_kind,
    replica_view,
    statuses,
)
from calibrator.core.publish.snapshot import ReplicaStatus, ReplicaView
from calibrator.core.records.server_load import ServerLoad
from calibrator.errors import CalibratorError, ConfigurationError
from calibrator.ports.clock import Clock
from calibrator.ports.sweeps import BackendPlan, Target
from calibrator.ports.telemetry import Discovery, Telemetry

SCRAPE_EVERY_S = 1.0
SCRAPE_LIMIT_S = 2.0  # a replica that takes longer counts as one that does not answer
FIND_LIMIT_S = 5.0
FIND_AGAIN_S = 5.0  # after discovery failed
SCRAPES_TO_KNOW = 4  # whether one URL leads to several processes: one comes back after another had answered
PEAK_S = 60.0


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Port `Telemetry` where there can be none."""

    problem: str

    async def scrape(self) -> ServerLoad | None:
        return None

    async def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class ScrapeContext:
    """What a scrape needs to know of the service at that moment."""

    cap: int
    replica_cap: int
    probes_on: Callable[[str], Probes | None]  # ours on a replica's URL, whichever backend they measure


class FleetObserver(Protocol):
    """Called with each scrape, by the task that made it."""

    def context(self, backend: str) -> ScrapeContext: ...
    def scraped(self, backend: str, scrape: FleetLook) -> None: ...


@dataclass(slots=True)
class Fleet:
    """Owned by the supervisor, one for each backend."""

    plan: BackendPlan
    discovery: Discovery
    telemetry: Callable[[Target], Telemetry]
    clock: Clock
    newest: FleetLook | None = None  # scrape; None: there was none yet
    problem: str = ""  # of discovery
    members: dict[str, Member] = field(default_factory=dict)
    status: dict[str, ReplicaStatus] = field(default_factory=dict)
    measured_at: dict[str, float] = field(default_factory=dict)  # when a sweep of it ended, by URL
    capacities: dict[str, int] = field(default_factory=dict)  # newest measured one, by URL; all of one kind
    kind: Kind | None = None  # what the replicas are, as far as they report it
    balance: BalanceWatch = field(default_factory=BalanceWatch)
    _readers: dict[str, Telemetry] = field(default_factory=dict)
    _trust: dict[str, PageTrust] = field(default_factory=dict)  # by URL
    _shown: dict[str, int] = field(default_factory=dict)  # scrapes that showed a process start, by URL
    _peaks: deque[tuple[float, float, float]] = field(default_factory=deque)  # when, organic, headroom ratio
    _scraping: asyncio.Task[None] | None = None
    _finding: asyncio.Task[None] | None = None
    _next_scrape_s: float = 0.0
    _next_find_s: float = 0.0
    _measured_kind: Kind | None = None

    # ------------------------------------------------------------------------------------------------- life cycle
    def tick(self, observer: FleetObserver) -> None:
        """Start what is due, unless the last of its kind still runs."""
        now_s = self.clock.monotonic()
        if now_s >= self._next_find_s and _is_over(self._finding):
            self._finding = asyncio.create_task(self._find())
        if self.members and now_s >= self._next_scrape_s and _is_over(self._scraping):
            self._next_scrape_s = max(self._next_scrape_s + SCRAPE_EVERY_S, now_s + SCRAPE_EVERY_S / 2)
            self._scraping = asyncio.create_task(self._scrape_all(observer))

    async def close(self) -> None:
        tasks = [task for task in (self._finding, self._scraping) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(reader.close() for reader in self._readers.values()), return_exceptions=True)

    async def _scrape_all(self, observer: FleetObserver) -> None:
        try:
            await asyncio.gather(*(self._scrape(url, reader, observer) for url, reader in self._readers.items()))
            self._conclude(observer)
        except Exception as error:  # noqa: BLE001 - one backend's bug must not end its scrapes; the next one tries again
            structlog.get_logger().exception("unexpected", backend=self.plan.name, error=repr(error))

    # -------------------------------------------------------------------------------------------------- discovery
    async def _find(self) -> None:
        try:
            async with asyncio.timeout(FIND_LIMIT_S):
                found = await self.discovery.find()
        except CalibratorError as error:
            self._keep_last(str(error))
        except TimeoutError:
            self._keep_last(f"No answer within {FIND_LIMIT_S:g} s.")
        except Exception as error:  # noqa: BLE001 - an adapter's bug must not end the service
            self._keep_last(f"unexpected {type(error).__name__}: {error}")
        else:
            if not found.replicas:
                self._keep_last("The name has no addresses.")
                return
            now_s = self.clock.monotonic()
            self.problem, self._next_find_s = "", now_s + found.valid_s
            await self._adopt(found, now_s)

    def _keep_last(self, problem: str) -> None:
        if not self.problem:
            structlog.get_logger().warning(
                "discovery failed; the last replicas are kept", backend=self.plan.name, why=problem
            )
        self.problem, self._next_find_s = problem, self.clock.monotonic() + FIND_AGAIN_S

    async def _adopt(self, found: Found, now_s: float) -> None:
        wanted = {address.url: (address, True) for address in found.replicas}
        for url in self.plan.replicas.measure_on:
            wanted.setdefault(url, (ReplicaAddress(url), False))
        is_first = not self.members
        gone = [self._readers.pop(url) for url in self.members if url not in wanted]
        self.members = {url: member for url, member in self.members.items() if url in wanted}
        self._trust = {url: trust for url, trust in self._trust.items() if url in wanted}
        self._shown = {url: count for url, count in self._shown.items() if url in wanted}
        for url, (address, in_rotation) in wanted.items():
            if url not in self.members:
                self.members[url] = Member(address, now_s, is_founder=is_first, in_rotation=in_rotation)
                self._readers[url] = self._reader(address)
        await asyncio.gather(*(reader.close() for reader in gone), return_exceptions=True)

    def _reader(self, address: ReplicaAddress) -> Telemetry:
        try:
            return self.telemetry(self.target(address))
        except ConfigurationError as error:  # its certificate files; the sweep meets them, too, and sets the health
            return _Unreadable(str(error))

    def target(self, address: ReplicaAddress) -> Target:
        """How to reach this replica: the plan's target at another address."""
        target = self.plan.target
        metrics_url = target.metrics_url
        if metrics_url is not None and address.url != target.url:
            metrics_url = _at_host_of(address.url, metrics_url)
        return replace(target, url=address.url, host_name=address.host_name, metrics_url=metrics_url)

    # ---------------------------------------------------------------------------------------------------- scrapes
    async def _scrape(self, url: str, reader: Telemetry, observer: FleetObserver) -> None:
        load: ServerLoad | None = None
        try:
            async with asyncio.timeout(SCRAPE_LIMIT_S):
                load = await reader.scrape()
        except TimeoutError:
            pass
        except Exception as error:  # noqa: BLE001 - `scrape` never raises; should it, the engine is unknown for now
            structlog.get_logger().error("unexpected", backend=self.plan.name, error=repr(error))
        probes, delay_s = observer.context(self.plan.name).probes_on(url), self.plan.replicas.scale_up_delay_s
        if url in self.members:  # else it left meanwhile
            now_s = self.clock.monotonic()
            self.members[url] = self.members[url].after(load, probes, now_s, delay_s)
            ours = 0 if probes is None else probes.in_flight
            self._trust[url] = self._trust.get(url, PageTrust()).after(load, ours, now_s)
            if load is not None and load.process_start is not None:
                self._shown[url] = self._shown.get(url, 0) + 1

    def _conclude(self, observer: FleetObserver) -> None:
        now_s, context = self.clock.monotonic(), observer.context(self.plan.name)
        members = tuple(self.members.values())
        kind = fleet_kind(members, self._measured_kind)
        if kind is not None and self._measured_kind not in (None, kind):
            self.capacities, self._measured_kind = {}, None  # what was measured was something else
        self.kind = kind or self.kind
        self.status = statuses(members, self._measured_kind, now_s)
        scrape = self.newest = FleetLook(
            at_s=now_s,
            at=self.clock.wall(),
            replicas=tuple(self._replica(member, context) for member in members if member.in_rotation),
            cap=context.cap,
            replica_cap=context.replica_cap,
        )
        organic = scrape.organic_in_flight
        if organic is not None:
            self._peaks.append((now_s, organic, 1.0 - organic / context.cap))
        while self._peaks and self._peaks[0][0] < now_s - PEAK_S:
            self._peaks.popleft()
        self.balance.add(scrape)
        observer.scraped(self.plan.name, scrape)

    def _replica(self, member: Member, context: ScrapeContext) -> ReplicaLook:
        probes = context.probes_on(member.url) or Probes()
        is_ready = self.status[member.url] is ReplicaStatus.READY
        return ReplicaLook(member.url, member.load, probes.in_flight, is_ready, member.organic_in_flight)

    # ---------------------------------------------------------------------------------------------------- answers
    @property
    def up(self) -> bool | None:
        """None until an engine has answered once: one without metrics is unknown, not down."""
        in_rotation = [member for member in self.members.values() if member.in_rotation]
        if not any(member.has_metrics for member in in_rotation):
            return None
        return any(member.load is not None for member in in_rotation)

    @property
    def engine(self) -> str | None:
        return None if self.kind is None else self.kind[0]

    @property
    def metrics_problem(self) -> str:
        """Why a replica's metrics are missing or cannot be believed; of several the first one's."""
        for url, member in self.members.items():
            problem = self._readers[url].problem if member.load is None else self._trust.get(url, PageTrust()).problem
            if problem:
                return problem
        return ""

    @property
    def ready_replicas(self) -> int:
        if self.newest is None:
            return max(1, len(self.plan.replicas.urls))
        return len(self.newest.ready)

    @property
    def organic_in_flight(self) -> float | None:
        return None if self.newest is None else self.newest.organic_in_flight

    @property
    def in_flight_peak(self) -> float | None:
        return max((organic for _, organic, _ in self._peaks), default=None)

    @property
    def headroom_min_ratio(self) -> float | None:
        return min((ratio for _, _, ratio in self._peaks), default=None)

    @property
    def refusal(self) -> str:
        """Why nothing can be measured here; empty: it can."""
        if not self.members:
            return self.problem
        balanced = [url for url, status in self.status.items() if status is ReplicaStatus.LOAD_BALANCED]
        return f"{', '.join(balanced)}: {BALANCED}" if balanced else ""

    def is_in_rotation(self, url: str) -> bool:
        return url in self.members and self.members[url].in_rotation

    def views(self) -> tuple[ReplicaView, ...]:
        return tuple(
            replica_view(member, self.status.get(url, ReplicaStatus.JOINING)) for url, member in self.members.items()
        )

    # ---------------------------------------------------------------------------------------------------- measuring
    def measured(self, url: str, at: float, capacity: int | None) -> None:
        """A sweep of this replica ended at `at` (Unix seconds); `capacity` None: it found none."""
        self.measured_at[url] = at
        if capacity is not None:
            self.capacities[url] = capacity
            self._measured_kind = self.kind

    def size(self, share: float = 1.0, measuring: str | None = None) -> FleetSize:
        """`measuring`: the replica whose own capacity is about to be published, with the smallest of the others'."""
        others = [
            capacity
            for url, capacity in self.capacities.items()
            if url != measuring
            and self.status.get(url) not in (None, ReplicaStatus.MISMATCHED, ReplicaStatus.LOAD_BALANCED)
        ]
        balance = Balance(self.plan.replicas.balancing, self.balance.busiest_to_mean)
        return FleetSize(self.ready_replicas, balance, share, min(others, default=None))

    def next_target(self) -> Target | None:
        """The replica to measure next: never measured, else measured longest ago; of equals the least loaded.

        None: none can be measured now.
        """
        candidates = self._measurable()
        if not candidates:
            return None
        chosen = min(candidates, key=lambda one: (self.measured_at.get(one.url, 0.0), one.organic_in_flight or 0.0))
        return self.target(chosen.address)

    def _measurable(self) -> Sequence[Member]:
        reserve = [member for member in self.members.values() if not member.in_rotation]
        pool = reserve or list(self.members.values())
        wanted = (ReplicaStatus.STANDBY, ReplicaStatus.READY, ReplicaStatus.JOINING)
        answering = [member for member in pool if self.status.get(member.url) in wanted]
        if answering:  # new ones wait a few scrapes: they may be a load balancer
            return [member for member in answering if not 0 < self._shown.get(member.url, 0) < SCRAPES_TO_KNOW]
        # With none left the sweep is tried all the same: its own first request says what is wrong, and what to do.
        return [member for member in pool if self.status.get(member.url) is ReplicaStatus.DOWN]


def _is_over(task: asyncio.Task[None] | None) -> bool:
    return task is None or task.done()


def _at_host_of(url: str, metrics_url: str) -> str:
    """`metrics_url` with the host of `url`: port and path are the same at each replica."""
    there, wanted = urlsplit(url), urlsplit(metrics_url)
    host = f"[{there.hostname}]" if ":" in (there.hostname or "") else there.hostname
    netloc = host if wanted.port is None else f"{host}:{wanted.port}"
    return urlunsplit(wanted._replace(netloc=netloc or ""))
