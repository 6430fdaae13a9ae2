"""How one replica of an engine is reached and looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

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
class BackendFacts:
    """What a first, polite look at a backend found."""

    model: str
    token_scale: TokenScale
    forces_length: bool  # output length can be forced (ignore_eos or the like)
    max_context_tokens: int | None = None
    engine: str | None = None
    warnings: tuple[str, ...] = ()


class Inspector(Protocol):
    """Inspects a backend before a sweep: credentials, model, context, tokenizer scale, length forcing."""

    async def inspect(self, workload: Workload) -> BackendFacts:
        """Raises ConfigurationError or UnreachableError with cause and remedy."""
        ...
