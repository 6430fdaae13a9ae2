"""A real socket on 127.0.0.1 that plays a script: for each request in turn, a list of acts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum


class Act(Enum):
    CLOSE = "orderly end of the connection"
    RESET = "RST"
    DROP = "FIN at once; over TLS without its farewell"
    HANG = "never answer; ends when the client closes"


Step = bytes | Act | asyncio.Event  # an event: wait for it


@dataclass(eq=False)
class ScriptedServer:
    """`replies[i]` answers request number i, over all connections; the last one answers all that follow."""

    replies: list[list[Step]]
    on_connect: list[Step] = field(default_factory=list)
    connections: int = 0
    closed_by_client: int = 0
    requests: list[bytes] = field(default_factory=list)
    port: int = 0
    all_closed: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)  # set by each request
    _open: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open += 1
        self.all_closed.clear()
        try:
            if await self._play(self.on_connect, reader, writer):
                while (request := await read_request(reader)) is not None:
                    self.requests.append(request)
                    self.asked.set()
                    steps = self.replies[min(len(self.requests), len(self.replies)) - 1]
                    if not await self._play(steps, reader, writer):
                        break
                else:
                    self.closed_by_client += 1
        except (ConnectionError, ssl.SSLError):
            self.closed_by_client += 1
        finally:
            self._open -= 1
            if not self._open:
                self.all_closed.set()
            writer.close()

    async def _play(self, steps: list[Step], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        for step in steps:
            if isinstance(step, bytes):
                writer.write(step)
                await writer.drain()
            elif isinstance(step, asyncio.Event):
                await step.wait()
            elif step is Act.HANG:
                await reader.read()
                self.closed_by_client += 1
                return False
            else:
                if step is Act.RESET:
                    sock = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if step is not Act.CLOSE:
                    writer.transport.abort()
                return False
        return True


async def read_request(reader: asyncio.StreamReader) -> bytes | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    return head + await reader.readexactly(length)


@contextlib.asynccontextmanager
async def scripted(
    *replies: list[Step], on_connect: list[Step] | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer(list(replies), on_connect or [])
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        async with asyncio.timeout(60):
            if server.connections:
                await server.all_closed.wait()
