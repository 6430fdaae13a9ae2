"""One look at all replicas of a backend: what guard, triggers and headroom are computed from.

The service makes one `FleetLook` a second for each backend and hands it to whoever watches. Pure values.
"""

from __future__ import annotations

from dataclasses import dataclass

from calibrator.core.server_load import ServerLoad


@dataclass(frozen=True, slots=True)
class ReplicaLook:
    """One replica in one look."""

    url: str
    load: ServerLoad | None  # None: it did not answer, or has no metrics
    probes_in_flight: int = 0  # ours, at that moment, on this replica

    @property
    def organic_in_flight(self) -> float | None:
        """Requests in flight that are not ours."""
        in_flight = None if self.load is None else self.load.in_flight_requests
        return None if in_flight is None else max(0.0, in_flight - self.probes_in_flight)


@dataclass(frozen=True, slots=True)
class FleetLook:
    """All replicas of one backend at one moment."""

    at_s: float  # monotonic
    at: float  # Unix seconds
    replicas: tuple[ReplicaLook, ...]
    cap: int  # being served, for all replicas together
    replica_cap: int

    @property
    def organic_in_flight(self) -> float | None:
        """None unless every replica tells."""
        parts = [replica.organic_in_flight for replica in self.replicas]
        known = [part for part in parts if part is not None]
        return sum(known) if known and len(known) == len(parts) else None

    @property
    def probes_in_flight(self) -> int:
        return sum(replica.probes_in_flight for replica in self.replicas)
