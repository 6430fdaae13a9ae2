"""A worker of the pool: `python -m calibrator.load.worker FD`. Holds its share of the users until the pool is gone.

When the other end of the socket closes, for whatever reason, the worker ends its requests and exits. So a killed sweep
leaves no load behind. Garbage is collected once after the imports, then frozen: later collections scan only what the
measurement creates.
"""

from __future__ import annotations

import asyncio
import gc
import pickle
import signal
import socket
import sys
import time
from typing import Any

import uvloop

from calibrator.errors import CalibratorError
from calibrator.load.messages import REPORT_S, Aim, Allow, Channel, Failed, Hello, Ready, Report, Stop
from calibrator.ports.load import LoadGenerator


class Worker:
    """Passes the pool's commands to a generator of its own, and the events back."""

    def __init__(self) -> None:
        self._leash = asyncio.Event()
        self._hello: asyncio.Future[Hello] = asyncio.get_running_loop().create_future()
        self._load: LoadGenerator | None = None
        self._turn = 0

    async def run(self, sock: socket.socket) -> None:
        """Runs until the pool is gone."""
        channel = await Channel.over(sock, self._heard, self._lost)
        hello = await self._hello
        try:
            load = pickle.loads(hello.factory)(hello.index, hello.step)  # noqa: S301 - from the pool that started this process
            await load.start()
            try:
                gc.collect()
                gc.freeze()
                self._load = load
                channel.send(Ready())
                await self._report(load, channel)
            finally:
                await load.stop()
        except CalibratorError as error:
            channel.send(Failed(error))
        channel.close()

    async def _report(self, load: LoadGenerator, channel: Channel) -> None:
        while not self._leash.is_set():
            batch = await load.poll()
            channel.send(Report(self._turn, batch, time.monotonic()))
            try:
                async with asyncio.timeout(REPORT_S):
                    await self._leash.wait()
            except TimeoutError:
                continue

    def _heard(self, message: Any) -> None:
        if isinstance(message, Hello):
            self._hello.set_result(message)
        elif isinstance(message, Aim) and self._load is not None:
            self._turn = message.turn
            self._load.aim(message.users, message.label, message.stagger_s)
        elif isinstance(message, Allow) and self._load is not None:
            self._load.allow(message.until_s)
        elif isinstance(message, Stop):
            self._lost()

    def _lost(self) -> None:
        self._leash.set()
        if not self._hello.done():
            self._hello.cancel()


async def _serve(sock: socket.socket) -> None:
    await Worker().run(sock)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the pool decides what it means
    sock = socket.socket(fileno=int(sys.argv[1]))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(sock))
    except asyncio.CancelledError:
        return  # the pool was gone before it said hello


if __name__ == "__main__":
    main()
