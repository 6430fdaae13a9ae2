"""Wakes long polls when what they are answered from has changed, at most once a tick; each re-checks its own answer."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Waiters:
    """Woken once, then replaced. `answered_from`: what their polls were answered from."""

    woken: asyncio.Event = field(default_factory=asyncio.Event)
    answered_from: tuple[object, ...] = ()


class ChangeNotifier:
    """For each backend that somebody waits for."""

    def __init__(self) -> None:
        self._waiters: dict[str, _Waiters] = {}
        self._is_closed = False

    def __bool__(self) -> bool:
        return bool(self._waiters)

    async def wait(self, backend: str, limit_s: float) -> None:
        waiters = self._waiters.setdefault(backend, _Waiters())
        if not self._is_closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await waiters.woken.wait()

    def notify(self, backend: str, answered_from: tuple[object, ...]) -> None:
        """Wake them if it differs from what they were answered from."""
        waiters = self._waiters.get(backend)
        if waiters is not None and answered_from != waiters.answered_from:
            self._waiters[backend] = _Waiters(answered_from=answered_from)
            waiters.woken.set()

    def notify_all(self) -> None:
        """The service stops: nobody waits any longer."""
        self._is_closed = True
        for waiters in self._waiters.values():
            waiters.woken.set()
