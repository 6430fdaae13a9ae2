"""One stage: hold a level, warm it up under watch, count until the test is settled.

    aim(level) ─▶ RAMP ── every user has turned over ─▶ COUNTED ── settled | ramp failed | limit hit ─▶ Stage

Users are added over one residence, and one more for each doubling: the residence may grow in proportion to the level,
and first requests, being residual, are followed by another after half of it. Added within the one residence of the
level below, a doubling to just under the capacity is an overload of its own making, which the watched warm-up takes for
the level's: of a prefill-limited engine it refuted every third time a level that holds. A slower ramp costs more than
it saves: with two more residences, engines that are limited by their slots take a tenth more requests and find less.

The warm-up ends when each user has ended one request, at the latest three P90 residences of the level before (so that
long answers do not make it endless; users start with residual lengths). Every `POLL_S` the generator is polled, the
events folded, and the running stage judged by pure functions; all this file adds is the waiting.

A level is the total on the replica: beside live traffic fewer probes are held, and after each scrape their number is
steered anew (`core.live.organic_load`).
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
JOIN_RESIDENCES = 1.0  # for as many users as there were
DEAD_AFTER_REQUESTS = 12  # this many connection failures in a row, and nothing else: the backend is gone


@dataclass(slots=True)
class ServerWatch:
    """Peaks of the engine's own gauges since `reset`; fed by whoever scrapes."""

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
class _Beside:
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
    """Runs stages one after the other on one generator; remembers where it stands."""

    load: LoadGenerator
    clock: Clock
    objectives: tuple[Objective, ...]
    origin_s: float
    server: ServerWatch
    live: LiveTraffic
    on_batch: Callable[[Batch], None]
    level: int = 0
    probes: int = 0  # users asked for
    stage: int = 0
    phase: Phase = Phase.RAMP
    in_flight: int = 0
    residence_s: float = 0.0
    residence_p90_s: float = 0.0
    _folds: dict[int, LevelAccumulator] = field(default_factory=dict)  # of all levels so far
    _residence_level: int = 0  # where `residence_s` was seen
    _dead_streak: int = 0
    _looks: int = 0  # scrapes that the probes were steered by
    _beside: _Beside = field(default_factory=_Beside)

    async def hold(self, measure: Measure, fold: LevelAccumulator, should_leave: Callable[[Stage], bool]) -> Stage:
        """Raises ConfigurationError or UnreachableError when the backend's answers say that load is not the matter."""
        started_at_s = self._now_s()
        self._folds[measure.level] = fold
        if measure.level != self.level:
            self.stage += 1
            fold.begin(self.stage)
            self.phase, self.level = Phase.RAMP, measure.level
            self._aim(probes_for(self.level, self.live.watch.estimate), self._stagger_s)
        self.server.reset()
        self._beside = _Beside()
        watch = GeneratorAudit()
        ramp_done_at_s: float | None = None
        last_s = self._now_s()
        while True:
            await self.clock.sleep(POLL_S)
            batch = await self.load.poll()
            now_s = self._now_s()
            self._absorb(fold, batch, now_s - last_s, watch)
            self._steer()
            last_s = now_s
            if self.phase is Phase.RAMP and batch.all_started:
                if ramp_done_at_s is None:
                    ramp_done_at_s = now_s
                    fold.ramp_complete(self.clock.monotonic())
                if self._is_warm(batch, now_s - ramp_done_at_s):
                    self.phase = Phase.COUNTED
                    self._aim(self.probes, 0.0)
            running = self._value(measure, fold, started_at_s, now_s)
            if should_leave(running) or watch.broken:
                break
        stage = replace(
            running,
            tail_ratio=fold.tail_ratio(),
            correlation=fold.correlation(),
            audit=watch.audit(self._beside.mean_wanted(self.probes), self.objectives, running.residence_s),
        )
        if watch.broken:  # requests that nobody will end stand in the start order: the next stage begins a new one
            self.level = 0
        if stage.residence_s > 0.0:
            self.residence_s, self._residence_level = stage.residence_s, stage.level
        self.residence_p90_s = fold.residence_p90_s() or self.residence_p90_s
        fold.cut()
        return stage

    @property
    def _stagger_s(self) -> float:
        grown = max(0.0, self.level / max(1, self._residence_level) - 1.0)
        return self.residence_s * (1.0 + JOIN_RESIDENCES * grown)

    async def pause(self, seconds: float) -> None:
        """Without probes; the next stage warms up anew."""
        self.level, self.phase = 0, Phase.RAMP
        self._aim(0, 0.0)
        until_s = self._now_s() + seconds
        while self._now_s() < until_s:
            await self.clock.sleep(POLL_S)
            self._note(await self.load.poll())
            self._looked()

    def _note(self, batch: Batch) -> None:
        self.live.watch.ours(self.clock.monotonic(), batch.in_flight)
        self.in_flight = batch.in_flight
        self.on_batch(batch)

    def _aim(self, probes: int, stagger_s: float) -> None:
        self.probes = probes
        self.load.aim(probes, Label(self.stage, self.phase), stagger_s)

    def _steer(self) -> None:
        """Once a scrape."""
        if not self._looked():
            return
        probes = steered(self.level, self.live.watch.estimate, self.probes)
        if probes != self.probes:
            self._aim(probes, 0.0)

    def _looked(self) -> bool:
        """Was there a scrape since the last poll? What it puts in doubt is taken back, at whatever level it started."""
        watch = self.live.watch
        if watch.looks == self._looks:
            return False
        self._looks = watch.looks
        for fold in self._folds.values():
            if is_suspect(fold.level, watch.doubt):
                fold.take_back(watch.doubt_s)
        return True

    def _is_warm(self, batch: Batch, since_last_start_s: float) -> bool:
        longest_s = WARM_UP_RESIDENCES * self.residence_p90_s
        return batch.turned_over >= batch.users or 0.0 < longest_s < since_last_start_s

    def _absorb(self, fold: LevelAccumulator, batch: Batch, seconds: float, watch: GeneratorAudit) -> None:
        organic = self.live.watch.estimate
        on_level = is_on_level(self.level, organic, batch.users)
        for start in batch.started:
            fold.started(start.request_id, start.label, start.started_s, on_level=on_level)
        for bit in batch.decided:
            fold.decided(bit.request_id, bit.objective, violated=bit.violated, at_s=bit.at_s, missing=bit.missing)
        for sample in batch.ended:
            fold.ended(sample)
            self._check(sample)
        counted = self.phase is Phase.COUNTED
        if counted:
            fold.held(seconds, batch.in_flight, batch.ended, organic or 0.0)
        watch.add(batch, counted=counted)
        self._beside.add(seconds, organic, self.probes, counted=counted)
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

    def _value(self, measure: Measure, fold: LevelAccumulator, started_at_s: float, now_s: float) -> Stage:
        limit = measure.max_samples if measure.test is Test.FIXED else None
        fold.ended_in_order(limit)
        return Stage(
            level=self.level,
            started_at_s=started_at_s,
            ended_at_s=now_s,
            residence_s=fold.residence_s(),
            evidence=fold.evidence(self.origin_s, limit),
            ramp=fold.ramp(),
            ramp_failed=has_failed_warm_up(self.objectives, fold.ramp()),
            requests=fold.stage_requests,
            server=self.server.peak,
            organic=None if self.live.watch.estimate is None else self._beside.mean_organic,
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
