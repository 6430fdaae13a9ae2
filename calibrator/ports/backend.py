"""How one replica of an engine is reached and inspected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from calibrator.core.records.objective import Metric
from calibrator.core.records.sample import Flight, ProbeRequest, Sample
from calibrator.core.workload.classes import TokenScale, Workload


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
class Adjustment:
    """A parameter that this server refuses, and what the probes send instead."""

    parameter: str
    sent_as: str | None = None  # another name for it; None: it is left out

    def __str__(self) -> str:
        return f"{self.parameter} left out" if self.sent_as is None else f"{self.parameter} sent as {self.sent_as}"


class Blindness(StrEnum):
    """Why a metric cannot be measured at a server."""

    NO_USAGE = "no_usage"  # nobody counts the tokens of an answer
    BUFFERED = "buffered"  # the answer arrives in one piece, or in a few


@dataclass(frozen=True, slots=True)
class Unmeasurable:
    """A metric that would read something else here than what a user feels; a sweep that needs it is refused."""

    metric: Metric
    reason: Blindness
    cause: str  # one sentence
    remedy: str


@dataclass(frozen=True, slots=True)
class BackendFacts:
    """What a first, polite inspection of a backend found."""

    model: str
    token_scale: TokenScale
    forces_length: bool  # answers get the length that is asked for (by ignore_eos or the like, or by themselves)
    max_context_tokens: int | None = None
    engine: str | None = None
    warnings: tuple[str, ...] = ()
    adjustments: tuple[Adjustment, ...] = ()
    unmeasurable: tuple[Unmeasurable, ...] = ()


class Inspector(Protocol):
    """Looks at a backend before a sweep: credentials, model, context, tokenizer scale, length forcing."""

    async def inspect(self, workload: Workload) -> BackendFacts:
        """Raises ConfigurationError or UnreachableError with cause and remedy."""
        ...
