"""An engine's counters and histograms as live users move them: a page for the fakes around the supervisor."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from calibrator.core.records.server_load import Histogram, ServerLoad
from calibrator.core.workload.drift import in_buckets

TOKEN_BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, math.inf)


def lognormal(median: int, sigma: float) -> Callable[[random.Random], int]:
    return lambda draws: max(1, min(8000, round(median * math.exp(sigma * draws.gauss(0.0, 1.0)))))


@dataclass
class Counted:
    """By bucket, not cumulative."""

    prompts: list[float] = field(default_factory=lambda: [0.0] * len(TOKEN_BOUNDS))
    outputs: list[float] = field(default_factory=lambda: [0.0] * len(TOKEN_BOUNDS))
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0

    def add(self, prompt: int, output: int) -> None:
        self.prompts[bisect_left(TOKEN_BOUNDS, prompt)] += 1.0
        self.outputs[bisect_left(TOKEN_BOUNDS, output)] += 1.0
        self.prompt_tokens += prompt
        self.output_tokens += output


@dataclass
class Users:
    """`served(n)` ends n requests; `load()` is the page then."""

    prompt: Callable[[random.Random], int] = field(default_factory=lambda: lognormal(200, 0.7))
    output: Callable[[random.Random], int] = field(default_factory=lambda: lognormal(60, 0.5))
    hit_ratio: float = 0.3
    in_flight: float = 4.0
    process_start: str | None = "1"
    version: str | None = None
    prompts: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    hits: float = 0.0
    draws: random.Random = field(default_factory=lambda: random.Random(3))
    _counted: Counted = field(default_factory=Counted)

    def served(self, requests: int) -> None:
        for _ in range(requests):
            prompt, output = self.prompt(self.draws), self.output(self.draws)
            self.prompts.append(prompt)
            self.outputs.append(output)
            self.hits += self.hit_ratio * prompt
            self._counted.add(prompt, output)

    def restart(self, start: str | None) -> None:
        self.prompts, self.outputs, self.hits, self.process_start = [], [], 0.0, start
        self._counted = Counted()

    def load(self) -> ServerLoad:
        counted = self._counted
        return ServerLoad(
            "vllm",
            running_requests=self.in_flight,
            waiting_requests=0.0,
            process_start=self.process_start,
            finished_total=float(len(self.prompts)),
            prompt_tokens_total=counted.prompt_tokens,
            output_tokens_total=counted.output_tokens,
            prefix_queried_tokens_total=counted.prompt_tokens,
            prefix_hit_tokens_total=self.hits,
            prompt_tokens=Histogram(TOKEN_BOUNDS, tuple(accumulate(counted.prompts))),
            output_tokens=Histogram(TOKEN_BOUNDS, tuple(accumulate(counted.outputs))),
            version=self.version,
        )


def token_histogram(lengths: Sequence[int]) -> Histogram:
    return in_buckets(lengths, TOKEN_BOUNDS)
