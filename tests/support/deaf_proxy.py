"""A TCP proxy in front of a server that loses answers: it passes all to the server and, once told to, nothing back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class DeafProxy:
    """`is_deaf_after`: from the moment that these bytes were passed to the server."""

    port: int = 0
    is_deaf_after: bytes = b""
    _is_deaf: bool = field(default=False, init=False)

    def hear_again(self) -> None:
        self.is_deaf_after, self._is_deaf = b"", False

    async def there(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while chunk := await source.read(65536):
            self._is_deaf = self._is_deaf or (bool(self.is_deaf_after) and self.is_deaf_after in chunk)
            sink.write(chunk)
            await sink.drain()
        sink.close()

    async def back(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while chunk := await source.read(65536):
            if not self._is_deaf:
                sink.write(chunk)
                await sink.drain()
        sink.close()


@asynccontextmanager
async def deaf_proxy(server_port: int) -> AsyncIterator[DeafProxy]:
    """Listens for as long as the block lasts."""
    proxy = DeafProxy()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", server_port)
        with contextlib.suppress(OSError):
            await asyncio.gather(proxy.there(reader, to_server), proxy.back(from_server, writer))
        to_server.close()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        proxy.port = server.sockets[0].getsockname()[1]
        yield proxy
