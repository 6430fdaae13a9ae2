"""One stage: hold a level, watch its warm-up, count until the test is settled.

    aim(level) ─▶ RAMP ── every user has turned over ─▶ COUNTED ── settled | ramp failed | limit hit ─▶ Stage

Users are added over one residence, and one more for each doubling: the residence may grow in proportion to the level,
and first requests, being residual, are followed by another after half of it. If users were added within one residence
of the level below, a doubling to just under the capacity would itself cause an overload, which the watched warm-up
would attribute to the level: for a prefill-limited engine it refuted a level that holds in one of three cases. A slower
ramp costs more than it saves: with two more residences, engines limited by their slots need a tenth more requests and
find less.

The warm-up ends when each user has completed one request, at the latest after three P90 residences of the level before,
so that long answers do not prolong it (users start with residual lengths). Every `POLL_S` the generator is polled, the
events are accumulated, and the running stage is judged by pure functions; this file only adds the waiting.

A level is the total on the replica: with live traffic fewer probes are held, and their number is adjusted after each
scrape (`core.live.organic_load`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from calibrator.core.live.organic_load import is_on_level, is_suspect, probes_for, steered
from calibrator.core.records.history import Stage
from calibrator.core.records.level_accumulator import LevelAccumulator
from calibrator.core.records.objective import Objective
from calibrator.core.records.sample import FailureKind, Label, Phase, Sample
from calibrator.core.records.server_load import ServerLoad, ServerLoadPeak
from calibrator.core.search.steps import Measure, Test
from calibrator.core.search.verdict import has_failed_warm_up
from calibrator.errors import CalibratorError, ConfigurationError, UnreachableError
from calibrator.ports.clock import Clock
from calibrator.ports.load import Batch, LoadGenerator
from calibrator.service.sweep.generator_audit import GeneratorAudit
from calibrator.service.sweep.live_traffic import LiveTraffic

POLL_S = 0.05
WARM_UP_RESIDENCES = 3.0  # DESIGN section 2
JOIN_RESIDENCES = 1.0  # for as many users as there already are
DEAD_AFTER_REQUESTS = 12  # after this many consecutive connection failures the backend is gone


@dataclass(slots=True)
class ServerPeaks:
    """Peaks of the engine's own gauges since `reset`."""

    peak: ServerLoadPeak = field(default_factory=ServerLoadPeak)
    engine: str | None = None
    _preemptions_at_start: float | None = None

    def reset(self) -> None:
        self.peak, self._preemptions_at_start = ServerLoadPeak(), None

    def add(self, load: ServerLoad) -> None:
        self.engine = load.engine
        if self._preemptions_at_start is None:
            self._preemptions_at_start = load.preemptions_total
        grown = (
            None
            if load.preemptions_total is None or self._preemptions_at_start is None
            else max(0.0, load.preemptions_total - self._preemptions_at_start)
        )
        self.peak = ServerLoadPeak(
            scrapes=self.peak.scrapes + 1,
            running_requests=_larger(self.peak.running_requests, load.running_requests),
            waiting_requests=_larger(self.peak.waiting_requests, load.waiting_requests),
            kv_usage_ratio=_larger(self.peak.kv_usage_ratio, load.kv_usage_ratio),
            preemptions=_larger(self.peak.preemptions, grown),
        )


def _larger(known: float | None, seen: float | None) -> float | None:
    return known if seen is None else seen if known is None else max(known, seen)


@dataclass(slots=True)
class _Means:
    """Time integrals of one stage."""

    seconds: float = 0.0
    organic: float = 0.0
    counted_seconds: float = 0.0
    wanted: float = 0.0

    def add(self, seconds: float, organic: float | None, wanted: int, *, counted: bool) -> None:
        self.seconds += seconds
        self.organic += seconds * (organic or 0.0)
        if counted:
            self.counted_seconds += seconds
            self.wanted += seconds * wanted

    @property
    def mean_organic(self) -> float:
        return self.organic / self.seconds if self.seconds > 0.0 else 0.0

    def mean_wanted(self, otherwise: int) -> float:
        return self.wanted / self.counted_seconds if self.counted_seconds > 0.0 else float(otherwise)


@dataclass(slots=True)
class LevelRunner:
    """Runs one stage after the other on one generator, and keeps its state in between."""

    load: LoadGenerator
    clock: Clock
    objectives: tuple[Objective, ...]
    origin_s: float
    server: ServerPeaks
    live: LiveTraffic
    on_batch: Callable[[Batch], None]
    level: int = 0
    probes: int = 0  # requested users
    stage: int = 0
    phase: Phase = Phase.RAMP
    in_flight: int = 0
    residence_s: float = 0.0
    residence_p90_s: float = 0.0
    _accumulators: dict[int, LevelAccumulator] = field(default_factory=dict)  # of all levels so far
    _residence_level: int = 0  # where `residence_s` was measured
    _dead_streak: int = 0
    _scrapes: int = 0  # that the number of probes already follows
    _means: _Means = field(default_factory=_Means)

    async def hold(
        self, measure: Measure, accumulator: LevelAccumulator, should_leave: Callable[[Stage], bool]
    ) -> Stage:
        """Raises ConfigurationError or UnreachableError when the backend fails for reasons other than load."""
        started_at_s = self._now_s()
        self._accumulators[measure.level] = accumulator
        if measure.level != self.level:
            self.stage += 1
            accumulator.begin(self.stage)
            self.phase, self.level = Phase.RAMP, measure.level
            self._aim(probes_for(self.level, self.live.organic.estimate), self._stagger_s)
        self.server.reset()
        self._means = _Means()
        audit = GeneratorAudit()
        ramp_done_at_s: float | None = None
        last_s = self._now_s()
        while True:
            await self.clock.sleep(POLL_S)
            batch = await self.load.poll()
            now_s = self._now_s()
            self._absorb(accumulator, batch, now_s - last_s, audit)
            self._steer()
            last_s = now_s
            if self.phase is Phase.RAMP and batch.all_started:
                if ramp_done_at_s is None:
                    ramp_done_at_s = now_s
                    accumulator.ramp_complete(self.clock.monotonic())
                if self._is_warm(batch, now_s - ramp_done_at_s):
                    self.phase = Phase.COUNTED
                    self._aim(self.probes, 0.0)
            running = self._value(measure, accumulator, started_at_s, now_s)
            if should_leave(running) or audit.broken:
                break
        stage = replace(
            running,
            tail_ratio=accumulator.tail_ratio(),
            correlation=accumulator.correlation(),
            audit=audit.audit(self._means.mean_wanted(self.probes), self.objectives, running.residence_s),
        )
        if audit.broken:  # the start order contains requests that will never end: the next stage begins a new one
            self.level = 0
        if stage.residence_s > 0.0:
            self.residence_s, self._residence_level = stage.residence_s, stage.level
        self.residence_p90_s = accumulator.residence_p90_s() or self.residence_p90_s
        accumulator.cut()
        return stage

    @property
    def _stagger_s(self) -> float:
        grown = max(0.0, self.level / max(1, self._residence_level) - 1.0)
        return self.residence_s * (1.0 + JOIN_RESIDENCES * grown)

    async def pause(self, seconds: float) -> None:
        """Hold no probes; the next stage warms up again."""
        self.level, self.phase = 0, Phase.RAMP
        self._aim(0, 0.0)
        until_s = self._now_s() + seconds
        while self._now_s() < until_s:
            await self.clock.sleep(POLL_S)
            self._note(await self.load.poll())
            self._has_scraped()

    def _note(self, batch: Batch) -> None:
        self.live.organic.ours(self.clock.monotonic(), batch.in_flight)
        self.in_flight = batch.in_flight
        self.on_batch(batch)

    def _aim(self, probes: int, stagger_s: float) -> None:
        self.probes = probes
        self.load.aim(probes, Label(self.stage, self.phase), stagger_s)

    def _steer(self) -> None:
        """Once per scrape."""
        if not self._has_scraped():
            return
        probes = steered(self.level, self.live.organic.estimate, self.probes)
        if probes != self.probes:
            self._aim(probes, 0.0)

    def _has_scraped(self) -> bool:
        """Whether there was a scrape since the last poll. Samples that it makes suspect are taken back at any level."""
        organic = self.live.organic
        if organic.scrapes == self._scrapes:
            return False
        self._scrapes = organic.scrapes
        for accumulator in self._accumulators.values():
            if is_suspect(accumulator.level, organic.change):
                accumulator.take_back(organic.suspect_since_s)
        return True

    def _is_warm(self, batch: Batch, since_last_start_s: float) -> bool:
        longest_s = WARM_UP_RESIDENCES * self.residence_p90_s
        return batch.turned_over >= batch.users or 0.0 < longest_s < since_last_start_s

    def _absorb(self, accumulator: LevelAccumulator, batch: Batch, seconds: float, audit: GeneratorAudit) -> None:
        organic = self.live.organic.estimate
        on_level = is_on_level(self.level, organic, batch.users)
        for start in batch.started:
            accumulator.started(start.request_id, start.label, start.started_s, on_level=on_level)
        for bit in batch.decided:
            accumulator.decided(
                bit.request_id, bit.objective, violated=bit.violated, at_s=bit.at_s, missing=bit.missing
            )
        for sample in batch.ended:
            accumulator.ended(sample)
            self._check(sample)
        counted = self.phase is Phase.COUNTED
        if counted:
            accumulator.held(seconds, batch.in_flight, batch.ended, organic or 0.0)
        audit.add(batch, counted=counted)
        self._means.add(seconds, organic, self.probes, counted=counted)
        self._note(batch)

    def _check(self, sample: Sample) -> None:
        failure = sample.failure
        if failure is not None and failure.is_our_mistake:
            raise _mistake(failure.status or 0, failure.detail)
        gone = failure is not None and failure.kind in (FailureKind.CONNECT, FailureKind.TLS)
        self._dead_streak = self._dead_streak + 1 if gone else 0
        if self._dead_streak >= DEAD_AFTER_REQUESTS and failure is not None:
            raise UnreachableError(
                f"The backend stopped accepting connections at concurrency {self.level}: {failure.detail}.",
                "Check that it still runs; the last good cap stays published.",
            )

    def _value(self, measure: Measure, accumulator: LevelAccumulator, started_at_s: float, now_s: float) -> Stage:
        limit = measure.max_samples if measure.test is Test.FIXED else None
        accumulator.ended_in_order(limit)
        return Stage(
            level=self.level,
            started_at_s=started_at_s,
            ended_at_s=now_s,
            residence_s=accumulator.residence_s(),
            evidence=accumulator.evidence(self.origin_s, limit),
            ramp=accumulator.ramp(),
            ramp_failed=has_failed_warm_up(self.objectives, accumulator.ramp()),
            requests=accumulator.stage_requests,
            server=self.server.peak,
            organic=None if self.live.organic.estimate is None else self._means.mean_organic,
            number=self.stage,
        )

    def _now_s(self) -> float:
        return self.clock.monotonic() - self.origin_s


def _mistake(status: int, detail: str) -> CalibratorError:
    if status in (401, 403):
        return UnreachableError(f"The backend refused our credentials ({status}): {detail}.", "Give a valid API key.")
    return ConfigurationError(
        f"The backend rejected a probe request ({status}): {detail}.",
        "Check the model name, the API kind, and that the longest prompt plus output fits the context.",
    )
