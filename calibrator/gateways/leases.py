"""Slots of a cap that are released by hooks: several for one request, or none if an event is lost.

A slot is held under a key, and releasing it is idempotent. A slot that no hook releases within `lease_s` expires, with
a warning. `lease_s` must exceed the longest request; requests that take longer are no longer counted.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from calibrator.client import AsyncCap


@dataclass(frozen=True, slots=True)
class _Lease:
    owner: object
    cap: AsyncCap | None  # None: still waiting for a slot
    timer: asyncio.TimerHandle | None = None


class SlotLeases:
    """The slots held in one event loop."""

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
        """Does nothing for a key without a slot."""
        lease = self._held.get(key) if isinstance(key, str) else None
        if lease is None or lease.cap is None or lease.timer is None:
            return
        lease.timer.cancel()
        del self._held[str(key)]
        lease.cap.leave()

    def _expire(self, key: str) -> None:
        self._log.warning(
            "cap: no end of request %s was reported within %g s; its slot is released", key, self._lease_s
        )
        self.end(key)
