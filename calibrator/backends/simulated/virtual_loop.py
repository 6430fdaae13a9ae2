"""A closed loop over the engine in virtual time: N users, each sending its next request when the last one ended.

Discrete events only: between two changes of the batch nothing is computed. Users join spread over one lone residence
with residual output lengths, so that equal requests do not march in step. The count follows start order: after
`WARM_UP_TURNS` requests per user, the next `count` requests are followed to their end while the loop goes on.

A refused user comes back after `RETRY_S`: with no pause at all it would ask for ever in the same instant.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from calibrator.backends.simulated.engine import Engine, Fate, Job, Step
from calibrator.backends.simulated.parameters import EngineParameters
from calibrator.core.workload.classes import PromptFactory, TokenScale, Workload

WARM_UP_TURNS = 10
RETRY_S = 0.05
LONGEST_LEAP = 1_000_000


@dataclass(slots=True, eq=False)
class VirtualRequest(Job):
    """A job with its stamps. A duration that was not reached is infinite."""

    number: int = 0  # in start order
    stream: bool = True
    first_token_s: float = math.inf
    last_token_s: float = math.inf
    ended_s: float = math.inf
    gaps_s: list[tuple[float, int]] = field(default_factory=list)  # (gap, how many of them)

    @property
    def failed(self) -> bool:
        return self.fate is not Fate.DONE or self.ended_s == math.inf

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.arrived_s

    @property
    def e2e_s(self) -> float:
        return self.ended_s - self.arrived_s

    @property
    def tpot_s(self) -> float:
        return (self.last_token_s - self.first_token_s) / (self.made_tokens - 1) if self.made_tokens > 1 else 0.0

    def gap_s(self, quantile: float) -> float:
        """The smallest gap between tokens that at least this share of the gaps do not exceed."""
        rank = max(1, math.ceil(quantile * sum(count for _, count in self.gaps_s) - 1e-9))
        for gap_s, count in sorted(self.gaps_s):
            rank -= count
            if rank <= 0:
                return gap_s
        return 0.0


def run_level(
    parameters: EngineParameters,
    workload: Workload,
    users: int,
    count: int,
    on_end: Callable[[VirtualRequest], None],
    *,
    seed: int = 1,
    with_gaps: bool = False,
) -> float:
    """Report `count` requests, in the order in which they end. Returns the virtual seconds that they took."""
    loop = _Loop(parameters, workload, users, seed, with_gaps=with_gaps)
    return loop.run(count, on_end)


class _Loop:
    def __init__(
        self, parameters: EngineParameters, workload: Workload, users: int, seed: int, *, with_gaps: bool
    ) -> None:
        self._engine: Engine[VirtualRequest] = Engine(parameters)
        self._sizes = PromptFactory(workload, TokenScale(), seed)
        self._with_gaps = with_gaps
        self._numbers = itertools.count()
        self._now_s = 0.0
        self._refused: list[VirtualRequest] = []
        spread_s = _lone_residence_s(parameters, workload) if users > 1 else 0.0
        self._arrivals = [(spread_s * user / users, user, True) for user in range(users)]  # a heap: (when, tie, first)
        self._first_counted = WARM_UP_TURNS * users

    def run(self, count: int, on_end: Callable[[VirtualRequest], None]) -> float:
        last = self._first_counted + count
        begun_s, left = math.nan, count
        while left:
            self._admit_arrivals()
            for request in (*self._step(), *self._take_refused()):
                if self._first_counted <= request.number < last:
                    begun_s = request.arrived_s if math.isnan(begun_s) else begun_s
                    left -= 1
                    on_end(request)
        return self._now_s - begun_s

    def _admit_arrivals(self) -> None:
        while self._arrivals and self._arrivals[0][0] <= self._now_s:
            at_s, _, is_first = heapq.heappop(self._arrivals)
            self._send(at_s, is_first=is_first)

    def _send(self, at_s: float, *, is_first: bool) -> None:
        cls, prompt_tokens, output_tokens = self._sizes.next_size(residual=is_first)
        request = VirtualRequest(prompt_tokens, output_tokens, at_s, number=next(self._numbers), stream=cls.stream)
        if not self._engine.submit(request):
            self._refused.append(request)
            heapq.heappush(self._arrivals, (at_s + RETRY_S, request.number, False))

    def _take_refused(self) -> list[VirtualRequest]:
        refused, self._refused = self._refused, []
        return refused

    def _step(self) -> Sequence[VirtualRequest]:
        """One step or leap; jump to the next arrival if the engine is idle. Returns who finished."""
        next_arrival_s = self._arrivals[0][0] if self._arrivals else math.inf
        step = self._engine.start_step(self._now_s, until_s=next_arrival_s, max_repeats=LONGEST_LEAP)
        if step is None:
            self._now_s = next_arrival_s
            return ()
        first_end_s = self._now_s + step.duration_s
        self._now_s += step.duration_s * step.repeats
        end = self._engine.finish_step()
        for request in end.prefilled:
            request.first_token_s = min(request.first_token_s, self._now_s)
        if self._with_gaps:
            _note_gaps(end.decoded, first_end_s, step)
            _note_gaps(end.prefilled, self._now_s, Step(0.0, 1))
        for request in end.finished:
            request.last_token_s = request.ended_s = self._now_s
            self._send(self._now_s, is_first=False)
        return end.finished


def _note_gaps(requests: Sequence[VirtualRequest], first_end_s: float, step: Step) -> None:
    """Tokens at `first_end_s` and after each further repeat."""
    for request in requests:
        if request.last_token_s < math.inf:
            request.gaps_s.append((first_end_s - request.last_token_s, 1))
        if step.repeats > 1:
            request.gaps_s.append((step.duration_s, step.repeats - 1))
        request.last_token_s = first_end_s + step.duration_s * (step.repeats - 1)


def _lone_residence_s(parameters: EngineParameters, workload: Workload) -> float:
    """Mean time that a request stays when it is alone."""
    count = 50
    return run_level(parameters, workload, 1, count, lambda _: None) / count
