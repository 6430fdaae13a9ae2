"""The generator measures itself on loopback: how many events it can handle and how much latency it adds.

    LoadGenerator ── requests ──▶ stamp_server (own process)
         │ samples                    │ when each first and last token was sent
         └──────────── added latency = our stamp - its stamp ──┘

Both stamps come from the machine's one monotonic clock. Levels are held by the same rules as in a sweep: a ramp, then a
window in which events are counted.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from calibrator.core.generator_rating import STREAM_EVENTS_PER_S, SelfTestLevel, SelfTestRun, summarise_level
from calibrator.core.records.sample import Label, Phase, Sample
from calibrator.errors import GeneratorError
from calibrator.load.messages import Channel, Pace, Sent, Serving, Tell
from calibrator.ports.load import Batch, LoadGenerator

TOTAL_EVENTS_PER_S = 20_000.0  # of all streams: beyond this the loopback server itself takes much of a core
OUTPUT_TOKENS = 24
STAGGER_S = 0.3
POLL_S = 0.05
RAMP_S = 15.0  # longer than any machine needs
STOP_S = 1.0

RAMP, COUNTED = Label(1, Phase.RAMP), Label(1, Phase.COUNTED)


def pace_per_s(streams: int) -> float:
    """Token events per second of each stream, for this number of streams."""
    return min(STREAM_EVENTS_PER_S, TOTAL_EVENTS_PER_S / streams)


class StampServer:
    """`async with StampServer() as server:` serves until the block ends."""

    def __init__(self) -> None:
        self.port = 0
        self._heard: asyncio.Queue[Any] = asyncio.Queue()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None

    async def __aenter__(self) -> Self:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603, ASYNC220 - our own interpreter and module; takes a millisecond
                [sys.executable, "-m", "calibrator.load.stamp_server", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
            )
        self._channel = await Channel.over(ours, self._heard.put_nowait, lambda: self._heard.put_nowait(None))
        serving = await self._next()
        self.port = serving.port if isinstance(serving, Serving) else 0
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            await asyncio.get_running_loop().run_in_executor(None, _end, self._process)

    def pace(self, events_per_s: float) -> None:
        if self._channel is not None:
            self._channel.send(Pace(events_per_s))

    async def stamps(self) -> dict[int, tuple[float, float, float]]:
        """By request id: received, first token sent, last token sent; since the last call."""
        if self._channel is not None:
            self._channel.send(Tell())
        sent = await self._next()
        return sent.stamps if isinstance(sent, Sent) else {}

    async def _next(self) -> object:
        message: object = await self._heard.get()
        if message is None:
            raise GeneratorError("The server of the self-test died.", "Check its traceback above.")
        return message


@dataclass(slots=True)
class _Window:
    """What was counted."""

    seconds: float = 0.0
    in_flight: list[int] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    cpu_s: float = 0.0
    processes: int = 1

    def add(self, batch: Batch) -> None:
        self.in_flight.append(batch.in_flight)
        self.lags_s += batch.loop_lag_s
        self.samples += batch.ended
        self.cpu_s += batch.cpu_s
        self.processes = batch.processes


async def measure_level(
    server: StampServer, load: LoadGenerator, streams: int, seconds: float, now: Callable[[], float]
) -> SelfTestLevel:
    """Hold `streams` for `seconds` after a ramp; starts and stops `load`."""
    pace = pace_per_s(streams)
    server.pace(pace)
    await load.start()
    window = _Window()
    try:
        load.aim(streams, RAMP, STAGGER_S)
        async with asyncio.timeout(RAMP_S):
            while not _is_warm(await load.poll(), streams):  # noqa: ASYNC110 - the generator is polled, as in a sweep
                await asyncio.sleep(POLL_S)
        load.aim(streams, COUNTED, 0.0)
        begun_s = now()
        while now() - begun_s < seconds:
            await asyncio.sleep(POLL_S)
            window.add(await load.poll())
        window.seconds = now() - begun_s
    except TimeoutError:
        raise GeneratorError(
            f"{streams} streams could not be started within {RAMP_S:g} s.", "Test fewer, or a quicker machine."
        ) from None
    finally:
        await load.stop()
    run = SelfTestRun(
        streams=streams,
        processes=window.processes,
        seconds=window.seconds,
        in_flight=window.in_flight,
        events=sum(sample.token_events for sample in window.samples),
        cpu_s=window.cpu_s,
        lags_s=window.lags_s,
        added_s=_added_s(window.samples, await server.stamps()),
    )
    return summarise_level(run, streams * pace)


def _is_warm(batch: Batch, streams: int) -> bool:
    return batch.all_started and batch.turned_over >= streams


def _added_s(samples: Sequence[Sample], stamps: dict[int, tuple[float, float, float]]) -> list[float]:
    added_s = []
    for sample in samples:
        sent = stamps.get(sample.request_id)
        if sent is not None and sample.completed and sample.ttft_s is not None and sample.last_token_s is not None:
            added_s += [sample.started_s + sample.ttft_s - sent[1], sample.started_s + sample.last_token_s - sent[2]]
    return added_s


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
