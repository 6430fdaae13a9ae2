"""Messages between the pool and its workers: length-prefixed pickles over a private pair of sockets.

    pool                                   worker
    Hello(factory, index, step)       ──▶
                                      ◀──  Ready
    Aim(turn, users, label, stagger)  ──▶
                                      ◀──  Report(turn, batch)   every `REPORT_S`, with or without events
                                      ◀──  Failed(error)         its last message
    Allow(until_s)                    ──▶  no request starts afterwards
    Stop(), or the pool is gone       ──▶  ends all requests, closes, exits

Sockets rather than `multiprocessing` pipes, because a full pipe would block the event loop that takes the stamps; a
transport buffers what does not fit. `turn` distinguishes reports made before the worker received the latest aim from
later ones.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from calibrator.core.records.sample import Label
from calibrator.errors import CalibratorError
from calibrator.ports.load import Batch, LoadGenerator

REPORT_S = 0.05
_LENGTH = struct.Struct("!I")

WorkerFactory = Callable[[int, int], LoadGenerator]  # (index, step): request ids are index + k * step


@dataclass(frozen=True, slots=True)
class Hello:
    """`factory` is a pickled `WorkerFactory`."""

    factory: bytes
    index: int
    step: int


@dataclass(frozen=True, slots=True)
class Ready:
    pass


@dataclass(frozen=True, slots=True)
class Aim:
    turn: int
    users: int
    label: Label
    stagger_s: float


@dataclass(frozen=True, slots=True)
class Allow:
    until_s: float  # of the worker's monotonic clock


@dataclass(frozen=True, slots=True)
class Report:
    turn: int
    batch: Batch
    told_s: float  # the worker's monotonic clock when it made the batch


@dataclass(frozen=True, slots=True)
class Failed:
    error: CalibratorError


@dataclass(frozen=True, slots=True)
class Stop:
    pass


@dataclass(frozen=True, slots=True)
class Serving:
    """From the server: listening."""

    port: int


@dataclass(frozen=True, slots=True)
class Pace:
    """To the self-test's server: token rate of each stream from now on."""

    events_per_s: float


@dataclass(frozen=True, slots=True)
class Tell:
    """To the server: report what was sent, and forget it."""


@dataclass(frozen=True, slots=True)
class Sent:
    """From the server: by request id, when it received it, sent its first token, sent its last one."""

    stamps: dict[int, tuple[float, float, float]]


class Channel(asyncio.Protocol):
    """One end. `on_message` and `on_lost` are called by the event loop; `send` never blocks."""

    def __init__(self, on_message: Callable[[Any], None], on_lost: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    @staticmethod
    async def over(sock: socket.socket, on_message: Callable[[Any], None], on_lost: Callable[[], None]) -> Channel:
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(lambda: Channel(on_message, on_lost), sock=sock)
        return channel

    def send(self, message: object) -> None:
        """If the peer is gone, nothing happens; `on_lost` reports it."""
        if self._transport is not None:
            data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
            self._transport.write(_LENGTH.pack(len(data)) + data)

    def close(self) -> None:
        """Closes once everything has been sent."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            end = start + _LENGTH.size + length
            if len(buffer) < end:
                break
            message = pickle.loads(memoryview(buffer)[start + _LENGTH.size : end])  # noqa: S301 - from our own process
            start = end
            self._on_message(message)
        del buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport = None
        self._on_lost()
