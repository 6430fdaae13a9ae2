"""A closed loop over several processes of one machine: beyond some 64 streams, one event loop is the bottleneck.

Virtual users are dealt to workers, each with a closed loop of its own (`worker`). Workers are never restarted between
levels; durations are measured where the request runs, and one machine has one monotonic clock.

**How many.** One worker for each `USERS_PER_WORKER` users, at most `most_workers` (the cores). Ramps at most double,
so workers are started for twice the users aimed at: the next level finds them ready. Where a jump is larger, the users
that the ready workers should not carry wait for the new ones; until then `all_started` is false: the level warms up.

**Dealing.** Going up, each new user goes to the worker with the fewest; going down, users leave the worker with the
most. No user moves while its worker lives: a move would be a request more here before one less there.

**Death.** A worker that dies closes its socket, which is seen at once. Its requests never end, so the batch says
`broken`, a new worker is started, and the users are dealt anew. `MOST_DEATHS` are too many: GeneratorError. A worker
that lives without reporting is killed, which leads to the same.

Request ids are index + k * `INDEX_SPACE`, the index being new for every worker ever started: they never meet.

Caller: `service.sweep`, through wiring.
"""

from __future__ import annotations

import asyncio
import math
import os
import pickle
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from calibrator.core.sample import Label, Phase, Sample
from calibrator.errors import CalibratorError, GeneratorError
from calibrator.load.lateness import PROBE_S
from calibrator.load.messages import Aim, Channel, Failed, Hello, Ready, Report, Stop, WorkerFactory
from calibrator.ports import Batch, Decided, Started

USERS_PER_WORKER = 64
LOOK_AHEAD = 2  # the ramp's largest step
INDEX_SPACE = 1 << 16
MOST_DEATHS = 3
STOP_S = 0.9  # a worker ends its requests within 0.8 s
EXIT_S = 0.5  # from its last word to its end
SILENT_POLLS = 20  # and so long without a word: a worker hangs (polls, because we may have slept ourselves)
SILENT_S, START_S = 5.0, 60.0  # once ready; while starting


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(slots=True)
class _Events:
    started: list[Started] = field(default_factory=list)
    decided: list[Decided] = field(default_factory=list)
    ended: list[Sample] = field(default_factory=list)
    lag_s: list[float] = field(default_factory=list)
    cpu_ratio: float = 0.0
    cpu_s: float = 0.0


@dataclass(eq=False, slots=True)
class _Seat:
    """One worker, from the pool's side."""

    process: subprocess.Popen[bytes]
    gone: asyncio.Event
    channel: Channel | None = None
    is_ready: bool = False
    users: int = 0  # dealt to it
    turn: int = -1  # of its latest report
    latest: Batch = field(default_factory=Batch)
    heard_s: float = 0.0  # the event loop's time
    silent_polls: int = 0  # since then


class WorkerPool:
    """Port `LoadGenerator` over worker processes. `make` must be picklable."""

    def __init__(
        self,
        make: WorkerFactory,
        *,
        most_workers: int,
        expected_users: int = 1,
        users_per_worker: int = USERS_PER_WORKER,
    ) -> None:
        self._factory = pickle.dumps(make)
        self._most_workers = most_workers
        self._users_per_worker = users_per_worker
        self._wanted = expected_users
        self._label = Label(0, Phase.RAMP)
        self._stagger_s = 0.0
        self._turn = 0
        self._seats: list[_Seat] = []
        self._starting: set[asyncio.Task[None]] = set()
        self._reaping: set[asyncio.Task[None]] = set()
        self._workers = 0  # alive or being started
        self._next_index = 0
        self._deaths = 0
        self._broken = ""
        self._error: CalibratorError | None = None
        self._events = _Events()
        self._stopping = False

    # ------------------------------------------------------------------------------------------------- port
    async def start(self) -> None:
        self._grow()
        self._wanted = 0

    def aim(self, users: int, label: Label, stagger_s: float) -> None:
        self._wanted, self._label, self._stagger_s = users, label, stagger_s
        self._grow()
        self._deal()

    async def poll(self) -> Batch:
        if self._error is not None:
            raise self._error
        self._kill_the_silent()
        events, self._events = self._events, _Events()
        broken, self._broken = self._broken, ""
        fresh = [seat.latest for seat in self._seats if seat.turn == self._turn]
        ready = [seat for seat in self._seats if seat.is_ready]
        dealt = sum(seat.users for seat in ready) == self._wanted and len(fresh) == len(ready)
        return Batch(
            started=sorted(events.started, key=lambda start: start.started_s),
            decided=events.decided,
            ended=events.ended,
            in_flight=sum(seat.latest.in_flight for seat in self._seats),
            users=sum(seat.latest.users for seat in self._seats),
            turned_over=sum(batch.turned_over for batch in fresh),
            all_started=dealt and all(batch.all_started for batch in fresh),
            loop_lag_s=events.lag_s,
            lag_probe_s=PROBE_S,
            cpu_ratio=events.cpu_ratio,
            cpu_s=events.cpu_s,
            processes=len(ready),
            broken=broken,
        )

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._starting)
        for seat in self._seats:
            if seat.channel is not None:
                seat.channel.send(Stop())
        ends = [asyncio.create_task(seat.gone.wait()) for seat in self._seats]
        if ends:
            await asyncio.wait(ends, timeout=STOP_S)
        for seat, end in zip(self._seats, ends, strict=True):
            if not end.done():
                seat.process.kill()
                end.cancel()
            await _reaped(seat.process)
            if seat.channel is not None:
                seat.channel.close()
        await asyncio.gather(*self._reaping)

    # ---------------------------------------------------------------------------------------------- workers
    def _grow(self) -> None:
        ahead = math.ceil(LOOK_AHEAD * self._wanted / self._users_per_worker)
        needed = min(self._most_workers, max(1, ahead))
        while self._workers < needed:
            self._workers += 1
            task = asyncio.create_task(self._add_worker())
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _add_worker(self) -> None:
        index, self._next_index = self._next_index, self._next_index + 1
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.get_running_loop().run_in_executor(None, _spawn, theirs)
            except OSError as error:
                ours.close()
                self._error = GeneratorError(f"A worker process cannot be started: {error}.", "Raise the limits.")
                return
        seat = _Seat(process, asyncio.Event(), heard_s=asyncio.get_running_loop().time())
        self._seats.append(seat)
        seat.channel = await Channel.over(ours, partial(self._heard, seat), partial(self._lost, seat))
        seat.channel.send(Hello(tuple(sys.path), self._factory, index, INDEX_SPACE))

    def _heard(self, seat: _Seat, message: Any) -> None:
        seat.heard_s, seat.silent_polls = asyncio.get_running_loop().time(), 0
        if isinstance(message, Report):
            self._merge(seat, message)
        elif isinstance(message, Ready):
            seat.is_ready = True
            self._deal()
        elif isinstance(message, Failed):
            self._error = self._error or message.error

    def _merge(self, seat: _Seat, report: Report) -> None:
        seat.turn, seat.latest = report.turn, report.batch
        events, batch = self._events, report.batch
        events.started += batch.started
        events.decided += batch.decided
        events.ended += batch.ended
        events.lag_s += batch.loop_lag_s
        events.cpu_ratio = max(events.cpu_ratio, batch.cpu_ratio)
        events.cpu_s += batch.cpu_s

    def _lost(self, seat: _Seat) -> None:
        seat.gone.set()
        if self._stopping:
            return
        self._seats.remove(seat)
        self._workers -= 1
        self._deaths += 1
        self._broken = "a worker process of the load generator died"
        reaping = asyncio.create_task(_reaped(seat.process))
        self._reaping.add(reaping)
        reaping.add_done_callback(self._reaping.discard)
        if self._deaths > MOST_DEATHS:
            self._error = self._error or GeneratorError(
                f"Worker processes of the load generator died {self._deaths} times.",
                "Look for an out-of-memory kill, and for their traceback in the log.",
            )
        elif self._error is None:
            self._grow()
            self._deal()

    def _kill_the_silent(self) -> None:
        now_s = asyncio.get_running_loop().time()
        for seat in self._seats:
            seat.silent_polls += 1
            patience_s = SILENT_S if seat.is_ready else START_S
            if seat.silent_polls > SILENT_POLLS and now_s - seat.heard_s > patience_s:
                seat.process.kill()

    # ---------------------------------------------------------------------------------------------- dealing
    def _deal(self) -> None:
        """Tell every ready worker its share of what is wanted."""
        ready = [seat for seat in self._seats if seat.is_ready]
        if not ready:
            return
        self._turn += 1
        needed = min(self._most_workers, math.ceil(self._wanted / self._users_per_worker))
        waits = len(ready) < needed
        placed = min(self._wanted, len(ready) * self._users_per_worker) if waits else self._wanted
        used = ready[: max(1, needed)]
        for _ in range(placed - sum(seat.users for seat in ready)):
            min(used, key=lambda seat: seat.users).users += 1
        for _ in range(sum(seat.users for seat in ready) - placed):
            max(ready, key=lambda seat: seat.users).users -= 1
        for seat in ready:
            if seat.channel is not None:
                seat.channel.send(Aim(self._turn, seat.users, self._label, self._stagger_s))


def _spawn(sock: socket.socket) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "calibrator.load.worker", str(sock.fileno())]
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        command, pass_fds=(sock.fileno(),), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )


async def _reaped(process: subprocess.Popen[bytes]) -> None:
    await asyncio.get_running_loop().run_in_executor(None, _reap, process)


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Its socket is closed, so it is about to leave."""
    try:
        process.wait(EXIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
