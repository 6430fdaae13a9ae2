"""A TCP proxy that harms what passes through it; what it can do has the names of toxiproxy's toxics.

| toxic | what happens to connections, those that are open and new ones |
|---|---|
| latency | each chunk is late by `seconds` |
| down | open ones are closed, new ones refused |
| timeout | nothing passes any more, nothing is closed |
| reset_peer | open ones and new ones are reset (RST) |
| slow_close | an end of one side reaches the other only after `seconds` |
| bandwidth | `rate` bytes a second |
| slicer | chunks of `size` bytes, a moment apart |
| limit_data | closed after `size` more bytes |

It runs in a thread with an event loop of its own, so that tests without one can use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

CHUNK = 65_536
SLICE_S = 0.001


@dataclass(frozen=True, slots=True)
class Toxic:
    kind: str
    seconds: float = 0.0
    rate: int = 0
    size: int = 0


@dataclass(eq=False)
class _Pipe:
    """One connection: a client and its way to the server."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    passed: int = 0  # since the present toxic came

    def end(self, *, reset: bool) -> None:
        for writer in (self.client, self.server):
            sock = writer.get_extra_info("socket")
            if reset and sock is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


@dataclass
class FaultProxy:
    """`port` stays the same through all that happens."""

    server_port: int
    port: int = 0
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _listener: asyncio.Server | None = None
    _pipes: set[_Pipe] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _toxic: Toxic | None = None
    _healthy: asyncio.Event = field(default_factory=asyncio.Event)

    # ------------------------------------------------------------------------------------------------ from outside
    def poison(self, kind: str, **how: Any) -> None:
        self._do(self._set(Toxic(kind, **how)))

    def heal(self) -> None:
        self._do(self._set(None))

    def _do(self, step: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(step, self._loop).result(10.0)

    # ---------------------------------------------------------------------------------------------------- within
    async def _set(self, toxic: Toxic | None) -> None:
        self._toxic = toxic
        for pipe in list(self._pipes):
            pipe.passed = 0
        if toxic is not None and toxic.kind in ("down", "reset_peer"):
            for pipe in list(self._pipes):
                pipe.end(reset=toxic.kind == "reset_peer")
        if toxic is not None and toxic.kind == "down":
            await self._unlisten()
        elif self._listener is None:
            await self._listen()
        if toxic is None:
            self._healthy.set()
        else:
            self._healthy.clear()

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _unlisten(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._toxic is not None and self._toxic.kind == "timeout":
                await self._healthy.wait()
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self.server_port)
            pipe = _Pipe(to_client, to_server)
            self._pipes.add(pipe)
            if self._toxic is not None and self._toxic.kind == "reset_peer":
                pipe.end(reset=True)
            try:
                await asyncio.gather(
                    self._carry(pipe, from_client, to_server), self._carry(pipe, from_server, to_client)
                )  # fmt: skip
            finally:
                pipe.end(reset=False)
                self._pipes.discard(pipe)
        except OSError:
            to_client.transport.abort()
        finally:
            self._tasks.discard(task)

    async def _carry(self, pipe: _Pipe, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while chunk := await source.read(CHUNK):
            await self._harm(pipe, len(chunk))
            size = self._toxic.size if self._toxic is not None and self._toxic.kind == "slicer" else CHUNK
            for start in range(0, len(chunk), size):
                sink.write(chunk[start : start + size])
                await sink.drain()
                if size < CHUNK:
                    await asyncio.sleep(SLICE_S)
            pipe.passed += len(chunk)
        if self._toxic is not None and self._toxic.kind == "slow_close":
            await asyncio.sleep(self._toxic.seconds)
        sink.close()

    async def _harm(self, pipe: _Pipe, size: int) -> None:
        match self._toxic:
            case Toxic("latency", seconds=seconds):
                await asyncio.sleep(seconds)
            case Toxic("timeout"):
                await self._healthy.wait()
            case Toxic("bandwidth", rate=rate):
                await asyncio.sleep(size / rate)
            case Toxic("limit_data", size=limit) if pipe.passed + size > limit:
                pipe.end(reset=False)
            case _:
                pass

    async def _close(self) -> None:
        await self._unlisten()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextmanager
def fault_proxy(server_port: int) -> Iterator[FaultProxy]:
    """Listens, without harm, for as long as the block lasts."""
    proxy = FaultProxy(server_port)
    thread = threading.Thread(target=proxy._loop.run_forever, name="fault-proxy", daemon=True)
    thread.start()
    try:
        proxy.heal()
        yield proxy
    finally:
        proxy._do(proxy._close())
        proxy._loop.call_soon_threadsafe(proxy._loop.stop)
        thread.join()
        proxy._loop.close()
