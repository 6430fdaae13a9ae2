"""The burst: N simultaneous arrivals after idle, at the capacity, against the steady state at the same level.

    idle ─▶ N users start at once, one request each ─▶ all ended ─▶ idle ─▶ ...

A closed loop spreads its requests over time; a gateway that has just restarted, or users after a page load, do not.
By default the burst is reported beside the capacity and decides nothing: bursts that queue in front of the cap are
shaped by the gateway, and the objectives are those of the steady state. `enforce` lowers the capacity until bursts
hold as well (`core.search.burst`).

Bounded: `SAMPLES` requests or `MOST_BURSTS` bursts to report, `TEST_SAMPLES` to judge a level, and `LIMIT_S` in all for
each level. The bursts end early, with what they have, if the backend does not become idle in time or the generator
breaks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from calibrator.core.live.organic_load import probes_for
from calibrator.core.records.level_accumulator import outcome_of
from calibrator.core.records.objective import Objective
from calibrator.core.records.sample import Label, Phase, RequestOutcome, Sample
from calibrator.core.records.sweep import BurstReport, LevelReport, VerdictKind
from calibrator.core.search.burst import (
    FIRST_VISIT,
    BurstBits,
    burst_bits,
    burst_verdict,
    limited,
    passes_by_point_estimate,
    step_down,
    unlimited,
)
from calibrator.core.search.burst_mode import BurstMode
from calibrator.core.search.steps import Conclusion
from calibrator.core.stats.quantile import summarise
from calibrator.ports.clock import Clock
from calibrator.ports.load import Batch, LoadGenerator

SAMPLES = 120
TEST_SAMPLES = 400  # of a P99, to judge a level; some 200 without a violation pass
LEAST_BURSTS, MOST_BURSTS = 3, 20
LIMIT_S = 120.0
IDLE_S = 1.0
POLL_S = 0.05


@dataclass(slots=True)
class Burster:
    """`measure` once, after the search."""

    load: LoadGenerator
    clock: Clock
    objectives: Sequence[Objective]
    on_batch: Callable[[Batch], None]
    organic: Callable[[], float] = float  # live requests in flight: a burst fills the level up
    report: BurstReport | None = None  # of the last level; None: nothing of a burst was seen
    requests: int = 0  # of all levels
    _label: Label = field(default_factory=lambda: Label(FIRST_VISIT, Phase.RAMP))
    _is_broken: bool = False

    async def follow(
        self, found: Conclusion, mode: BurstMode, levels: Sequence[LevelReport], lowest: int
    ) -> Conclusion:
        """The conclusion after the bursts. `levels`: what the search saw, to stand beside them."""
        capacity = found.capacity
        if mode is BurstMode.OFF or capacity is None or capacity.estimate < 1:
            return found
        steady = {report.concurrency: report for report in levels}
        level: int | None = capacity.estimate
        while level is not None and not self._is_broken:
            bursts = await self.measure(level, steady.get(level), judged=mode is BurstMode.ENFORCE)
            if mode is BurstMode.REPORT:
                return found
            if not bursts:
                break
            verdict = burst_verdict(self.objectives, bursts)
            proven = verdict is VerdictKind.WITHIN
            if proven or (verdict is VerdictKind.INCONCLUSIVE and passes_by_point_estimate(self.objectives, bursts)):
                return limited(found, capacity, level, proven=proven)
            level = step_down(level, lowest)
        return unlimited(found) if level is not None else limited(found, capacity, None, proven=True)

    async def measure(self, level: int, steady: LevelReport | None, *, judged: bool = False) -> Sequence[BurstBits]:
        """Bursts of one level: a few, or if `judged` until the test has decided. `steady`: the search's, at `level`."""
        ends_at_s = self.clock.monotonic() + LIMIT_S
        strictest = min(objective.allowance for objective in self.objectives)
        wanted = TEST_SAMPLES * 0.01 / strictest if judged else SAMPLES
        most = max(LEAST_BURSTS, math.ceil(wanted / level))
        samples: list[Sample] = []
        bursts: list[BurstBits] = []
        for index in range(most if judged else min(MOST_BURSTS, most)):
            if not await self._become_idle(ends_at_s):
                break
            await self.clock.sleep(IDLE_S)
            users = probes_for(level, self.organic())
            one = await self._one(users, Label(FIRST_VISIT + index, Phase.COUNTED), ends_at_s)
            samples += one
            if self._is_broken:
                break
            bursts.append(burst_bits(self.objectives, one))
            if judged and burst_verdict(self.objectives, bursts) is not VerdictKind.INCONCLUSIVE:
                break
        await self._become_idle(ends_at_s)
        self.requests += len(samples)
        self.report = self._report(level, len(bursts), samples, steady) if samples else None
        return bursts

    async def _one(self, users: int, label: Label, ends_at_s: float) -> list[Sample]:
        """The first `users` requests of this label; their users leave after them."""
        self._label = label
        self.load.aim(users, label, 0.0)
        ours: set[int] = set()
        ended: list[Sample] = []
        is_leaving = False
        while self.clock.monotonic() < ends_at_s and not self._is_broken:
            batch = await self._poll()
            ours.update([start.request_id for start in batch.started if start.label == label][: users - len(ours)])
            ended += [sample for sample in batch.ended if sample.request_id in ours]
            if batch.all_started and not is_leaving:
                is_leaving = True
                self.load.aim(0, label, 0.0)
            if len(ended) >= users:
                break
        return ended

    async def _become_idle(self, ends_at_s: float) -> bool:
        self.load.aim(0, self._label, 0.0)
        while self.clock.monotonic() < ends_at_s and not self._is_broken:
            batch = await self._poll()
            if batch.in_flight == 0 and batch.users == 0:
                return True
        return False

    async def _poll(self) -> Batch:
        await self.clock.sleep(POLL_S)
        batch = await self.load.poll()
        self._is_broken = self._is_broken or bool(batch.broken)
        self.on_batch(batch)
        return batch

    def _report(self, level: int, bursts: int, samples: Sequence[Sample], steady: LevelReport | None) -> BurstReport:
        first = self.objectives[0]
        values = [sample.latency_s(first.metric, first.quantile) for sample in samples if not sample.cancelled]
        bad = (RequestOutcome.VIOLATION, RequestOutcome.FAILED)
        return BurstReport(
            concurrency=level,
            bursts=bursts,
            n=len(samples),
            exceedances=sum(outcome_of(sample, self.objectives) in bad for sample in samples),
            metric=first.metric.value,
            burst=summarise([math.inf if value is None else value for value in values]),
            steady=None if steady is None else getattr(steady, first.metric.value),
        )
