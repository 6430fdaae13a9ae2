"""A closed loop in one process: N virtual users, each sending its next request when the previous one ends.

A gateway with cap N under pressure keeps exactly N requests in flight, and so does this loop (DESIGN section 2). Levels
follow each other without draining: `aim` changes the number of users and the label of requests from then on.

- Users are added spread over the stagger time; their first request has a residual output length, so that they do not
  run in lockstep. Surplus users leave when their request ends; no request is cut off.
- Violation bits are decided while requests are in flight (`core.records.objective.decide_live`), at each `poll`, and
  when they end. A violation decided by the clock is reported again once its first token shows when the stall
  ended: the time changes, not the bit (clusters are formed by first-token times). One that was suspect then is
  reported again at its end: it may have missed the limit by far more than was known.
- A user whose request failed waits before the next: `PAUSE_S`, doubled with each consecutive failure. A backend that
  rejects requests is not hammered; free slots in its queue are for live requests as much as for ours.
- The loop monitors itself (`lateness`): violations that its own lateness may have caused are marked as suspect.

Caller: `service.sweep.run`, or a worker of a multi-process generator.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from calibrator.core.records.objective import Metric, Objective, decide_final, decide_live, decided_at_s
from calibrator.core.records.sample import Flight, Label, Phase, ProbeRequest, Sample
from calibrator.core.records.unmeasured import Missing, missing_input
from calibrator.errors import GeneratorError
from calibrator.load.lateness import PROBE_S, Lateness
from calibrator.ports.backend import Backend, Connection
from calibrator.ports.clock import Clock
from calibrator.ports.load import Batch, Decided, PromptSource, Started

PAUSE_S = (0.05, 1.0)  # pause after a failed request: first, and at most
STOP_GRACE_S = 0.8  # aborted requests end within a loop turn; the rest of the promised second is for cancellation


@dataclass(eq=False, slots=True)
class _User:
    connection: Connection
    joined_running: bool
    turned_over: bool = False
    pause_s: float = PAUSE_S[0]
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Events:
    started: list[Started] = field(default_factory=list)
    decided: list[Decided] = field(default_factory=list)
    ended: list[Sample] = field(default_factory=list)
    lag_s: list[float] = field(default_factory=list)


class ClosedLoop:
    """Port `LoadGenerator` on the running event loop."""

    def __init__(
        self,
        backend: Backend,
        prompts: PromptSource,
        objectives: tuple[Objective, ...],
        clock: Clock,
        cpu_s: Callable[[], float] = time.process_time,
    ) -> None:
        self._backend = backend
        self._prompts = prompts
        self._objectives = objectives
        self._clock = clock
        self._cpu_s = cpu_s
        self._users: set[_User] = set()
        self._flights: dict[int, Flight] = {}
        self._settle: set[tuple[int, int]] = set()  # violations whose first token is still awaited
        self._unsure: set[tuple[int, int]] = set()  # suspect ones: by how much the limit was missed, the end will say
        self._events = _Events()
        self._label = Label(0, Phase.RAMP)
        self._wanted = 0
        self._to_add = 0
        self._adder: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._broken: BaseException | None = None
        self._stopping = False
        self._until_s = math.inf  # no request starts afterwards
        self._cpu_mark = (0.0, 0.0)
        self._late = Lateness(0.0)

    # ------------------------------------------------------------------------------------------------- port
    async def start(self) -> None:
        self._cpu_mark = (self._clock.monotonic(), self._cpu_s())
        self._late = Lateness(self._cpu_mark[0])
        self._watch = asyncio.create_task(self._watch_lag())

    def aim(self, users: int, label: Label, stagger_s: float) -> None:
        is_other, is_new_stage = users != self._wanted, label.stage != self._label.stage
        self._label, self._wanted = label, users
        if is_new_stage:
            for user in self._users:
                user.turned_over = False
        if not is_other:
            return
        if self._adder is not None:
            self._adder.cancel()
        self._to_add = max(0, users - len(self._users))
        self._adder = asyncio.create_task(self._add_users(self._to_add, stagger_s)) if self._to_add else None

    def allow(self, until_s: float) -> None:
        self._until_s = until_s

    async def poll(self) -> Batch:
        if self._broken is not None:
            raise GeneratorError(f"The load generator failed: {self._broken!r}.", "This is a bug; please report it.")
        self._decide_in_flight(self._clock.monotonic())
        events, self._events = self._events, _Events()
        cpu_ratio, cpu_s = self._cpu_use()
        return Batch(
            started=events.started,
            decided=events.decided,
            ended=events.ended,
            in_flight=len(self._flights),
            users=len(self._users),
            turned_over=sum(user.turned_over for user in self._users),
            all_started=self._to_add == 0 and len(self._users) == self._wanted,
            loop_lag_s=events.lag_s,
            lag_probe_s=PROBE_S,
            cpu_ratio=cpu_ratio,
            cpu_s=cpu_s,
        )

    async def stop(self) -> None:
        self._stopping, self._wanted = True, 0
        for task in (self._adder, self._watch):
            if task is not None:
                task.cancel()
        for user in self._users:
            user.connection.abort()
        tasks = [user.task for user in self._users if user.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_GRACE_S)
            for task in tasks:
                task.cancel()
        await asyncio.gather(*tasks, *(t for t in (self._adder, self._watch) if t is not None), return_exceptions=True)
        await self._backend.close()

    # ------------------------------------------------------------------------------------------------ users
    async def _add_users(self, count: int, stagger_s: float) -> None:
        begun_s = self._clock.monotonic()
        for index in range(count):
            await self._clock.sleep(max(0.0, begun_s + stagger_s * index / count - self._clock.monotonic()))
            if self._stopping:
                return
            user = _User(self._backend.connect(), joined_running=True)
            self._users.add(user)
            user.task = asyncio.create_task(self._live(user))
            self._to_add -= 1

    @property
    def _may_send(self) -> bool:
        return not self._stopping and self._clock.monotonic() < self._until_s

    async def _live(self, user: _User) -> None:
        try:
            while self._may_send and len(self._users) <= self._wanted:
                residual = user.joined_running and self._label.phase is Phase.RAMP
                user.joined_running = False
                request = self._prompts.next_request(self._label, residual=residual)
                sample = await user.connection.send(request, self._started)
                self._ended(sample)
                user.turned_over = True
                if sample.failure is None:
                    user.pause_s = PAUSE_S[0]
                    continue
                await self._clock.sleep(max(0.0, user.pause_s - sample.duration_s))
                user.pause_s = min(2.0 * user.pause_s, PAUSE_S[1])
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - a bug in a client must end the sweep, not hang it
            self._broken = error
        finally:
            self._users.discard(user)
            user.connection.abort()

    # ----------------------------------------------------------------------------------------------- events
    def _started(self, flight: Flight) -> None:
        request = flight.request
        flight.bits = [None] * len(self._objectives)
        self._flights[request.request_id] = flight
        self._events.started.append(Started(request.request_id, request.label, flight.started_s, request.stream))
        for index, objective in enumerate(self._objectives):
            if not _applies(objective, request):
                flight.bits[index] = False
                missing = None if request.stream else Missing.NOT_STREAMED
                self._decided(request.request_id, index, violated=None, at_s=flight.started_s, missing=missing)

    def _ended(self, sample: Sample) -> None:
        flight = self._flights.pop(sample.request_id, None)
        bits = flight.bits if flight is not None else [None] * len(self._objectives)
        for index, objective in enumerate(self._objectives):
            key = (sample.request_id, index)
            is_awaited = key in self._settle or key in self._unsure
            self._settle.discard(key)
            self._unsure.discard(key)
            if bits[index] is not None and not is_awaited:
                continue
            violated = True if is_awaited else decide_final(objective, sample)
            suspect = violated is True and self._late.doubts(objective, sample, self._clock.monotonic())
            missing = missing_input(objective.metric, sample) if violated is None else None
            at_s = decided_at_s(objective, sample)
            self._decided(sample.request_id, index, violated=violated, at_s=at_s, suspect=suspect, missing=missing)
        self._events.ended.append(sample)

    def _decide_in_flight(self, now_s: float) -> None:
        for request_id, flight in self._flights.items():
            first_s = flight.first_token_s
            for index, objective in enumerate(self._objectives):
                if flight.bits[index] is None:
                    violated = decide_live(objective, flight, now_s)
                    if violated is None:
                        continue
                    flight.bits[index] = violated
                    if violated and first_s is None:
                        self._settle.add((request_id, index))
                elif first_s is not None and (request_id, index) in self._settle:
                    self._settle.discard((request_id, index))
                    violated = True
                else:
                    continue
                suspect = violated and self._doubts(objective, flight, now_s)
                if suspect:
                    self._unsure.add((request_id, index))
                self._decided(request_id, index, violated=violated, at_s=first_s or now_s, suspect=suspect)

    def _doubts(self, objective: Objective, flight: Flight, now_s: float) -> bool:
        stamps = {Metric.TTFT: flight.first_token_s, Metric.TTFC: flight.first_content_s}
        at_s = stamps.get(objective.metric) or now_s
        excess_s = at_s - flight.started_s - objective.limit_s
        return self._late.explains(excess_s, flight.started_s, (at_s, at_s), now_s)

    def _decided(
        self,
        request_id: int,
        objective: int,
        *,
        violated: bool | None,
        at_s: float,
        suspect: bool = False,
        missing: Missing | None = None,
    ) -> None:
        self._events.decided.append(Decided(request_id, objective, violated, at_s, suspect, missing))

    # ------------------------------------------------------------------------------------------- self-watch
    async def _watch_lag(self) -> None:
        while True:
            await self._clock.sleep(PROBE_S)
            self._events.lag_s.append(self._late.awake(self._clock.monotonic()))

    def _cpu_use(self) -> tuple[float, float]:
        """Since the last call: of one core, and in seconds."""
        now_s, cpu_s = self._clock.monotonic(), self._cpu_s()
        (then_s, then_cpu_s), self._cpu_mark = self._cpu_mark, (now_s, cpu_s)
        return (cpu_s - then_cpu_s) / (now_s - then_s) if now_s > then_s else 0.0, cpu_s - then_cpu_s


def _applies(objective: Objective, request: ProbeRequest) -> bool:
    """A non-streaming request has only `e2e`; a restricted objective counts only its prompt lengths."""
    return objective.applies_to(request.prompt_tokens) and (request.stream or objective.metric == "e2e")
