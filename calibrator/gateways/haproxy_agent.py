"""HAProxy polls its caps by agent-check, one TCP connection per server and `agent-inter`.

    HAProxy:  connect, "<backend>[/<server>] [<gateway>]\\n"  (its `agent-send`)
    we:       "maxconn:<N>\\n", close                          N >= 1; HAProxy sets the server's maxconn

| situation | response | what HAProxy does |
|---|---|---|
| the gateway has a share | `maxconn:N` and a newline | applies it at once; excess requests queue |
| it must wait for other clients, or no state is loaded yet | close without a line | keeps its last value |
| unknown backend, invalid line, no line within `LINE_LIMIT_S` | the same, and a warning | the same |

Never 0 or less ("no limit"), never a percentage, `up`, `down` or `drain`: those would change more than the cap.

Each server is one replica, so N is a share of `replica_cap`, the same for all servers of a backend. `<gateway>` names
the HAProxy process (core.sharing.allocator). Without it the address of the peer does, so two processes on one host
count as one.

**Raises are delayed.** The servers of a gateway learn of a smaller share one after the other, within one `agent-inter`,
but the allocator counts it as delivered with the first of them. So clients that gain by it, new ones too, get their
raise `RAISE_AFTER_S` later, when all servers have been told. A single client does not wait.

A check costs one small parse. Idle connections time out, and beyond `MAX_CONNECTIONS` the oldest is closed. Responses
are a few bytes that always fit into the socket's buffer, so a peer that does not read delays nothing.

Source: HAProxy's configudelay manual, `agent-check`; behaviour observed with HAProxy 2.6.
"""

from __future__ import annotations

import asyncio
import math
import re
import socket
from dataclasses import dataclass
from typing import cast

import structlog

from calibrator.core.sharing.allocator import MAX_CLIENTS
from calibrator.ports.clock import Clock
from calibrator.ports.operator import Operator
from calibrator.ports.sharing import Poll

RAISE_AFTER_S = 5.0  # above two `agent-inter` of 2 s
LINE_LIMIT_S = 5.0
MAX_LINE_BYTES = 512
MAX_CONNECTIONS = 1024
WARN_EVERY_S = 60.0

_LINE = re.compile(rb"([a-z0-9][a-z0-9-]{0,62})(?:/[\x21-\x7e]{1,128})?(?:[ ]+([\x21-\x7e]{1,256}))?\s*")


@dataclass(slots=True)
class RaiseDelay:
    """The cap advertised to one gateway's servers of a backend."""

    advertised: int = 0
    awaited: int = 0  # a higher share, advertised after `RAISE_AFTER_S`; 0: none
    since_s: float = 0.0

    def next(self, share: int, clients: int, now_s: float) -> int:
        """Lower shares apply at once, higher ones after the delay. 0: nothing to advertise yet."""
        if share <= self.advertised or clients == 1:
            self.advertised, self.awaited = share, 0
        elif not self.awaited:
            self.awaited, self.since_s = share, now_s
        else:
            self.awaited = min(self.awaited, share)  # a further raise waits for its own delay
            if now_s - self.since_s >= RAISE_AFTER_S:
                self.advertised, self.awaited = self.awaited, 0
        return self.advertised


class HaproxyAgent:
    """Answers agent-checks on a listening socket, from `start` to `stop`."""

    def __init__(self, operator: Operator, clock: Clock) -> None:
        self._operator = operator
        self._clock = clock
        self._delays: dict[tuple[str, str], RaiseDelay] = {}  # by backend and gateway; longest silent first
        self._open: dict[_Check, None] = {}  # oldest first
        self._server: asyncio.Server | None = None
        self._warned_s = -math.inf
        self._log = structlog.get_logger()

    async def start(self, listener: socket.socket) -> None:
        self._server = await asyncio.get_running_loop().create_server(lambda: _Check(self), sock=listener)

    async def stop(self) -> None:
        """Close the socket and every connection."""
        if self._server is not None:
            self._server.close()
        for check in list(self._open):
            check.abort()

    def answer(self, line: bytes, peer: str) -> bytes:
        """The line to send; b"" changes nothing."""
        asked = _LINE.fullmatch(line)
        snapshot = self._operator.snapshot()
        backend = asked[1].decode() if asked else ""
        if backend not in snapshot.backends:
            if snapshot.ready:
                self._warn(line, peer)
            return b""
        gateway = asked[2].decode() if asked and asked[2] else peer
        maxconn = self._maxconn(backend, gateway)
        return b"maxconn:%d\n" % maxconn if maxconn else b""

    def _maxconn(self, backend: str, gateway: str) -> int:
        share = self._operator.poll(backend, Poll(gateway, per_replica=True))
        delay = self._delays.pop((backend, gateway), None) or RaiseDelay()
        if share.requests is None:
            return 0
        self._delays[backend, gateway] = delay
        if len(self._delays) > MAX_CLIENTS:
            del self._delays[next(iter(self._delays))]
        return delay.next(share.requests, share.clients, self._clock.monotonic())

    def _warn(self, line: bytes, peer: str) -> None:
        now_s = self._clock.monotonic()
        if now_s - self._warned_s >= WARN_EVERY_S:
            self._warned_s = now_s
            self._log.warning(
                "agent-check for an unknown backend", sent=line[:100].decode("ascii", "replace"), peer=peer
            )

    # -------------------------------------------------------------------------------------------- connections
    def opened(self, check: _Check) -> None:
        self._open[check] = None
        if len(self._open) > MAX_CONNECTIONS:
            next(iter(self._open)).abort()

    def closed(self, check: _Check) -> None:
        self._open.pop(check, None)


class _Check(asyncio.Protocol):
    """One connection: one line in, one line out."""

    def __init__(self, agent: HaproxyAgent) -> None:
        self._agent = agent
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._deadline = asyncio.get_running_loop().call_later(LINE_LIMIT_S, self.abort)
        self._agent.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        self._received += data
        line, newline, _ = self._received.partition(b"\n")
        if newline or len(self._received) > MAX_LINE_BYTES:
            peer = self._transport.get_extra_info("peername") or ("unknown",)
            self._transport.write(self._agent.answer(line, str(peer[0])))
            self._transport.close()

    def connection_lost(self, _error: Exception | None) -> None:
        self._deadline.cancel()
        self._agent.closed(self)

    def abort(self) -> None:
        self._transport.abort()
