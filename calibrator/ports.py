"""All contracts between layers on one page, in domain words. Adapters implement them; `service` awaits them.

House rules: a port is small; nothing here knows a vendor, HTTP, SQL or a file; an adapter translates foreign errors
into `errors`, except a probe's failure, which is data (`core.sample.Failure`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from calibrator.core.admission import CarePolicy
from calibrator.core.burst import BurstMode
from calibrator.core.fleet import Found, ReplicaPlan
from calibrator.core.guard import GuardPolicy
from calibrator.core.harm import AbortLimits, SweepLimits
from calibrator.core.measurement import Bounds, WarmStart
from calibrator.core.mirror import MirrorPolicy
from calibrator.core.objective import Objective
from calibrator.core.recommendation import PublishPolicy
from calibrator.core.sample import Flight, Label, ProbeRequest, Sample
from calibrator.core.schedule import Schedule
from calibrator.core.server_load import ServerLoad
from calibrator.core.share_desk import InstanceReport, ShareTable
from calibrator.core.shares import HeldShare
from calibrator.core.snapshot import Override, Progress, Recommendation, Snapshot
from calibrator.core.sweep_record import SweepRecord
from calibrator.core.triggers import TriggerPolicy
from calibrator.core.workload import TokenScale, Workload


class Clock(Protocol):
    """Time as a port: durations from `monotonic`, wall time only for schedules, records and display."""

    def monotonic(self) -> float: ...
    def wall(self) -> float: ...
    async def sleep(self, seconds: float) -> None: ...


# ------------------------------------------------------------------------------------------------ what is measured
class Connection(Protocol):
    """One virtual user's way to the backend: at most one request at a time, kept alive between requests."""

    async def send(self, request: ProbeRequest, on_start: Callable[[Flight], None]) -> Sample:
        """Send and follow to the end. Never raises for the backend's failures: they are in the Sample.

        `on_start` is called once, when the bytes were handed to the open connection, with the Flight that is stamped
        live from then on. A request that never got that far (connect failed) still calls it, with the moment of
        failure. Cancelling the task closes the connection and raises CancelledError; use `abort` to get a Sample.
        """
        ...

    def abort(self) -> None:
        """Close the connection now; a `send` under way returns a Sample with `cancelled=True`."""
        ...


class Backend(Protocol):
    """A replica under measurement."""

    def connect(self) -> Connection:
        """A new, lazy connection: it opens with its first request."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class BackendFacts:
    """What a first, polite look at a backend found."""

    model: str
    token_scale: TokenScale
    forces_length: bool  # output length can be forced (ignore_eos or the like)
    max_context_tokens: int | None = None
    engine: str | None = None
    warnings: tuple[str, ...] = ()


class Inspector(Protocol):
    """Looks at a backend before a sweep: credentials, model, context, tokenizer scale, length forcing."""

    async def inspect(self, workload: Workload) -> BackendFacts:
        """Raises ConfigurationError or UnreachableError with cause and remedy."""
        ...


# ------------------------------------------------------------------------------------------------------------- load
@dataclass(frozen=True, slots=True)
class Started:
    request_id: int
    label: Label
    started_s: float
    stream: bool = True


@dataclass(frozen=True, slots=True)
class Decided:
    """One bit, decided. `violated` None: this request says nothing about this objective (cancelled in time)."""

    request_id: int
    objective: int  # index in the SLA
    violated: bool | None
    at_s: float  # client's monotonic clock
    doubtful: bool = False  # violated, but by less than the generator itself may have been late


@dataclass(frozen=True, slots=True)
class Batch:
    """What happened since the last poll, in order; plus the moment's counts and the generator's own error."""

    started: Sequence[Started] = ()
    decided: Sequence[Decided] = ()
    ended: Sequence[Sample] = ()
    in_flight: int = 0
    users: int = 0
    turned_over: int = 0  # users that ended at least one request since the visit of their label began
    all_started: bool = True  # every wanted user has been added
    loop_lag_s: Sequence[float] = ()  # one value a probe
    lag_probe_s: float = 0.0  # the probe's interval
    cpu_ratio: float = 0.0  # of one core, busiest process
    cpu_s: float = 0.0  # spent since the last poll, all processes together
    processes: int = 1
    broken: str = ""  # a part of the generator died: its requests never end, what was being measured is void


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Where the workers of a generator run. Picklable: it travels to the sweep's process."""

    kind: str = "processes"  # processes | ray
    most_workers: int | None = None  # None: as many as the highest level needs
    ray_address: str = "auto"
    ray_start_s: float = 300.0  # that a worker may wait for a free core


class LoadGenerator(Protocol):
    """Holds a number of requests in flight in closed loop: each virtual user sends its next when the last ended."""

    async def start(self) -> None: ...

    def aim(self, users: int, label: Label, stagger_s: float) -> None:
        """Hold `users` from now on. Users are added spread over `stagger_s`; surplus users leave as they end.

        Requests that start from now on carry `label`. Within a visit the number of users may change at any time: it
        makes up for live traffic.
        """
        ...

    def allow(self, until_s: float) -> None:
        """No request starts at or after this moment of our monotonic clock; grows while the lease is renewed.

        Checked before each request, where it is sent: a process that was paused meanwhile sends nothing more.
        """
        ...

    async def poll(self) -> Batch:
        """Events since the last poll; does not wait. Raises GeneratorError if the generator cannot go on."""
        ...

    async def stop(self) -> None:
        """Cancel every request and close every connection, within one second."""
        ...


class PromptSource(Protocol):
    """Next request of the workload: stratified classes, unique nonce."""

    def next_request(self, label: Label, *, residual: bool) -> ProbeRequest:
        """`residual`: the first request of a user that joins a running level gets a residual output length."""
        ...


# -------------------------------------------------------------------------------------------------------- telemetry
class Telemetry(Protocol):
    """Reads a replica's own metrics."""

    @property
    def problem(self) -> str:
        """Why the last scrape gave nothing, with the remedy, in words; empty if it gave something."""
        ...

    async def scrape(self) -> ServerLoad | None:
        """None: the engine has no metrics, or they are out of reach. Never raises."""
        ...

    async def close(self) -> None: ...


class Discovery(Protocol):
    """Finds the replicas of a backend."""

    async def find(self) -> Found:
        """Raises UnreachableError if nobody answers; an empty answer is one."""
        ...


# ------------------------------------------------------------------------------------------------------------ sweeps
@dataclass(frozen=True, slots=True)
class Target:
    """How to reach one replica. Picklable: it travels to the sweep's process. Secrets never appear in `repr`."""

    url: str  # base, ending in /v1
    model: str
    api: str = "chat"  # chat | completions
    api_key: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    client_cert_file: str | None = None
    client_key_file: str | None = None
    metrics_url: str | None = None  # None: derived from url
    host_name: str | None = None  # sent as Host and TLS server name; None: as in url

    @property
    def authority(self) -> str | None:
        """The Host header where it is not the URL's."""
        port = urlsplit(self.url).port
        return self.host_name if self.host_name is None or port is None else f"{self.host_name}:{port}"


@dataclass(frozen=True, slots=True)
class SweepOrder:
    """Everything one sweep needs. Picklable."""

    sweep_id: str
    backend: str
    target: Target
    objectives: tuple[Objective, ...]
    workload: Workload
    bounds: Bounds
    seed: int
    levels: tuple[int, ...] = ()  # not empty: measure exactly these, no search
    requests_per_level: int = 0  # with `levels`
    burst: BurstMode = BurstMode.OFF  # after a search: simultaneous arrivals at the capacity
    warm: WarmStart | None = None  # what is believed of the sweep before; None: a cold sweep
    started_at: float = 0.0
    abort: AbortLimits = field(default_factory=AbortLimits)
    limits: SweepLimits = field(default_factory=SweepLimits)
    doubts: tuple[str, ...] = ()  # known before it begins; they become warnings of the record
    trigger: str = ""  # why it runs, in words
    sampled_probes_ratio: float = 0.0  # share of the probes that ask the engine to trace them


@dataclass(frozen=True, slots=True)
class BackendPlan:
    """One configured backend, as the supervisor needs it."""

    name: str
    engine_group: str  # backends of one group share their engine: one sweep at a time
    target: Target
    objectives: tuple[Objective, ...]
    workload: Workload
    bounds: Bounds
    schedule: Schedule
    policy: PublishPolicy
    burst: BurstMode = BurstMode.OFF
    replicas: ReplicaPlan = field(default_factory=ReplicaPlan)
    guard: GuardPolicy = field(default_factory=GuardPolicy)
    care: CarePolicy = field(default_factory=CarePolicy)
    triggers: TriggerPolicy = field(default_factory=TriggerPolicy)
    mirror: MirrorPolicy | None = None  # what of `workload` is taken from live traffic instead


Permit = Callable[[], float]  # until when probes may start, by this machine's monotonic clock; grows when renewed


def forever() -> float:
    """The permit of a sweep that nobody else could run."""
    return math.inf


class SweepListener(Protocol):
    """Hears a sweep while it runs."""

    def progress(self, progress: Progress) -> None: ...

    def partial(self, record: SweepRecord) -> None:
        """After each visit: the record so far (outcome None), so that a killed sweep leaves its evidence."""
        ...


class SweepRunner(Protocol):
    """Runs a sweep, in a process of its own or in this one."""

    async def run(self, order: SweepOrder, listener: SweepListener, permit: Permit = forever) -> SweepRecord:
        """The ended record, outcome `error` included. Cancelling ends all probes within a second, then re-raises.

        So does the end of the permit, whatever our own process does then: it may be paused, or hang.
        """
        ...


class SweepTracer(Protocol):
    """Tells a tracing system of sweeps."""

    def ended(self, record: SweepRecord) -> None:
        """Take it up. Never raises, never waits: a collector that is down changes nothing."""
        ...

    def close(self) -> None:
        """Send what waits, within a second or so; blocks."""
        ...


# ------------------------------------------------------------------------------------------------------------- state
class Store(Protocol):
    """Remembers. Every method raises StoreError when the database fails."""

    async def open(self) -> None:
        """Migrate and take the single-instance lock. Raises StoreLockedError if another instance has it."""
        ...

    async def close(self) -> None: ...

    async def add_recommendation(self, recommendation: Recommendation, tenure: Tenure) -> None:
        """Append, in one transaction with the look at the lease; a (backend, version) that exists already is refused
        with StoreError, an epoch that is no longer the lease's with StaleTenureError: nothing is written then."""
        ...

    async def latest_recommendations(self) -> Sequence[Recommendation]:
        """The newest of each backend."""
        ...

    async def recommendations(self, backend: str, limit: int) -> Sequence[Recommendation]:
        """Newest first."""
        ...

    async def save_sweep(self, record: SweepRecord) -> None:
        """Insert, or replace the same sweep_id; what ended is not replaced by what runs. Samples are kept apart."""
        ...

    async def sweep(self, sweep_id: str) -> SweepRecord | None: ...

    async def samples(self, sweep_id: str) -> bytes | None:
        """The single requests of a sweep, packed (core.sample_log); None: not kept, or not any more."""
        ...

    async def sweeps(self, backend: str, limit: int) -> Sequence[SweepRecord]:
        """Newest first."""
        ...

    async def save_shares(self, backend: str, held: Sequence[HeldShare], *, per_replica: bool) -> None:
        """Replace all that was held of this cap."""
        ...

    async def shares(self, backend: str, *, per_replica: bool) -> Sequence[HeldShare]:
        """By client name."""
        ...

    async def save_share_report(self, instance: str, report: InstanceReport | None) -> None:
        """Replace this instance's of a lower number; None forgets it."""
        ...

    async def share_reports(self) -> Mapping[str, tuple[float, InstanceReport]]:
        """By instance: for how long it has stood there by the database's clock, and what it says."""
        ...

    async def save_share_table(self, backend: str, table: ShareTable, tenure: Tenure, *, per_replica: bool) -> None:
        """Replace the one before, in one transaction with the look at the lease. Raises StaleTenureError if that was
        taken over, StoreError if what stands there is not the version before: nothing is written then."""
        ...

    async def share_tables(self) -> Mapping[tuple[str, bool], ShareTable]:
        """By backend and whether the replica's cap is divided."""
        ...

    async def save_override(self, backend: str, override: Override | None) -> None:
        """Replace the one of this backend; None removes it."""
        ...

    async def overrides(self) -> Mapping[str, Override]:
        """By backend, ended ones included."""
        ...

    async def interrupt_running_sweeps(self, backends: Collection[str], now: float) -> int:
        """Mark sweeps of these backends without outcome as interrupted (after a kill); returns how many."""
        ...

    async def save_activity(self, backend: str, activity: Activity | None) -> None:
        """What the holder's sweep of this backend does now, for the other instances; None: nothing."""
        ...

    async def activities(self) -> Mapping[str, Activity]:
        """By backend."""
        ...

    async def add_wish(self, wish: Wish) -> None:
        """What a person asked an instance for that does not hold the lease; the holder takes it."""
        ...

    async def take_wishes(self, backends: Collection[str]) -> Sequence[Wish]:
        """Oldest first; each is taken by one instance only."""
        ...

    async def save_memory(self, backend: str, kind: str, document: str) -> None:
        """A small text that a watch wants to find again after a restart, such as its cool-downs; replaces the last."""
        ...

    async def memories(self, backend: str) -> Mapping[str, str]:
        """By kind."""
        ...

    async def changed(self, limit_s: float) -> None:
        """Return when another instance may have written something, at the latest after `limit_s`. Never raises: a lost
        database only makes it wait the whole time."""
        ...


@dataclass(frozen=True, slots=True)
class Tenure:
    """A lease as its holder has it. Whoever holds it may probe that engine group, and publish for its backends."""

    group: str
    holder: str  # the instance: its host name and a random suffix
    epoch: int  # grows with each take-over and never repeats: the fence of what is published


@dataclass(frozen=True, slots=True)
class Activity:
    """A running sweep as other instances see it."""

    sweep_id: str
    reserved_for_probes: int  # of the published cap
    progress: Progress | None = None
    url: str = ""  # the replica that it measures


@dataclass(frozen=True, slots=True)
class Wish:
    """A sweep to start or to cancel, asked for at another instance; or a cap that one lowered and could not store."""

    backend: str
    sweep_id: str  # of the one to start; empty: cancel the one that runs
    reason: str
    asked_at: float
    lowered: Recommendation | None = None  # served by an instance that lost its lease before it could be stored


class Leases(Protocol):
    """One row per engine group, taken and renewed by compare-and-set with the database's own clock.

    Every method raises StoreError when the database fails, and ends within a few seconds whatever the database does.
    """

    async def acquire(self, group: str, holder: str, lease_s: float) -> Tenure | None:
        """None: another holds it. The same holder gets it again with a new epoch."""
        ...

    async def renew(self, tenure: Tenure, lease_s: float) -> bool:
        """False: it is no longer ours."""
        ...

    async def release(self, tenure: Tenure) -> None:
        """Others may take it at once; nothing happens if it is no longer ours."""
        ...

    async def holders(self) -> Mapping[str, str]:
        """Holder by engine group, of leases in force."""
        ...


class Poll(NamedTuple):
    """One gateway process asks for its part of a cap. A tuple, as thousands are made a second."""

    client: str  # its identity: `client=`, Envoy's node id, HAProxy's agent-send; "" gets the whole cap, unshared
    in_flight: int | None = None  # what it has under way; None: it does not say
    rejected: int | None = None  # turned away by it since its last poll
    per_replica: bool = False  # for gateways that limit each server: divides `replica_cap` instead of `cap`
    is_waiting: bool = False  # a long poll that looks again: not counted as another poll


class Share(NamedTuple):
    """The part of one client; over all clients of a backend the sum never exceeds the cap (or each client has 1)."""

    requests: int | None  # >= 1; None: a joiner waits until the others' smaller shares were delivered or expired
    clients: int
    version: int  # changes with every change of what this client is told, also over restarts; not ordered
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Poller:
    """One live client of a cap."""

    client: str
    per_replica: bool  # divides the replica's cap
    share: int  # what it was last told; 0: it waits
    target: int  # what it gets as soon as the others have heard of theirs
    seen_age_s: float  # since its last poll
    gap_s: float  # longest time between two of its polls


class Operator(Protocol):
    """What a person or a gateway may ask of the running service; the web layer's only way in."""

    def snapshot(self) -> Snapshot: ...

    async def request_sweep(self, backend: str, reason: str) -> str:
        """Queue a sweep; returns its id. Raises ConfigurationError if one runs or is queued already, StoreError if
        another instance must be told and cannot be."""
        ...

    async def cancel_sweep(self, backend: str, author: str) -> str:
        """End the one that runs, or take back the one that is queued; returns its id. Raises ConfigurationError if
        there is none, StoreError as `request_sweep` does."""
        ...

    async def sweeps(self, backend: str, limit: int) -> Sequence[SweepRecord]: ...

    async def sweep(self, sweep_id: str) -> SweepRecord | None: ...

    async def samples(self, sweep_id: str) -> bytes | None:
        """As `Store.samples`."""
        ...

    async def recommendations(self, backend: str, limit: int) -> Sequence[Recommendation]:
        """What was published, newest first. Raises StoreError."""
        ...

    async def pins(self, backend: str) -> Sequence[Override]:
        """Past overrides and the one in force, newest first; a removed one expired then. Raises StoreError."""
        ...

    def pollers(self, backend: str) -> Sequence[Poller]:
        """By name, those that count now."""
        ...

    async def override(self, backend: str, override: Override) -> bool:
        """Pin the cap now. False: a restart would not remember it yet. Raises ConfigurationError (no such backend)."""
        ...

    async def clear_override(self, backend: str, author: str) -> bool:
        """False: there was none. Raises ConfigurationError for a backend that does not exist."""
        ...

    def poll(self, backend: str, poll: Poll) -> Share:
        """Count the poll, and answer it. Raises ConfigurationError for a backend that does not exist."""
        ...

    async def changed(self, backend: str, limit_s: float) -> None:
        """Return when this backend's pollers may be told something else, after `limit_s`, or as the service stops."""
        ...
