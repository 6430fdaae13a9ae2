"""A closed loop over several workers: beyond about 64 streams, one event loop is the bottleneck.

Virtual users are distributed over workers, each a process with a closed loop of its own (`worker`). The launcher
decides where they run: on this machine (`processes`) or on others (`ray_workers`). Workers are never restarted between
levels.

**How many.** One worker per `USERS_PER_WORKER` users, at most `most_workers`. Ramps at most double, so workers are
started for twice the number of users and are ready for the next level. If a jump is larger, users beyond what the ready
workers should carry wait for new ones; until then `all_started` is false and the level stays in its warm-up.

**Distribution.** Going up, each new user goes to the worker with the fewest; going down, users leave the one with the
most. No user moves while its worker lives: a move would add a request here before it removes one there.

**Time.** Durations are measured where the request runs. Points in time are the worker's; those of another machine are
converted to ours (`remote_clock`).

**Death.** A worker that dies closes its link, which is noticed at once. Its requests never end, so the batch is marked
`broken`, a new worker is started, and the users are redistributed. `MOST_DEATHS` are too many: GeneratorError. A worker
that hangs without reporting is killed, with the same effect.

Request ids are index + k * `INDEX_SPACE`, with a new index for every worker ever started: they never collide.

Caller: `service.sweep.run`, through wiring.
"""

from __future__ import annotations

import asyncio
import math
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from calibrator.core.records.sample import Label, Phase, Sample
from calibrator.errors import CalibratorError, GeneratorError
from calibrator.load.lateness import PROBE_S
from calibrator.load.messages import Aim, Allow, Failed, Hello, Ready, Report, Stop, WorkerFactory
from calibrator.load.remote_clock import RemoteClock
from calibrator.ports.load import Batch, Decided, Started

USERS_PER_WORKER = 64
LOOK_AHEAD = 2  # the ramp's largest step
INDEX_SPACE = 1 << 16
MOST_DEATHS = 3
STOP_S = 0.9  # a worker ends its requests within 0.8 s
SILENT_POLLS = 20  # without a report for so long: it hangs (polls, because we may have slept ourselves)
SILENT_S, START_S = 5.0, 60.0  # once ready; while starting


class Link(Protocol):
    """One worker, from the pool's side."""

    def send(self, message: object) -> None:
        """Never blocks and keeps the order; if the worker is gone, nothing happens."""
        ...

    def kill(self) -> None: ...

    async def let_go(self) -> None:
        """After it exited or was killed: leave nothing of it behind."""
        ...


class Launcher(Protocol):
    """Where workers come from."""

    shares_clock: bool  # their monotonic clock is ours

    async def launch(self, on_message: Callable[[Any], None], on_lost: Callable[[], None]) -> Link:
        """A worker that waits for its Hello; it is read until it is lost. Raises CalibratorError."""
        ...

    async def close(self) -> None:
        """After the last worker."""
        ...


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

    link: Link = field(init=False)  # set before it is seated
    clock: RemoteClock | None  # None: its clock is ours
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    is_ready: bool = False
    users: int = 0  # assigned to it
    turn: int = -1  # of its latest report
    latest: Batch = field(default_factory=Batch)
    heard_s: float = 0.0
    silent_polls: int = 0  # since then


class WorkerPool:
    """Port `LoadGenerator` over workers. `make` must be picklable; `now` is the clock of the batches."""

    def __init__(
        self,
        make: WorkerFactory,
        launcher: Launcher,
        *,
        most_workers: int,
        expected_users: int = 1,
        users_per_worker: int = USERS_PER_WORKER,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._factory = pickle.dumps(make)
        self._launcher = launcher
        self._now = now
        self._most_workers = most_workers
        self._users_per_worker = users_per_worker
        self._wanted = expected_users
        self._label = Label(0, Phase.RAMP)
        self._stagger_s = 0.0
        self._turn = 0
        self._seats: list[_Seat] = []
        self._starting: set[asyncio.Task[None]] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._workers = 0  # alive or being started
        self._next_index = 0
        self._deaths = 0
        self._broken = ""
        self._error: CalibratorError | None = None
        self._events = _Events()
        self._stopping = False
        self._until_s = math.inf

    # ------------------------------------------------------------------------------------------------- port
    async def start(self) -> None:
        self._grow()
        self._wanted = 0

    def aim(self, users: int, label: Label, stagger_s: float) -> None:
        self._wanted, self._label, self._stagger_s = users, label, stagger_s
        self._grow()
        self._deal()

    def allow(self, until_s: float) -> None:
        if until_s != self._until_s:
            self._until_s = until_s
            for seat in self._seats:
                self._pass_on(seat)

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
        for seat in self._seats:
            seat.link.send(Stop())
        ends = [*self._starting, *(asyncio.create_task(seat.gone.wait()) for seat in self._seats)]
        if ends:
            await asyncio.wait(ends, timeout=STOP_S)
        for end in ends:
            end.cancel()
        await asyncio.gather(*ends, return_exceptions=True)
        for seat in self._seats:
            if not seat.gone.is_set():
                seat.link.kill()
        await asyncio.gather(*(seat.link.let_go() for seat in self._seats), *self._leaving)
        await self._launcher.close()

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
        seat = _Seat(None if self._launcher.shares_clock else RemoteClock())
        try:
            seat.link = await self._launcher.launch(partial(self._heard, seat), partial(self._lost, seat))
        except CalibratorError as error:
            self._error = self._error or error
            return
        self._seats.append(seat)
        seat.heard_s = self._now()
        if seat.gone.is_set():
            self._bury(seat)
        else:
            seat.link.send(Stop() if self._stopping else Hello(self._factory, index, INDEX_SPACE))

    def _heard(self, seat: _Seat, message: Any) -> None:
        seat.heard_s, seat.silent_polls = self._now(), 0
        if isinstance(message, Report):
            self._merge(seat, message)
        elif isinstance(message, Ready):
            seat.is_ready = True
            self._pass_on(seat)
            self._deal()
        elif isinstance(message, Failed):
            self._error = self._error or message.error

    def _pass_on(self, seat: _Seat) -> None:
        """Until when it may send; not sent to a worker that is not ready or whose clock is not known yet."""
        until_s = self._until_s if seat.clock is None else seat.clock.theirs(self._until_s)
        if seat.is_ready and until_s is not None:
            seat.link.send(Allow(until_s))

    def _merge(self, seat: _Seat, report: Report) -> None:
        batch = report.batch if seat.clock is None else seat.clock.ours(report.batch, report.told_s, seat.heard_s)
        is_first, seat.turn, seat.latest = seat.turn < 0, report.turn, batch
        if is_first and seat.clock is not None:
            self._pass_on(seat)
        events = self._events
        events.started += batch.started
        events.decided += batch.decided
        events.ended += batch.ended
        events.lag_s += batch.loop_lag_s
        events.cpu_ratio = max(events.cpu_ratio, batch.cpu_ratio)
        events.cpu_s += batch.cpu_s

    def _lost(self, seat: _Seat) -> None:
        seat.gone.set()
        if seat in self._seats and not self._stopping:
            self._bury(seat)

    def _bury(self, seat: _Seat) -> None:
        self._seats.remove(seat)
        self._workers -= 1
        self._deaths += 1
        self._broken = "a worker process of the load generator died"
        leaving = asyncio.create_task(seat.link.let_go())
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
        if self._deaths > MOST_DEATHS:
            self._error = self._error or GeneratorError(
                f"Worker processes of the load generator died {self._deaths} times.",
                "Check for an out-of-memory kill, and for their traceback in the log.",
            )
        elif self._error is None:
            self._grow()
            self._deal()

    def _kill_the_silent(self) -> None:
        now_s = self._now()
        for seat in self._seats:
            seat.silent_polls += 1
            patience_s = SILENT_S if seat.is_ready else START_S
            if seat.silent_polls > SILENT_POLLS and now_s - seat.heard_s > patience_s:
                seat.link.kill()

    # ---------------------------------------------------------------------------------------------- dealing
    def _deal(self) -> None:
        """Send every ready worker its share of the users."""
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
            seat.link.send(Aim(self._turn, seat.users, self._label, self._stagger_s))
