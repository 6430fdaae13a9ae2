"""Continuous batching, one step at a time: no I/O, no clock, no event loop.

Each iteration of a real engine runs one batch. What the batch holds decides how long it takes, and nothing else does:

    step_s = decode_base_s + decode_per_request_s * (requests decoding)
           + prefill_fixed_s * (prompts begun) + prefill_per_token_s * (prompt tokens in this step)     [+ a stall]

- First in, first out: a request runs when a slot and KV memory for its whole prompt are free.
- Decoding requests come first; prompts share the rest of the step, up to `prefill_chunk_tokens` (chunked prefill).
- Each decoding request gets one token per step: a long prompt in the batch delays everybody's next token.
- The first token comes at the end of the step that finishes the prompt.
- KV memory grows by a token per request and step. When it is full, the youngest request is preempted: it goes back to
  the head of the queue, and its prompt and its tokens so far are computed again (recompute preemption).
- A request that arrives while a step runs, or at the moment at which one starts, waits for the next; an idle engine
  starts at once with the first that comes. A closed loop's next request therefore always misses one step, as a round
  trip over a network makes it do.

These are the rules of vLLM's V1 scheduler, simplified. Concurrency itself appears nowhere. KV memory is counted in
tokens (no blocks), cached prefixes cost no memory of their own, and sampling, detokenization and network cost nothing.

The caller owns time: `start_step(now_s)` composes a batch and says how long it takes, `finish_step()` at its end says
who got a token. With `max_repeats` above one, identical decode steps (nothing to prefill, nobody finishes, memory
suffices) are taken in one leap; that changes no number, only the work (tests compare).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from calibrator.backends.simulated.parameters import EngineParameters, Faults
from calibrator.backends.simulated.prefix_cache import PrefixCache


class Fate(StrEnum):
    """How a request ends. All but `done` are faults on demand; the engine ends these requests early."""

    DONE = "done"
    TRUNCATED = "truncated"  # the stream ends in order, but without a finish_reason
    RESET = "reset"  # the connection breaks
    HANGS = "hangs"  # silence: the stream stays open and nothing comes any more


@dataclass(slots=True, eq=False)
class Job:
    """One request inside the engine; identity is the object's."""

    prompt_tokens: int
    output_tokens: int  # what the engine will make
    arrived_s: float
    blocks: Sequence[int] = ()  # hashes of the prompt's leading blocks, for the prefix cache
    fate: Fate = Fate.DONE
    cached_tokens: int = 0
    to_prefill_tokens: int = 0  # of the prompt, and after a preemption of the own tokens
    kv_tokens: int = 0
    made_tokens: int = 0
    preemptions: int = 0

    @property
    def is_done(self) -> bool:
        return self.made_tokens >= self.output_tokens


AnyJob = TypeVar("AnyJob", bound=Job)


@dataclass(frozen=True, slots=True)
class Step:
    """`repeats` identical iterations of `duration_s` each."""

    duration_s: float
    repeats: int


@dataclass(frozen=True, slots=True)
class StepEnd(Generic[AnyJob]):
    """Who got a token: `decoded` one in each repeat, `prefilled` one at the end. Both lists hold finished jobs too."""

    decoded: Sequence[AnyJob]
    prefilled: Sequence[AnyJob]
    finished: Sequence[AnyJob]


@dataclass(slots=True)
class Counters:
    """Since the engine started."""

    preemptions: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0


@dataclass(slots=True)
class Engine(Generic[AnyJob]):
    """`submit` and `cancel` at any time; `start_step` and `finish_step` in turn."""

    parameters: EngineParameters
    faults: Faults = field(init=False)
    counters: Counters = field(default_factory=Counters)
    cache: PrefixCache = field(init=False)
    kv_tokens: int = 0  # in use
    _waiting: deque[AnyJob] = field(default_factory=deque)
    _prefilling: list[AnyJob] = field(default_factory=list)  # in order of admission, as `_decoding`
    _decoding: list[AnyJob] = field(default_factory=list)
    _step: Step | None = None
    _ready: list[AnyJob] = field(default_factory=list)  # prompts that the running step finishes
    _random: random.Random = field(init=False)
    _stall_s: float = 0.0  # to be spent in the next step

    def __post_init__(self) -> None:
        self.faults = self.parameters.faults
        self.cache = PrefixCache(self.parameters.prefix_cache_tokens)
        self._random = random.Random(self.parameters.seed)

    # -------------------------------------------------------------------------------------------- readings
    @property
    def running(self) -> int:
        return len(self._prefilling) + len(self._decoding)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def kv_usage_ratio(self) -> float:
        return self.kv_tokens / self.parameters.kv_capacity_tokens

    # ------------------------------------------------------------------------------------------ from outside
    def submit(self, job: AnyJob) -> bool:
        """False: refused, nothing remembered. The job must fit the context (`EngineParameters.fits`)."""
        full = self.parameters.max_queue is not None and len(self._waiting) >= self.parameters.max_queue
        if full or self._happens(self.faults.refuse_ratio):
            self.counters.refused += 1
            return False
        self._draw_fate(job)
        job.to_prefill_tokens = job.prompt_tokens
        self._waiting.append(job)
        return True

    def cancel(self, job: AnyJob) -> None:
        """The client left: slot, queue place and memory are free at once. Unknown and ended jobs are no error."""
        for queue in (self._waiting, self._prefilling, self._decoding):
            if job in queue:
                queue.remove(job)
                self._release(job)

    def stall(self, seconds: float) -> None:
        """The next step takes this much longer."""
        self._stall_s += seconds

    # -------------------------------------------------------------------------------------------------- steps
    def start_step(self, now_s: float, *, until_s: float = float("inf"), max_repeats: int = 1) -> Step | None:
        """Compose the next batch; None: nothing to do. A leap ends with the step in which `until_s` falls."""
        preempted = self._make_room()
        begun, tokens = self._prefill(now_s, may_admit=not preempted)
        if not self._decoding and not self._prefilling:
            return None
        p = self.parameters
        duration_s = (
            p.decode_base_s
            + p.decode_per_request_s * len(self._decoding)
            + p.prefill_fixed_s * begun
            + p.prefill_per_token_s * tokens
        )
        repeats = 1
        if max_repeats > 1 and not tokens:
            repeats = self._leap(duration_s, until_s - now_s, max_repeats)
        self._step = Step(duration_s + self._draw_stall(), repeats)
        self.counters.steps += repeats
        return self._step

    def finish_step(self) -> StepEnd[AnyJob]:
        """The step's end; jobs cancelled meanwhile got nothing."""
        step, self._step = self._step, None
        if step is None:
            raise RuntimeError("finish_step without start_step")
        decoded = self._decoding.copy()
        prefilled = [job for job in self._ready if not job.to_prefill_tokens and job in self._prefilling]
        for job in decoded:
            job.made_tokens += step.repeats
            job.kv_tokens += step.repeats
        for job in prefilled:
            self._prefilling.remove(job)
            self._decoding.append(job)
            job.made_tokens += 1
            job.kv_tokens += 1
            self.counters.prompt_tokens += job.prompt_tokens if job.made_tokens == 1 else 0
            self.cache.insert(job.blocks)
        made = len(decoded) * step.repeats + len(prefilled)
        self.kv_tokens += made
        self.counters.generated_tokens += made
        finished = [job for job in self._decoding if job.made_tokens >= job.output_tokens]
        if finished:
            self._decoding = [job for job in self._decoding if job.made_tokens < job.output_tokens]
            for job in finished:
                self._release(job)
        return StepEnd(decoded, prefilled, finished)

    # ------------------------------------------------------------------------------------------------ inside
    def _make_room(self) -> bool:
        """Each decoding request needs one more token of memory. Returns whether somebody was preempted."""
        preempted = False
        while self.kv_tokens + len(self._decoding) > self.parameters.kv_capacity_tokens:
            victim = (self._prefilling or self._decoding).pop()  # the youngest: prompts were admitted last
            self._release(victim)
            victim.to_prefill_tokens = victim.prompt_tokens + victim.made_tokens
            victim.preemptions += 1
            self.counters.preemptions += 1
            self._waiting.appendleft(victim)
            preempted = True
        return preempted

    def _prefill(self, now_s: float, *, may_admit: bool) -> tuple[int, int]:
        """Deal this step's prompt tokens, first in, first out. Returns (prompts begun, prompt tokens)."""
        begun = tokens = 0
        self._ready = []
        budget = self.parameters.prefill_chunk_tokens - len(self._decoding)
        for job in self._prefilling:
            tokens += self._deal(job, budget - tokens)
        while may_admit and tokens < budget and self._may_admit(now_s):
            job = self._waiting.popleft()
            self._admit(job)
            begun += 1
            tokens += self._deal(job, budget - tokens)
        return begun, tokens

    def _deal(self, job: AnyJob, budget_tokens: int) -> int:
        taken = max(0, min(job.to_prefill_tokens, budget_tokens))
        job.to_prefill_tokens -= taken
        if taken and not job.to_prefill_tokens:
            self._ready.append(job)
        return taken

    def _may_admit(self, now_s: float) -> bool:
        if not self._waiting or self.running >= self.parameters.slots:
            return False
        job = self._waiting[0]
        if job.arrived_s >= now_s and self.running:
            return False
        wanted = job.prompt_tokens + job.made_tokens + len(self._decoding) + 1
        return self.kv_tokens + wanted <= self.parameters.kv_capacity_tokens

    def _admit(self, job: AnyJob) -> None:
        if not job.preemptions:  # memory was full then, so its blocks are gone
            # At least one token is computed even if the whole prompt is cached: its logits are needed.
            job.cached_tokens = min(self.cache.match(job.blocks), job.to_prefill_tokens - 1)
            job.to_prefill_tokens -= job.cached_tokens
        job.kv_tokens = job.prompt_tokens + job.made_tokens
        self.kv_tokens += job.kv_tokens
        self._prefilling.append(job)

    def _release(self, job: AnyJob) -> None:
        self.kv_tokens -= job.kv_tokens
        job.kv_tokens = 0

    def _leap(self, step_s: float, left_s: float, max_repeats: int) -> int:
        """How many of these steps are alike for sure."""
        if self._prefilling or self.faults.stall_ratio or self._stall_s:
            return 1
        if self._waiting and self.running < self.parameters.slots:
            return 1
        batch = len(self._decoding)
        room = (self.parameters.kv_capacity_tokens - self.kv_tokens) // batch
        soonest = min(job.output_tokens - job.made_tokens for job in self._decoding)
        alike = min(room, max_repeats, soonest)
        if alike * step_s > left_s:
            alike = min(alike, int(left_s / step_s) + 1)
        return max(1, alike)

    def _draw_fate(self, job: AnyJob) -> None:
        draw = self._random.random() if self.faults.cuts_streams else 1.0
        for fate, ratio in (
            (Fate.TRUNCATED, self.faults.truncate_ratio),
            (Fate.RESET, self.faults.reset_ratio),
            (Fate.HANGS, self.faults.hang_ratio),
        ):
            if draw < ratio:
                job.fate = fate
                job.output_tokens = self._random.randint(1, max(1, job.output_tokens - 1))
                return
            draw -= ratio

    def _draw_stall(self) -> float:
        stall_s, self._stall_s = self._stall_s, 0.0
        return stall_s + (self.faults.stall_s if self._happens(self.faults.stall_ratio) else 0.0)

    def _happens(self, ratio: float) -> bool:
        return ratio > 0.0 and self._random.random() < ratio
