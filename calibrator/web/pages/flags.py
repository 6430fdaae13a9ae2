"""What an engineer on call reads: one backend's document in words, worst first.

Everything here is a function of documents that the API serves too, so the page knows nothing that a program could not.
A flag's `since` and `until` are times of the server; the page shows them as ages, by the server's clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from calibrator.core.publish.snapshot import Health, State
from calibrator.core.records.sweep import Grade
from calibrator.web.wire.backends import BackendDocument


class Weight(StrEnum):
    """How loud a flag is; also its CSS class, and its mark has a shape of its own beside the colour."""

    BAD = "bad"
    WARN = "warn"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Flag:
    """One thing to know about a backend now."""

    weight: Weight
    title: str
    words: str
    since: str | None = None
    until: str | None = None


@dataclass(frozen=True, slots=True)
class Coming:
    """What happens next. `at`: when; None: no time is known."""

    words: str
    at: str | None = None


GRADES: Mapping[Grade | None, str] = {
    Grade.CERTIFIED: "certified: the capacity passed a test of its own",
    Grade.PROVISIONAL: "provisional: the sweep's budget ended before it was sure",
    Grade.INFEASIBLE: "infeasible: even the lowest level breaks the SLA",
    Grade.AT_MAX: "at the maximum: the highest level allowed still keeps the SLA",
    None: "not measured",
}


def flags(backend: BackendDocument) -> list[Flag]:
    """Worst first."""
    order = list(Weight)
    return sorted(_flags(backend), key=lambda flag: order.index(flag.weight))


def needs_a_look(backend: BackendDocument) -> bool:
    return any(flag.weight is not Weight.NOTE for flag in flags(backend))


def coming(backend: BackendDocument) -> list[Coming]:
    """Soonest first as far as is known; never empty."""
    found = []
    if backend.progress is not None:
        found.append(Coming("a sweep is running; its end may change the cap"))
    elif backend.queued is not None:
        found.append(Coming(f"a sweep starts as soon as its engines are free ({backend.queued})"))
    if backend.override is not None:
        cap = backend.override.underlying_cap
        found.append(Coming(f"the pin ends, the cap is {cap} again", backend.override.expires_at))
    if backend.deferred is not None:
        found.append(Coming("the sweep that was held back is tried again", backend.deferred.until))
    elif backend.next_sweep_at is not None:
        found.append(Coming("a sweep", backend.next_sweep_at))
    if backend.guard is not None and backend.guard.guarded_since is not None:
        found.append(
            Coming(f"the guard raises the cap in steps, up to {backend.guard.cap_before_cut}, while users are well")
        )
    return found or [Coming("nothing is planned")]


def _flags(backend: BackendDocument) -> Iterator[Flag]:
    yield from _health(backend)
    yield from _state(backend)
    yield from _guard(backend)
    yield from _told(backend)
    yield from _doubts(backend)


def _health(backend: BackendDocument) -> Iterator[Flag]:
    if backend.health is Health.ERROR:
        yield Flag(Weight.BAD, "Error", backend.health_reason or "the last sweep failed")
    elif backend.up is False:
        yield Flag(Weight.BAD, "Not answering", "the engine does not answer; the last cap stays in force")
    if backend.health is Health.OBSERVE:
        yield Flag(Weight.NOTE, "Observing", "no probes are sent, so nothing is measured here")
    if backend.ready_replicas == 0:
        yield Flag(Weight.BAD, "No replica ready", "the last cap stays in force")
    if backend.discovery_problem:
        yield Flag(Weight.WARN, "Replicas", f"may be out of date: {backend.discovery_problem}")
    if backend.metrics_problem:
        yield Flag(Weight.WARN, "Engine metrics", backend.metrics_problem)


def _state(backend: BackendDocument) -> Iterator[Flag]:
    if backend.grade is Grade.INFEASIBLE:
        yield Flag(Weight.BAD, "SLA out of reach", "even the lowest level breaks it; the fallback is served")
    elif backend.state is State.FALLBACK:
        yield Flag(Weight.NOTE, "Not measured", "this cap is the configured fallback, a guess")
    if backend.state is State.STALE:
        yield Flag(
            Weight.WARN, "Stale", "the measurement is older than it may be; it is served still", backend.valid_until
        )
    pin = backend.override
    if pin is not None:
        words = f"to {pin.cap} by {pin.author}: {pin.reason}; without the pin it would be {pin.underlying_cap}"
        yield Flag(Weight.WARN, "Pinned", words, pin.set_at, pin.expires_at)


def _guard(backend: BackendDocument) -> Iterator[Flag]:
    guard = backend.guard
    if guard is None:
        return
    if guard.guarded_since is not None:
        words = f"live users broke the SLA, so the cap was lowered from {guard.cap_before_cut}"
        yield Flag(Weight.WARN, "Guarded", words, guard.guarded_since)
    if guard.breach_reason is not None:
        words = f"live users see it broken ({guard.breach_reason}), but a lower cap would not help"
        yield Flag(Weight.BAD, "SLA broken", words, guard.breach_since)


def _told(backend: BackendDocument) -> Iterator[Flag]:
    """Where gateways go by another number than the cap."""
    if backend.shadow:
        yield Flag(Weight.NOTE, "Shadow", f"gateways are told {backend.gateway_cap}; this cap is only shown")
    elif backend.gateway_cap < backend.cap:
        words = f"gateways are told {backend.gateway_cap}: the running sweep's probes take the rest"
        yield Flag(Weight.NOTE, "Sweeping", words)
    elif backend.progress is not None:
        yield Flag(Weight.NOTE, "Sweeping", "the capacity is being measured")
    if backend.gateway_clients_over_cap:
        words = f"{backend.gateway_clients_over_cap} more pollers than the cap has requests; each has 1"
        yield Flag(Weight.WARN, "Too many gateways", words)
    if backend.deferred is not None:
        yield Flag(Weight.NOTE, "Sweep held back", backend.deferred.words, None, backend.deferred.until)


def _doubts(backend: BackendDocument) -> Iterator[Flag]:
    for warning in backend.warnings:
        yield Flag(Weight.NOTE, "Doubt", warning)
    if backend.traffic_note:
        yield Flag(Weight.NOTE, "Traffic", backend.traffic_note)
    if backend.measured_by != backend.name:
        yield Flag(Weight.NOTE, "Shared engines", f"measured together with '{backend.measured_by}'")


def summary(backends: Sequence[BackendDocument]) -> str:
    """The whole fleet in one line."""
    if not backends:
        return "No backend is configured."
    looks = sum(needs_a_look(backend) for backend in backends)
    sweeping = sum(backend.progress is not None for backend in backends)
    parts = [f"{len(backends)} backend{'' if len(backends) == 1 else 's'}"]
    parts.append(f"{looks} need{'s' if looks == 1 else ''} a look" if looks else "nothing wrong")
    return ", ".join([*parts, f"{sweeping} being swept"] if sweeping else parts)
