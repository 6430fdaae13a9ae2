"""Sweeps: what is ordered, who runs it, who follows it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import quote, urlsplit

from calibrator.core.admission.admission import SafetyLimits
from calibrator.core.admission.schedule import Schedule
from calibrator.core.admission.triggers import TriggerPolicy
from calibrator.core.live.change_test import GuardPolicy
from calibrator.core.publish.fleet import ReplicaPlan
from calibrator.core.publish.recommendation import PublishPolicy
from calibrator.core.publish.snapshot import Progress
from calibrator.core.records.harm import AbortLimits, SweepLimits
from calibrator.core.records.history import Bounds, WarmStart
from calibrator.core.records.objective import Objective
from calibrator.core.records.sweep import SweepRecord
from calibrator.core.search.burst_mode import BurstMode
from calibrator.core.workload.classes import Workload
from calibrator.core.workload.mirror import MirrorPolicy

BEARER = "bearer"  # a key's usual place: the Authorization header


@dataclass(frozen=True, slots=True)
class Target:
    """How to reach one replica. Picklable: it travels to the sweep's process. Secrets never appear in `repr`."""

    url: str  # base, ending in /v1; its query goes with each request
    model: str
    api: str = "chat"  # chat | completions
    api_key: str | None = field(default=None, repr=False)
    api_key_in: str = BEARER  # or `header:NAME`, `query:NAME`
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # further ones; their values are secrets
    ca_file: str | None = None
    client_cert_file: str | None = None
    client_key_file: str | None = None
    metrics_url: str | None = None  # None: derived from url
    host_name: str | None = None  # sent as Host and TLS server name; None: as in url

    @property
    def credentials(self) -> tuple[tuple[str, str], ...]:
        """Headers that let us in: the key's and the further ones."""
        if self.api_key is None or self.api_key_in.startswith("query:"):
            return self.headers
        name = self.api_key_in.removeprefix("header:")
        key = ("Authorization", f"Bearer {self.api_key}") if name == BEARER else (name, self.api_key)
        return (key, *self.headers)

    @property
    def key_query(self) -> str:
        """The key as a parameter of the query, where it stands there."""
        kind, _, name = self.api_key_in.partition(":")
        return (
            "" if self.api_key is None or kind != "query" else f"{quote(name, safe='')}={quote(self.api_key, safe='')}"
        )

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must never be told."""
        key = () if self.api_key is None else (self.api_key,)
        return (*key, *(value for _, value in self.headers))

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
    prior_warnings: tuple[str, ...] = ()  # known before it begins; they become warnings of the record
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
    limits: SafetyLimits = field(default_factory=SafetyLimits)
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
        """After each stage: the record so far (outcome None), so that a killed sweep leaves its evidence."""
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
