"""Load: who holds requests in flight, and what they report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from calibrator.core.records.sample import Label, ProbeRequest, Sample
from calibrator.core.records.unmeasured import Missing


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
    suspect: bool = False  # violated, but by less than the generator itself may have been late
    missing: Missing | None = None  # `violated` None: what the request did not show


@dataclass(frozen=True, slots=True)
class Batch:
    """What happened since the last poll, in order; plus the moment's counts and the generator's own error."""

    started: Sequence[Started] = ()
    decided: Sequence[Decided] = ()
    ended: Sequence[Sample] = ()
    in_flight: int = 0
    users: int = 0
    turned_over: int = 0  # users that ended at least one request since the stage of their label began
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

        Requests that start from now on carry `label`. Within a stage the number of users may change at any time: it
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
