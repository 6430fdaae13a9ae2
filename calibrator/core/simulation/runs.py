"""Runs the search against synthetic backends on simulated time, and accounts for its cost.

    draw(seed) ─▶ SimulatedSweep ─▶ next_step ─▶ Measure ─▶ SimulatedSweep.stage ─▶ Stage ─▶ history ─┐
                             ▲  └▶ Conclusion ─▶ Result (against the truth)                    │
                             └─────────────────────────────────────────────────────────────────┘

**Requests** are counted when they are sent: the first request of each added user, one wave for the warm-up (every user
turns over once), and the samples. So requests that are not measured count as well: those in flight when a stage ends
belong to the next warm-up, those of leaving users and of the last level are discarded.
**Time**: level N completes N requests per residence. **Harm**: what happens at levels above the true capacity, and at
levels whose true exceedance ratio is above 5 %.

The baseline is common practice: doubling from 1, then bisection to 5 %, 300 requests per level, the empirical P99.

A `Result` compares a sweep with the truth at its end; `core.simulation.figures` tabulates results.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from calibrator.core.records.history import Bounds, Evidence, History, RampCount, Stage, WarmStart
from calibrator.core.records.level_accumulator import upper_quantile
from calibrator.core.records.objective import Objective, parse_objective
from calibrator.core.records.sweep import Grade
from calibrator.core.search.policy import next_step
from calibrator.core.search.recalibration import probed_above, warm_start
from calibrator.core.search.state import must_leave
from calibrator.core.search.steps import Conclusion, Measure
from calibrator.core.search.verdict import has_failed_warm_up, is_settled
from calibrator.core.simulation.backends import MAX_LEVEL, Family, SyntheticBackend, Truth, draw
from calibrator.core.stats.autocorrelation import correlation_time

OBJECTIVES: tuple[Objective, ...] = (parse_objective("ttft p99 <= 1s"),)  # latencies are in limits
HARD_RATIO = 0.05
FALLS_AFTER_REQUESTS = 500
FALLS_TO = 0.75
BASELINE_REQUESTS = 300
BASELINE_RATIO = 1.05
UNSAFE_RATIO = 1.1
NEAR_RATIO = 0.15
INDISTINCT = 1e-9  # divergence below which no number of requests tells two levels apart
MOST_STEPS = 1000  # of one sweep; its budgets end it long before


class Stress(StrEnum):
    NONE = "none"
    CORRELATION = "correlation"  # 0.9 between the requests of a stall
    FALLING = "falling"  # the capacity falls by a quarter during the sweep


@dataclass(slots=True)
class CostLedger:
    """What a sweep did to its backend."""

    requests: int = 0
    wall_s: float = 0.0
    requests_above: int = 0
    above_s: float = 0.0
    hard_s: float = 0.0
    highest_level: int = 0


@dataclass(slots=True)
class SimulatedSweep:
    """A sweep of a backend on simulated time. `falls`: the capacity is still to fall (`Stress.FALLING`)."""

    backend: SyntheticBackend
    falls: bool = False
    level: int = 0
    ledger: CostLedger = field(default_factory=CostLedger)
    latencies: dict[int, list[float]] = field(default_factory=dict)  # by level, of samples

    @property
    def truth(self) -> Truth:
        return self.backend.truth

    def go_to(self, level: int) -> bool:
        """Send the first requests of added users; returns whether a warm-up is needed."""
        if level == self.level:
            return False
        self._send(level, max(0, level - self.level))
        self.level = level
        self.ledger.highest_level = max(self.ledger.highest_level, level)
        return True

    def take(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Latencies of the next `n` requests, in limits, and when they ended."""
        each_s = self.truth.residence_s(self.level) / self.level
        times_s = self.ledger.wall_s + each_s * np.arange(1, n + 1)
        values = self.backend.sample(self.level, n)
        self._send(self.level, n)
        self._pass(n * each_s)
        if self.falls and self.ledger.requests >= FALLS_AFTER_REQUESTS:
            self.falls = False
            self.backend.truth = self.truth.moved(FALLS_TO)
        return values, times_s

    def _send(self, level: int, n: int) -> None:
        self.ledger.requests += n
        if level > self.truth.capacity:
            self.ledger.requests_above += n

    def _pass(self, seconds: float) -> None:
        ledger = self.ledger
        ledger.wall_s += seconds
        if self.level > self.truth.capacity:
            ledger.above_s += seconds
        if self.truth.exceedance_ratio(self.level) > HARD_RATIO:
            ledger.hard_s += seconds

    # ------------------------------------------------------------------------------------------------------- stage
    def stage(self, history: History, measure: Measure, bounds: Bounds) -> Stage:
        """Like a real stage: a watched warm-up after a change of level, then samples until the test is settled."""
        sent, started_s = self.ledger.requests, self.ledger.wall_s
        is_new = self.go_to(measure.level)
        running = Stage(
            measure.level,
            started_s,
            started_s,
            self.truth.residence_s(measure.level),
            (Evidence(),) * len(history.objectives),
            (RampCount(),) * len(history.objectives),
        )

        def may_end() -> bool:
            seen = replace(history, stages=(*history.stages, running))
            return must_leave(seen, bounds) or is_settled(seen, measure)

        left = measure.level if is_new else 0
        while left and not may_end():
            n = min(_chunk(measure.level), left)
            left -= n
            running = replace(self._watched(running, n), ended_at_s=self.ledger.wall_s)
        latencies = self.latencies.setdefault(measure.level, [])
        while not may_end():
            values, times_s = self.take(_chunk(measure.level))
            latencies.extend(values)
            running = replace(
                running,
                evidence=tuple(_longer(part, values > 1.0, times_s) for part in running.evidence),
                ended_at_s=self.ledger.wall_s,
            )
        return replace(
            running,
            requests=self.ledger.requests - sent,
            tail_ratio=(upper_quantile(latencies, 1.0),) * len(running.ramp),
            correlation=(correlation_time(latencies),) * len(running.ramp),
        )

    def _watched(self, running: Stage, n: int) -> Stage:
        exceeded = int((self.take(n)[0] > 1.0).sum())
        ramp = tuple(RampCount(part.n + n, part.exceedances + exceeded) for part in running.ramp)
        return replace(running, ramp=ramp, ramp_failed=has_failed_warm_up(OBJECTIVES, ramp))


def _chunk(level: int) -> int:
    """Requests between two evaluations of the test."""
    return 8 if level < 32 else 16 if level < 64 else 32


def _longer(evidence: Evidence, exceeded: np.ndarray, times_s: np.ndarray) -> Evidence:
    bits = "".join("1" if each else "0" for each in exceeded)
    return Evidence(evidence.bits + bits, evidence.violation_at_s + tuple(times_s[exceeded].tolist()))


def run(simulated: SimulatedSweep, bounds: Bounds, warm: WarmStart | None = None) -> tuple[Conclusion, History]:
    """Run until the policy concludes."""
    history = History(OBJECTIVES, warm=warm)
    for _ in range(MOST_STEPS):
        step = next_step(history, bounds)
        if isinstance(step, Conclusion):
            return step, history
        history = replace(history, stages=(*history.stages, simulated.stage(history, step, bounds)))
    raise AssertionError(f"no conclusion after {MOST_STEPS} stages")


def run_baseline(simulated: SimulatedSweep, highest: int) -> int:
    """Doubling and bisection; returns the capacity."""

    def holds(level: int) -> bool:
        if simulated.go_to(level):
            simulated.take(level)
        return bool(np.quantile(simulated.take(BASELINE_REQUESTS)[0], OBJECTIVES[0].quantile) <= 1.0)

    good, bad, level = 0, 0, 1
    while not bad:
        if not holds(level):
            bad = level
        elif level >= highest:
            return level
        else:
            good, level = level, min(highest, 2 * level)
    while bad - good > 1 and (good == 0 or bad / good > BASELINE_RATIO):
        middle = min(max(math.floor(math.sqrt(max(good, 1) * bad)), good + 1), bad - 1)
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return good


# -------------------------------------------------------------------------------------------------------------- results
@dataclass(frozen=True, slots=True)
class Result:
    """One sweep compared with the truth at its end."""

    policy: str
    family: Family
    true_capacity: int
    capacity: int
    exceedance_ratio: float  # true, at the capacity found; 0 if none was
    bound_requests: float  # no policy needs fewer on average to be within 15 % in 95 of 100 sweeps
    is_certified: bool
    ledger: CostLedger

    @property
    def error_ratio(self) -> float:
        return abs(self.capacity - self.true_capacity) / max(self.true_capacity, 1)

    @property
    def is_near(self) -> bool:
        return abs(self.capacity - self.true_capacity) <= max(1.0, NEAR_RATIO * self.true_capacity)

    @property
    def is_unsafe(self) -> bool:
        return self.capacity > UNSAFE_RATIO * self.true_capacity and self.capacity > self.true_capacity


def _result(policy: str, simulated: SimulatedSweep, capacity: int, *, is_certified: bool) -> Result:
    truth = simulated.truth
    exceedance = truth.exceedance_ratio(capacity) if capacity else 0.0
    bound = bound_requests(truth, Bounds())
    return Result(policy, truth.family, truth.capacity, capacity, exceedance, bound, is_certified, simulated.ledger)


def bound_requests(truth: Truth, bounds: Bounds) -> float:
    """Wald's inequality for telling p(0.85 N*) from p(1.15 N*) on both sides, plus the two warm-ups.

    E[n] >= (1 - 2b) ln((1 - b)/b) / KL at error b = 5 %, for independent requests and known p on both sides; at most
    the request budget.
    """
    low, high = (min(MAX_LEVEL, max(1, round(truth.capacity * side))) for side in (1 - NEAR_RATIO, 1 + NEAR_RATIO))
    high = min(MAX_LEVEL, max(high, low + 1))
    p, q = (min(truth.exceedance_ratio(level), 1.0 - INDISTINCT) for level in (low, high))
    most = float(bounds.requests + bounds.requests_per_level * truth.capacity)
    distances = _divergence(p, q), _divergence(q, p)
    if min(distances) < INDISTINCT:
        return most
    needed = 0.9 * math.log(19.0) * sum(1.0 / distance for distance in distances)
    return min(most, needed + low + 2 * high)


def _divergence(p: float, q: float) -> float:
    """Kullback-Leibler divergence of two Bernoulli distributions."""
    return p * math.log(p / q) + (1.0 - p) * math.log((1.0 - p) / (1.0 - q))


COLD = ("calibrator", "doubling and bisection")


def simulate_cold(seed: int, index: int, families: tuple[Family, ...], stress: Stress, bounds: Bounds) -> list[Result]:
    """Each policy on one backend, from the same random state."""
    results = []
    for policy in COLD:
        rng = np.random.default_rng([seed, index])
        truth = draw(rng, families, 0.9 if stress is Stress.CORRELATION else None)
        simulated = SimulatedSweep(SyntheticBackend(truth, rng), falls=stress is Stress.FALLING)
        if policy == COLD[0]:
            conclusion, _ = run(simulated, bounds)
            results.append(_concluded(policy, simulated, conclusion))
        else:
            results.append(_result(policy, simulated, run_baseline(simulated, bounds.max_level), is_certified=False))
    return results


RECALIBRATED = ("calibrator, warm", "doubling and bisection, again")
DRIFTING_BETWEEN = (1.2, 500.0)  # capacities, so that a drifting backend stays measurable


def simulate_recalibrations(
    seed: int, index: int, families: tuple[Family, ...], count: int, bounds: Bounds
) -> list[Result]:
    """A cold sweep (not among the results), then `count` sweeps of the backend, which drifts in between."""
    rng, drift = np.random.default_rng([seed, index, 1]), np.random.default_rng([seed, index, 2])
    truth = _kept_measurable(draw(rng, families))
    conclusion, history = run(SimulatedSweep(SyntheticBackend(truth, rng)), bounds)
    sweeps_since_upward_probe = 0
    results = []
    for _ in range(count):
        truth = _kept_measurable(truth.moved(_drift(drift)))
        simulated = SimulatedSweep(SyntheticBackend(truth, rng))
        published = 0 if conclusion.capacity is None else conclusion.capacity.estimate
        warm = warm_start(history, bounds, published, sweeps_since_upward_probe) if published else None
        conclusion, history = run(simulated, bounds, warm)
        sweeps_since_upward_probe = 0 if probed_above(history) else sweeps_since_upward_probe + 1
        results.append(_concluded(RECALIBRATED[0], simulated, conclusion))
        simulated = SimulatedSweep(SyntheticBackend(truth, np.random.default_rng([seed, index, 3])))
        capacity = run_baseline(simulated, bounds.max_level)
        results.append(_result(RECALIBRATED[1], simulated, capacity, is_certified=False))
    return results


def _drift(rng: np.random.Generator) -> float:
    """Small in seven cases of ten, larger in two, a jump in one."""
    kind = rng.random()
    if kind < 0.7:
        return float(np.exp(rng.normal(0.0, 0.05)))
    return float(np.exp(rng.normal(0.0, 0.2)) if kind < 0.9 else rng.choice([0.5, 0.7, 1.4, 2.0]))


def _kept_measurable(truth: Truth) -> Truth:
    low, high = DRIFTING_BETWEEN
    return replace(truth, knee=min(max(truth.knee, low), high))


def _concluded(policy: str, simulated: SimulatedSweep, conclusion: Conclusion) -> Result:
    capacity = 0 if conclusion.capacity is None else conclusion.capacity.estimate
    return _result(policy, simulated, capacity, is_certified=conclusion.grade not in (Grade.PROVISIONAL, None))
