"""The running service as the web layer sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from calibrator.core.publish.snapshot import Override, Recommendation, Snapshot
from calibrator.core.records.sweep import SweepRecord
from calibrator.ports.sharing import Poll, Poller, Share


class Operator(Protocol):
    """What a person or a gateway may ask of the running service; the web layer's only way in."""

    def snapshot(self) -> Snapshot: ...

    async def request_sweep(self, backend: str, reason: str) -> str:
        """Queue a sweep; returns its id. Raises ConfigurationError if one runs or is queued already, StoreError if
        it must be forwarded to another instance and cannot be."""
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
        """Pin the cap now. False: it would not survive a restart yet. Raises ConfigurationError (no such backend)."""
        ...

    async def clear_override(self, backend: str, author: str) -> bool:
        """False: there was none. Raises ConfigurationError for a backend that does not exist."""
        ...

    def poll(self, backend: str, poll: Poll) -> Share:
        """Count the poll, and answer it. Raises ConfigurationError for a backend that does not exist."""
        ...

    async def changed(self, backend: str, limit_s: float) -> None:
        """Return when this backend's pollers may get another answer, after `limit_s`, or as the service stops."""
        ...
