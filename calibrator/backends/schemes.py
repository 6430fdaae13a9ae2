"""http or https? Asked once, where a port closed the connection without a word: many do so to the wrong one."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

PATIENCE_S = 2.0
_HELLO = b"GET / HTTP/1.0\r\n\r\n"


async def speaks_tls(host: str, port: int) -> bool:
    """A handshake succeeds, or is refused in TLS's own words (a client certificate is missing)."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent: only whether TLS is spoken
    try:
        async with asyncio.timeout(PATIENCE_S):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True


async def speaks_plain_http(host: str, port: int) -> bool:
    """Something answers a plain request in HTTP."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(_HELLO)
                return (await reader.read(5)).startswith(b"HTTP/")
            finally:
                with contextlib.suppress(OSError):
                    writer.transport.abort()
    except (OSError, TimeoutError):
        return False
