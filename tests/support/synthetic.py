"""A backend without an engine: known exceedance ratio per level, clustered violations, and a clock that only counts.

For search and verdict tests. `run_sweep` plays the stages that `next_step` asks for, at one event per request; every
level change costs a watched warm-up, as in the real stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from calibrator.core.records.history import Bounds, Evidence, History, RampCount, Stage, WarmStart
from calibrator.core.records.objective import Objective, parse_objective
from calibrator.core.search.policy import next_step
from calibrator.core.search.steps import Conclusion, Measure, Step
from calibrator.core.search.verdict import is_settled

P99 = parse_objective("ttft p99 <= 1s")  # latencies of synthetic backends are in limits: 1.0 is the limit


class LatencySource(Protocol):
    """Latencies of the next requests at a level, in limits, in completion order."""

    def sample(self, level: int, n: int) -> np.ndarray: ...

    def service(self, level: int) -> float: ...


@dataclass
class Synthetic:
    """Violations of ratio `ratio(level)` in clusters of mean size `cluster` (geometric), else latency 0.5."""

    ratio: Callable[[int], float]
    rng: np.random.Generator
    cluster: float = 1.0
    service_s: float = 1.0
    tail: Callable[[int], float] = lambda _: 0.5

    def service(self, level: int) -> float:
        return self.service_s

    def sample(self, level: int, n: int) -> np.ndarray:
        values = np.full(n, self.tail(level))
        ratio = self.ratio(level)
        start = ratio / self.cluster / max(1e-9, 1.0 - ratio + ratio / self.cluster)
        bad = 0
        for index in range(n):
            if bad == 0 and self.rng.random() < start:
                bad = int(self.rng.geometric(1.0 / self.cluster))
            if bad:
                values[index] = 2.0
                bad -= 1
        return values


def logistic(knee: float, slope: float = 8.0, allowance: float = 0.01) -> Callable[[int], float]:
    """Exceedance ratio that equals the allowance at `knee`."""
    offset = math.log(allowance / (1.0 - allowance))
    return lambda level: 1.0 / (1.0 + math.exp(-(offset + slope * math.log(level / knee))))


def cliff(knee: int, below: float = 0.0, above: float = 0.4) -> Callable[[int], float]:
    """`below` up to and including `knee`, `above` beyond."""
    return lambda level: below if level <= knee else above


@dataclass
class Player:
    """SweepScheduler `Measure`s into stages of `source`."""

    source: LatencySource
    objectives: tuple[Objective, ...] = (P99,)
    now_s: float = 0.0
    level: int = 0
    requests: int = 0
    steps: list[Step] = field(default_factory=list)
    invalidate: Callable[[int], tuple[str, ...]] = lambda _: ()

    def stage(self, history: History, measure: Measure) -> Stage:
        running = Stage(
            measure.level, self.now_s, self.now_s, self.source.service(measure.level), (Evidence(),) * self._wide, ()
        )
        ramp, failed, warm = (RampCount(),) * self._wide, False, 0
        if measure.level != self.level:
            self.level = measure.level
            ramp, failed, warm = self._warm_up(measure.level)
        running = replace(running, ramp=ramp, ramp_failed=failed, requests=warm, ended_at_s=self.now_s)
        chunk = 8 if measure.level < 32 else 16 if measure.level < 64 else 32
        seen: list[float] = []
        while not is_settled(self._with(history, running), measure):
            values, times_s = self._take(measure.level, chunk)
            seen.extend(values)
            running = replace(
                running,
                evidence=tuple(
                    Evidence(
                        part.bits + "".join("1" if value > limit else "0" for value in values),
                        part.violation_at_s
                        + tuple(at_s for at_s, value in zip(times_s, values, strict=True) if value > limit),
                    )
                    for part, limit in zip(running.evidence, self._limits, strict=True)
                ),
                requests=running.requests + chunk,
                ended_at_s=self.now_s,
                tail_ratio=tuple(_tail(seen) / limit for limit in self._limits),
            )
        audit = replace(running.audit, reasons=self.invalidate(measure.level))
        return replace(running, audit=audit)

    @property
    def _limits(self) -> tuple[float, ...]:
        return tuple(objective.limit_s for objective in self.objectives)

    @property
    def _wide(self) -> int:
        return len(self.objectives)

    @staticmethod
    def _with(history: History, running: Stage) -> History:
        return replace(history, stages=(*history.stages, running))

    def _take(self, level: int, n: int) -> tuple[list[float], list[float]]:
        each_s = self.source.service(level) / level
        times_s = [self.now_s + each_s * (index + 1) for index in range(n)]
        self.now_s = times_s[-1]
        self.requests += n
        return [float(value) for value in self.source.sample(level, n)], times_s

    def _warm_up(self, level: int) -> tuple[tuple[RampCount, ...], bool, int]:
        wanted, done = max(level, 4), 0
        exceeded = [0] * self._wide
        while done < wanted:
            n = min(16, wanted - done)
            values, _ = self._take(level, n)
            done += n
            for index, limit in enumerate(self._limits):
                exceeded[index] += sum(value > limit for value in values)
            if any(count >= 4 and count >= 0.25 * done for count in exceeded):
                return tuple(RampCount(done, count) for count in exceeded), True, done
        return tuple(RampCount(done, count) for count in exceeded), False, done


def _tail(values: Sequence[float]) -> float:
    if len(values) >= 300:
        return float(np.quantile(values, 0.99))
    q75, q95 = (float(q) for q in np.quantile(values, [0.75, 0.95]))
    return float(q95 * (q95 / max(q75, 1e-9)) ** 0.7)


def run_sweep(
    player: Player, bounds: Bounds | None = None, most_steps: int = 400, warm: WarmStart | None = None
) -> tuple[Conclusion, History]:
    """Play to the conclusion. Fails if the search does not end."""
    history = History(player.objectives, warm=warm)
    for _ in range(most_steps):
        step = next_step(history, bounds or Bounds())
        player.steps.append(step)
        if isinstance(step, Conclusion):
            return step, history
        history = replace(history, stages=(*history.stages, player.stage(history, step)))
    raise AssertionError(f"no conclusion after {most_steps} steps; last: {player.steps[-1]}")
