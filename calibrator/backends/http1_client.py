"""A virtual user's way to one server: opens a connection when it needs one, keeps it, and replaces it.

The retry rule (DESIGN section 2). A kept connection may be closed by the server at the very moment a request leaves;
nobody has seen that request, and no real user would see the error. So a *reused* connection that breaks before the
first byte of a response is replaced once and the clock restarts. On a fresh connection the same is a failure of the
backend.

Connecting is timed apart: `connect_s` is reported, never part of a latency. Environment proxies are not followed: what
is measured is the replica, not the way around it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from calibrator.backends.http1 import Ending, Http1Connection, Sink, Timeouts, describe, tls_detail
from calibrator.core.records.sample import Failure, FailureKind, Fault
from calibrator.errors import ConfigurationError

# OpenSSL's reasons for an answer that is no TLS; which one depends on its release and on the answer's first bytes.
_NO_TLS_THERE = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a base URL leads."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    authority: str  # for the Host header
    path: str  # of the base URL, without a slash at its end
    tls_name: str  # whom the server's certificate must be issued to
    query: str = ""  # of the base URL, without its question mark

    def target(self, operation: str, more_query: str = "") -> str:
        """What stands in the request line for an operation below the base URL."""
        query = "&".join(part for part in (self.query, more_query) if part)
        return f"{self.path}{operation}?{query}" if query else f"{self.path}{operation}"


def endpoint(
    url: str,
    *,
    ca_file: str | None = None,
    client_cert_file: str | None = None,
    client_key_file: str | None = None,
    host_name: str | None = None,
) -> Endpoint:
    """`host_name`: what the server is called, where the URL holds its address only.

    Raises ConfigurationError for what is no http(s) URL, and for unreadable certificate files.
    """
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        raise ConfigurationError(
            f"'{url}' is not the base URL of a server." if parts.username is None else "The URL carries a user name.",
            "Write http://host:port/v1 or https://host/v1; give credentials as the API key.",
        )
    secure = parts.scheme == "https"
    tls = tls_context(ca_file, client_cert_file, client_key_file) if secure else None
    authority = parts.netloc
    if host_name is not None:
        authority = host_name if port is None else f"{host_name}:{port}"
    path = parts.path.rstrip("/")
    return Endpoint(host, port or (443 if secure else 80), tls, authority, path, host_name or host, parts.query)


def tls_context(ca_file: str | None, cert_file: str | None, key_file: str | None) -> ssl.SSLContext:
    """The system's authorities, or only those of `ca_file`. Raises ConfigurationError naming the file."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"The CA file {ca_file} cannot be used: {describe(error)}.", "It must be readable and in PEM form."
        ) from None
    if cert_file is not None:
        try:
            context.load_cert_chain(cert_file, key_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"The client certificate {cert_file} cannot be used: {describe(error)}.",
                "Certificate and key must be readable, in PEM form, and belong together.",
            ) from None
    context.set_alpn_protocols(["http/1.1"])
    return context


class Http1Client:
    """At most one request at a time."""

    def __init__(self, server: Endpoint, now: Callable[[], float], patience: Timeouts) -> None:
        self._server = server
        self._now = now
        self._patience = patience
        self._connection: Http1Connection | None = None
        self._connecting: asyncio.Task[Http1Connection] | None = None
        self._aborted = False

    async def request(self, request: bytes, sink: Sink) -> Ending:
        """Send and follow to the end; failures are in the Ending. Cancelling the task closes the connection."""
        self._aborted = False
        try:
            kept = self._connection
            if kept is not None and kept.is_open:
                ending = await kept.exchange(request, sink, connect_s=0.0)
                stale = ending.failure is not None and ending.failure.kind is FailureKind.RESET and not ending.answered
                if not stale:
                    return ending
            return await self._fresh(request, sink)
        except asyncio.CancelledError:
            self.abort()
            raise

    def abort(self) -> None:
        """Close the connection now; a request under way ends as cancelled."""
        self._aborted = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _fresh(self, request: bytes, sink: Sink) -> Ending:
        begun_s = self._now()
        self._connecting = connecting = asyncio.get_running_loop().create_task(self._open())
        try:
            # `wait`, not `await`: `abort` cancels the connecting, which must not look like our own cancellation.
            await asyncio.wait({connecting})
        finally:
            connecting.cancel()
            self._connecting = None
        at_s = self._now()
        error = None if connecting.cancelled() else connecting.exception()
        if error is None and not connecting.cancelled():
            self._connection = connecting.result()
            if not self._aborted:
                return await self._connection.exchange(request, sink, at_s - begun_s)
            self.abort()
        sink.on_start(at_s, at_s - begun_s)
        failure = None if self._aborted else self._connect_failure(error)
        return Ending(at_s, failure, cancelled=self._aborted, answered=False)

    async def _open(self) -> Http1Connection:
        server = self._server
        async with asyncio.timeout(self._patience.connect_s):
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Http1Connection(self._now, self._patience),
                server.host,
                server.port,
                ssl=server.tls,
                server_hostname=server.tls_name if server.tls is not None else None,
            )
        return connection

    def _connect_failure(self, error: BaseException | None) -> Failure:
        if isinstance(error, ssl.SSLError):
            fault = Fault.PLAIN_PORT if error.reason in _NO_TLS_THERE else None
            return Failure(FailureKind.TLS, tls_detail(error), fault=fault)
        if isinstance(error, TimeoutError) and error.errno is None:
            return Failure(FailureKind.CONNECT, f"no connection within {self._patience.connect_s:g} s")
        if isinstance(error, OSError):
            return Failure(FailureKind.CONNECT, describe(error))
        if isinstance(error, UnicodeError):
            return Failure(FailureKind.CONNECT, f"'{self._server.host}' is no host name")
        raise error or RuntimeError("connecting was cancelled by a stranger")
