"""What an engineer on call needs to know about a backend, most severe first.

Everything here is a function of documents that the API serves too, so programs can know all that the page shows. A
flag's `since` and `until` are server times; the page shows them as ages, by the server's clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from calibrator.core.publish.snapshot import Health, State
from calibrator.core.records.sweep import Grade
from calibrator.web.wire.backends import BackendDocument


class Weight(StrEnum):
    """How severe a flag is; also its CSS class. Marks differ in shape as well as in colour."""

    BAD = "bad"
    WARN = "warn"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Flag:
    """One thing to know about a backend now."""

    weight: Weight
    code: str  # `data-flag` in the page
    title: str
    message: str
    since: str | None = None
    until: str | None = None


@dataclass(frozen=True, slots=True)
class Upcoming:
    """What happens next. `at`: when; None if unknown."""

    code: str  # `data-next` in the page
    message: str
    at: str | None = None


GRADES: Mapping[Grade | None, str] = {
    Grade.CERTIFIED: "certified: the capacity passed a full test of its own",
    Grade.PROVISIONAL: "provisional: the budget of the sweep ran out before the full test",
    Grade.INFEASIBLE: "infeasible: even the lowest level violates the SLA",
    Grade.AT_MAX: "at the maximum: the highest level allowed still meets the SLA",
    None: "not measured",
}


def flags(backend: BackendDocument) -> list[Flag]:
    """Most severe first."""
    order = list(Weight)
    return sorted(_flags(backend), key=lambda flag: order.index(flag.weight))


def needs_attention(backend: BackendDocument) -> bool:
    return any(flag.weight is not Weight.NOTE for flag in flags(backend))


def upcoming(backend: BackendDocument) -> list[Upcoming]:
    """In order of time as far as known; never empty."""
    found = []
    if backend.progress is not None:
        found.append(Upcoming("sweep_ends", "the running sweep ends, which may change the cap"))
    elif backend.queued is not None:
        found.append(Upcoming("queued", f"a queued sweep starts as soon as its engines are free ({backend.queued})"))
    if backend.override is not None:
        cap = backend.override.underlying_cap
        found.append(
            Upcoming("override_ends", f"the override ends, and the cap returns to {cap}", backend.override.expires_at)
        )
    if backend.deferred is not None:
        found.append(Upcoming("deferred", "the deferred sweep is retried", backend.deferred.until))
    elif backend.next_sweep_at is not None:
        found.append(Upcoming("scheduled", "scheduled sweep", backend.next_sweep_at))
    if backend.guard is not None and backend.guard.guarded_since is not None:
        before_cut = backend.guard.cap_before_cut
        found.append(
            Upcoming(
                "guard", f"the guard raises the cap in steps, up to {before_cut}, while live traffic meets the SLA"
            )
        )
    return found or [Upcoming("nothing", "nothing is scheduled")]


def _flags(backend: BackendDocument) -> Iterator[Flag]:
    yield from _health(backend)
    yield from _state(backend)
    yield from _guard(backend)
    yield from _advertised(backend)
    yield from _warnings(backend)


def _health(backend: BackendDocument) -> Iterator[Flag]:
    if backend.health is Health.ERROR:
        yield Flag(Weight.BAD, "error", "Error", backend.health_reason or "the last sweep failed")
    elif backend.up is False:
        yield Flag(Weight.BAD, "down", "Down", "the engine does not respond; the last cap remains in force")
    if backend.health is Health.OBSERVE:
        yield Flag(Weight.NOTE, "observe", "Observing", "no probes are sent, so nothing is measured")
    if backend.ready_replicas == 0:
        yield Flag(Weight.BAD, "no_replica", "No replica ready", "the last cap remains in force")
    if backend.discovery_problem:
        yield Flag(Weight.WARN, "discovery", "Replicas", f"the list may be out of date: {backend.discovery_problem}")
    if backend.metrics_problem:
        yield Flag(Weight.WARN, "metrics", "Engine metrics", backend.metrics_problem)


def _state(backend: BackendDocument) -> Iterator[Flag]:
    if backend.grade is Grade.INFEASIBLE:
        yield Flag(
            Weight.BAD, "infeasible", "SLA out of reach", "even the lowest level violates it; the fallback is served"
        )
    elif backend.state is State.FALLBACK:
        yield Flag(Weight.NOTE, "fallback", "Not measured", "the cap is the configured fallback")
    if backend.state is State.STALE:
        yield Flag(
            Weight.WARN, "stale", "Stale", "the measurement has expired; its cap is still served", backend.valid_until
        )
    override = backend.override
    if override is not None:
        instead = f"the cap would otherwise be {override.underlying_cap}"
        message = f"to {override.cap} by {override.author}: {override.reason}; {instead}"
        yield Flag(Weight.WARN, "overridden", "Overridden", message, override.set_at, override.expires_at)


def _guard(backend: BackendDocument) -> Iterator[Flag]:
    guard = backend.guard
    if guard is None:
        return
    if guard.guarded_since is not None:
        message = f"live traffic violated the SLA, so the cap was lowered from {guard.cap_before_cut}"
        yield Flag(Weight.WARN, "guarded", "Guarded", message, guard.guarded_since)
    if guard.breach_reason is not None:
        message = f"live traffic violates it ({guard.breach_reason}), and a lower cap would not help"
        yield Flag(Weight.BAD, "breach", "SLA violated", message, guard.breach_since)


def _advertised(backend: BackendDocument) -> Iterator[Flag]:
    """Where gateways get a different number."""
    if backend.shadow:
        yield Flag(
            Weight.NOTE, "shadow", "Shadow", f"gateways get {backend.gateway_cap}; the recommended cap is only shown"
        )
    elif backend.gateway_cap < backend.cap:
        message = f"gateways get {backend.gateway_cap}; the rest is reserved for probes of the running sweep"
        yield Flag(Weight.NOTE, "sweeping", "Sweeping", message)
    elif backend.progress is not None:
        yield Flag(Weight.NOTE, "sweeping", "Sweeping", "the capacity is being measured")
    if backend.gateway_clients_over_cap:
        message = f"{backend.gateway_clients_over_cap} more than the cap has slots; each gets 1"
        yield Flag(Weight.WARN, "gateways_over_cap", "Too many gateways", message)
    if backend.deferred is not None:
        yield Flag(Weight.NOTE, "deferred", "Sweep deferred", backend.deferred.message, None, backend.deferred.until)


def _warnings(backend: BackendDocument) -> Iterator[Flag]:
    for warning in backend.warnings:
        yield Flag(Weight.NOTE, "warning", "Warning", warning)
    if backend.traffic_note:
        yield Flag(Weight.NOTE, "traffic", "Traffic", backend.traffic_note)
    if backend.measured_by != backend.name:
        yield Flag(Weight.NOTE, "shared_engines", "Shared engines", f"measured together with '{backend.measured_by}'")


def summary(backends: Sequence[BackendDocument]) -> str:
    """The whole fleet in one line."""
    if not backends:
        return "No backend is configured."
    attention = sum(needs_attention(backend) for backend in backends)
    sweeping = sum(backend.progress is not None for backend in backends)
    parts = [f"{len(backends)} backend{'' if len(backends) == 1 else 's'}"]
    parts.append(f"{attention} need{'s' if attention == 1 else ''} attention" if attention else "no problems")
    return ", ".join([*parts, f"{sweeping} sweeping"] if sweeping else parts)
