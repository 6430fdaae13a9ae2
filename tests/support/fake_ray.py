"""As much of Ray as `load.ray_workers` uses, in this process: actors are objects, a killed one fails its calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    """The base of Ray's own."""


class _Call:
    def __init__(self, actor: FakeActor, name: str) -> None:
        self._actor = actor
        self._name = name

    async def remote(self, *words: Any) -> Any:
        actor = self._actor
        if actor.died.is_set():
            raise RayError("The actor died unexpectedly before finishing this task.")
        work: asyncio.Task[Any] = asyncio.create_task(getattr(actor.inner, self._name)(*words))
        death = asyncio.create_task(actor.died.wait())
        await asyncio.wait({work, death}, return_when=asyncio.FIRST_COMPLETED)
        death.cancel()
        if work.done():
            return work.result()
        work.cancel()
        raise RayError("The actor died unexpectedly before finishing this task.")


class FakeActor:
    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.died = asyncio.Event()

    def __getattr__(self, name: str) -> _Call:
        return _Call(self, name)


class FakeRay:
    """`make` makes the object behind the next actor."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self.actors: list[FakeActor] = []
        self.options: list[dict[str, Any]] = []
        self.exceptions = SimpleNamespace(RayError=RayError)

    def remote(self, _: type) -> SimpleNamespace:
        def options(**wanted: Any) -> SimpleNamespace:
            self.options.append(wanted)
            return SimpleNamespace(remote=self._start)

        return SimpleNamespace(options=options)

    def kill(self, actor: FakeActor) -> None:
        actor.died.set()

    def _start(self) -> FakeActor:
        self.actors.append(FakeActor(self._make()))
        return self.actors[-1]


async def never() -> None:
    """What an actor answers that finds no core."""
    await asyncio.Event().wait()
