"""Places of a cap whose end is told by others: more than once, by several hooks, or, when a hook is lost, never.

A place is held under a key. Ending it is idempotent. What nobody ended within `lease_s` ends by itself, with a warning:
`lease_s` must exceed the longest request, or the cap is exceeded by those that last longer.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from calibrator.client import AsyncCap


@dataclass(frozen=True, slots=True)
class _Lease:
    owner: object
    cap: AsyncCap | None  # None: still waiting for its place
    timer: asyncio.TimerHandle | None = None


class Leases:
    """Of one event loop."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._held: dict[str, _Lease] = {}
        self._log = logging.getLogger("calibrator.gateways")

    def __contains__(self, key: object) -> bool:
        return key in self._held

    def is_of(self, key: str, owner: object) -> bool:
        lease = self._held.get(key)
        return lease is not None and lease.owner is owner

    async def take(self, key: str, owner: object, cap: AsyncCap, timeout_s: float) -> None:
        """Raises LimitReachedError as `AsyncCap.enter` does. The key must be free."""
        self._held[key] = _Lease(owner, None)
        try:
            await cap.enter(timeout_s)
        except BaseException:
            del self._held[key]
            raise
        timer = asyncio.get_running_loop().call_later(self._lease_s, self._expire, key)
        self._held[key] = _Lease(owner, cap, timer)

    def end(self, key: object) -> None:
        """Does nothing for a key without a place."""
        lease = self._held.get(key) if isinstance(key, str) else None
        if lease is None or lease.cap is None or lease.timer is None:
            return
        lease.timer.cancel()
        del self._held[str(key)]
        lease.cap.leave()

    def _expire(self, key: str) -> None:
        self._log.warning("cap: request %s told no end within %g s; its place is free again", key, self._lease_s)
        self.end(key)
