"""Workers on this machine: processes that share its monotonic clock, each on a private pair of sockets.

The socket ties their lifetimes together: a worker that is gone has closed its end, and one whose pool is gone exits.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from calibrator.errors import GeneratorError
from calibrator.load.messages import Channel

EXIT_S = 0.5  # from its last message to its end


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class LocalLink:
    """Port `pool.Link`."""

    process: subprocess.Popen[bytes]
    channel: Channel

    def send(self, message: object) -> None:
        self.channel.send(message)

    def kill(self) -> None:
        self.process.kill()

    async def let_go(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, _reap, self.process)
        self.channel.close()


class LocalLauncher:
    """Port `pool.Launcher`."""

    shares_clock = True

    async def launch(self, on_message: Callable[[Any], None], on_lost: Callable[[], None]) -> LocalLink:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.get_running_loop().run_in_executor(None, _spawn, theirs)
            except OSError as error:
                ours.close()
                raise GeneratorError(f"A worker process cannot be started: {error}.", "Raise the limits.") from None
        return LocalLink(process, await Channel.over(ours, on_message, on_lost))

    async def close(self) -> None:
        """There is nothing to close."""


def _spawn(sock: socket.socket) -> subprocess.Popen[bytes]:
    """The worker imports what we can import."""
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-m", "calibrator.load.worker", str(sock.fileno())],
        pass_fds=(sock.fileno(),),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Its socket is closed, or it was killed: it is about to exit."""
    try:
        process.wait(EXIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
