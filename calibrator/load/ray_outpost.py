"""The pool's part on another machine: an actor that starts one worker process there and relays its messages.

    pool ── tell(words) ──▶ Outpost ── socket ──▶ worker        the same process as on one machine (`worker`)
         ◀── hear() ───────         ◀── Report ──

Why a process of its own rather than a loop inside the actor: an actor shares its interpreter with Ray's own threads,
and time spent waiting for them would count as the backend's latency. The socket ties lifetimes together here too: when
Ray ends the actor, for whatever reason, the worker ends its requests and exits.

Nothing here depends on Ray, so it can be tested without it: Ray turns the class into an actor as it is.

Caller: `ray_workers`.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from calibrator import __version__
from calibrator.core.generator_rating import SelfTest
from calibrator.errors import CalibratorError
from calibrator.load.messages import Failed
from calibrator.load.processes import LocalLauncher, LocalLink

NodeTest = Callable[[], Awaitable[SelfTest]]  # runs on the node


class Outpost:
    """One worker. `tell` and `hear` each have one caller, which makes one call after another."""

    def __init__(self) -> None:
        self._words: list[Any] = []
        self._spoke = asyncio.Event()
        self._is_lost = False
        self._link: LocalLink | None = None

    async def place(self) -> tuple[str, str]:
        """Name of the machine and the release of calibrator on it."""
        return socket.gethostname(), __version__

    async def test(self, node_test: bytes) -> SelfTest | Failed:
        """Errors are values: Ray would wrap them in classes of its own."""
        try:
            made: SelfTest = await pickle.loads(node_test)()  # noqa: S301 - from our own pool
        except CalibratorError as error:
            return Failed(error)
        return made

    async def open(self) -> Failed | None:
        try:
            self._link = await LocalLauncher().launch(self._heard, self._lost)
        except CalibratorError as error:
            return Failed(error)
        return None

    async def tell(self, words: Sequence[object]) -> None:
        if self._link is not None:
            for word in words:
                self._link.send(word)

    async def hear(self) -> list[Any] | None:
        """Messages since the last call; waits for the first. None: the worker is gone and everything was read."""
        await self._spoke.wait()
        words, self._words = self._words, []
        if not self._is_lost:
            self._spoke.clear()
        return words or None

    async def close(self) -> None:
        """Leave nothing of the worker behind."""
        if self._link is not None:
            await self._link.let_go()

    def _heard(self, message: Any) -> None:
        self._words.append(message)
        self._spoke.set()

    def _lost(self) -> None:
        self._is_lost = True
        self._spoke.set()
