"""Long polls wait for a bell. It is rung when what they are answered from has changed, and at most once a tick; whoever
wakes looks for himself whether he is concerned.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Bell:
    """Rung once, then replaced. `heard` is what polls were answered from when it was hung up."""

    event: asyncio.Event = field(default_factory=asyncio.Event)
    heard: tuple[object, ...] = ()


class ChangeNotifier:
    """One for each backend that somebody waits for."""

    def __init__(self) -> None:
        self._notifier: dict[str, _Bell] = {}
        self._is_closed = False

    def __bool__(self) -> bool:
        return bool(self._notifier)

    async def wait(self, backend: str, limit_s: float) -> None:
        bell = self._notifier.setdefault(backend, _Bell())
        if not self._is_closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await bell.event.wait()

    def notify(self, backend: str, news: tuple[object, ...]) -> None:
        """Where they differ from what was heard."""
        bell = self._notifier.get(backend)
        if bell is not None and news != bell.heard:
            self._notifier[backend] = _Bell(heard=news)
            bell.event.set()

    def notify_all(self) -> None:
        """The service stops: nobody waits any longer."""
        self._is_closed = True
        for bell in self._notifier.values():
            bell.event.set()
