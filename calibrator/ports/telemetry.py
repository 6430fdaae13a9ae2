"""What engines report of themselves, and where they are found."""

from __future__ import annotations

from typing import Protocol

from calibrator.core.publish.fleet import Found
from calibrator.core.records.server_load import ServerLoad


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
