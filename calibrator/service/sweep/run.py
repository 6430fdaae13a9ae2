"""A sweep: ask the policy, hold the level, add the stage to the history, ask again.

    inspect ─▶ next_step(history) ─▶ Measure ─▶ hold ─▶ Stage ─▶ history ─┐
                    ▲  └▶ Conclusion ─▶ record                           │
                    └──────────────────────────────────────────────────────┘

With `order.levels` there is no policy: exactly those levels are measured, each judged on its own requests.

Failures of the backend are data until they say that load is not the matter (credentials, model, nobody listening): then
the sweep ends as `error` with cause and remedy. Cancelling ends all probes within a second and re-raises.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from calibrator import __version__
from calibrator.core.live.organic_load import LAG_S
from calibrator.core.publish.snapshot import Progress
from calibrator.core.records.history import Evidence, History, Stage
from calibrator.core.records.level_accumulator import LevelAccumulator, outcome_of
from calibrator.core.records.sample import Phase, RequestOutcome
from calibrator.core.records.sweep import LevelReport, Provenance, SweepOutcome, SweepRecord
from calibrator.core.records.unmeasured import UnmeasuredTally, holes
from calibrator.core.search.burst import unlimited
from calibrator.core.search.burst_mode import BurstMode
from calibrator.core.search.policy import next_step
from calibrator.core.search.state import must_leave, overload_s
from calibrator.core.search.steps import Conclusion, Measure, Step, Test
from calibrator.core.search.verdict import is_settled, level_verdict
from calibrator.core.workload.achieved import AchievedFold
from calibrator.errors import CalibratorError, ExitCode
from calibrator.ports.backend import BackendFacts, Inspector
from calibrator.ports.clock import Clock
from calibrator.ports.load import Batch, LoadGenerator
from calibrator.ports.sweeps import Permit, SweepListener, SweepOrder, forever
from calibrator.ports.telemetry import Telemetry
from calibrator.service.sweep.abort_monitor import SETTLE_S, AbortedError, AbortMonitor
from calibrator.service.sweep.burst import Burster
from calibrator.service.sweep.failures import FailureTally, quota_error, refuse_unmeasurable
from calibrator.service.sweep.level_runner import LevelRunner, ServerWatch
from calibrator.service.sweep.live_traffic import LiveTraffic
from calibrator.service.sweep.sample_buffer import SampleKeeper
from calibrator.service.sweep.ttft_agreement import CrossWatch

SCRAPE_S = 1.0
PROGRESS_S = 0.2


@dataclass(frozen=True, slots=True)
class SweepParts:
    """What wiring gives to a sweep."""

    inspector: Inspector
    telemetry: Telemetry
    load: Callable[[BackendFacts], LoadGenerator]
    clock: Clock
    permit: Permit = forever


@dataclass(slots=True)
class _Tally:
    """CostLedger of the whole sweep."""

    outcomes: Counter[RequestOutcome] = field(default_factory=Counter)
    prompt_tokens: int = 0
    output_tokens: int = 0
    failures: FailureTally = field(default_factory=FailureTally)

    @property
    def completed(self) -> int:
        return self.failures.completed


async def run_sweep(order: SweepOrder, parts: SweepParts, listener: SweepListener) -> SweepRecord:
    """Run to the end; outcome `error` is a record too. Cancellation re-raises after all probes ended."""
    sweep = _Sweep(order, parts, listener)
    try:
        conclusion = await sweep.run()
    except CalibratorError as error:
        return sweep.record(
            Conclusion(SweepOutcome.ERROR, None, None, error.cause),
            remedy=error.remedy,
            error_exit_code=error.exit_code,
        )
    return sweep.record(conclusion)


def _is_enough(part: Evidence, samples: int) -> bool:
    """Bits; where too little is seen, requests."""
    return part.n + (holes(part.missing) if part.is_unmeasured else 0) >= samples or (not part.n and part.is_given_up)


class _Sweep:
    def __init__(self, order: SweepOrder, parts: SweepParts, listener: SweepListener) -> None:
        self._order = order
        self._parts = parts
        self._listener = listener
        self._history = History(order.objectives, warm=order.warm)
        self._folds: dict[int, LevelAccumulator] = {}
        self._tally = _Tally()
        self._achieved = AchievedFold(order.workload)
        self._unmeasured = UnmeasuredTally(order.objectives)
        self._facts: BackendFacts | None = None
        self._origin_s = 0.0
        self._shown_at_s = -PROGRESS_S
        self._server = ServerWatch()
        self._live = LiveTraffic(parts.clock)
        self._abort_monitor = AbortMonitor(order, parts.clock)
        self._cross = CrossWatch()
        self._samples = SampleKeeper(parts.clock)
        self._load: LoadGenerator | None = None
        self._holder: LevelRunner | None = None
        self._burster: Burster | None = None

    async def run(self) -> Conclusion:
        clock = self._parts.clock
        self._origin_s = clock.monotonic()
        self._listener.progress(self._progress(self._order.bounds.min_level))
        self._facts = await self._parts.inspector.inspect(self._order.workload)
        refuse_unmeasurable(self._order, self._facts)
        self._origin_s = clock.monotonic()
        load = self._load = self._parts.load(self._facts)
        load.allow(self._parts.permit())
        self._holder = LevelRunner(
            load, clock, self._order.objectives, self._origin_s, self._server, self._live, self._book
        )
        watcher = asyncio.create_task(self._watch_server())
        try:
            await load.start()
            await self._live.begin()
            conclusion = await self._measure_all(self._holder)
            return await self._measure_burst(load, conclusion)
        finally:
            watcher.cancel()
            await load.stop()
            await asyncio.gather(watcher, return_exceptions=True)

    async def _measure_all(self, holder: LevelRunner) -> Conclusion:
        while True:
            step = self._next()
            if isinstance(step, Conclusion):
                if await self._was_shaken(holder, step):
                    continue
                return step
            fold = self._folds.setdefault(step.level, LevelAccumulator(step.level, self._order.objectives))
            measure = step

            def should_leave(running: Stage, measure: Measure = measure, fold: LevelAccumulator = fold) -> bool:
                return self._should_leave(running, measure, fold)

            stage = self._live.left(await holder.hold(measure, fold, should_leave))
            self._cross.leave(stage.level)
            before = self._live.voided(self._history.stages, self._origin_s)
            self._history = replace(self._history, stages=(*before, stage))
            self._listener.partial(self.record(None))

    async def _was_shaken(self, holder: LevelRunner, conclusion: Conclusion) -> bool:
        """Did live traffic change just before the end? Then the last stage is void, and the search goes on.

        Where nobody else was seen nothing is waited for, unless the whole backend is to be called infeasible.
        """
        live = self._live
        is_waiting = live.most > 0.0 or (live.watch.looks > 0 and conclusion.outcome is SweepOutcome.INFEASIBLE)
        if not is_waiting or not self._history.stages or self._abort_monitor.abort is not None:
            return False
        await holder.pause(LAG_S + SCRAPE_S)
        before = self._history.stages
        self._history = replace(self._history, stages=self._live.voided(before, self._origin_s))
        return self._history.stages != before

    async def _measure_burst(self, load: LoadGenerator, conclusion: Conclusion) -> Conclusion:
        clock, watch = self._parts.clock, self._live.watch
        objectives = self._order.objectives
        self._burster = Burster(load, clock, objectives, self._book, lambda: watch.estimate or 0.0)
        order, mode = self._order, self._order.burst if self._abort_monitor.abort is None else BurstMode.OFF
        try:
            return await self._burster.follow(conclusion, mode, self._levels(), order.bounds.min_level)
        except AbortedError:
            return unlimited(conclusion) if mode is BurstMode.ENFORCE else conclusion

    # --------------------------------------------------------------------------------------------- decisions
    def _next(self) -> Step:
        order = self._order
        self._history = replace(self._history, organic_floor=self._live.watch.floor)
        ended = self._abort_monitor.conclusion(self._history)
        if ended is not None:
            return self._nothing_worked() or ended
        if not order.levels:
            step = next_step(self._history, order.bounds)
            if isinstance(step, Conclusion) and step.outcome is not SweepOutcome.ERROR:
                return self._nothing_worked() or step
            return step
        done = len(self._history.stages)
        if done < len(order.levels) and self._history.elapsed_s < order.bounds.duration_s:
            return Measure(order.levels[done], Test.FIXED, order.requests_per_level, "asked for")
        if done < len(order.levels):
            return Conclusion(SweepOutcome.INCONCLUSIVE, None, None, "the time budget ended before the last level")
        return self._nothing_worked() or Conclusion(SweepOutcome.CALIBRATED, None, None, "all levels were measured")

    def _nothing_worked(self) -> Conclusion | None:
        """Not one request succeeded in the whole sweep: that is a broken backend, not a small capacity."""
        why = self._tally.failures.nothing_worked
        return Conclusion(SweepOutcome.ERROR, None, None, why) if why else None

    def _should_leave(self, running: Stage, measure: Measure, fold: LevelAccumulator) -> bool:
        now_s = running.ended_at_s
        history = replace(self._history, stages=(*self._history.stages, running))
        self._show(running, measure, history, now_s)
        bounds = self._order.bounds
        if (
            now_s >= bounds.duration_s
            or self._abort_monitor.must_stop(history)
            or running.level <= self._live.watch.floor
        ):
            return True
        if measure.test is Test.FIXED:
            enough = all(_is_enough(part, measure.max_samples) for part in running.evidence)
            return enough and fold.ended_in_order(measure.max_samples) >= measure.max_samples
        return must_leave(history, bounds) or is_settled(history, measure)

    # -------------------------------------------------------------------------------------------- observation
    def _book(self, batch: Batch) -> None:
        if self._load is not None:
            self._load.allow(self._parts.permit())
        self._cross.ended(batch.ended)
        self._samples.add(batch.ended)
        self._abort_monitor.book(batch)
        self._unmeasured.add(batch.ended)
        tally = self._tally
        tally.failures.add(batch.ended)
        for sample in batch.ended:
            tally.outcomes[outcome_of(sample, self._order.objectives)] += 1
            tally.prompt_tokens += sample.prompt_tokens or 0
            tally.output_tokens += sample.completion_tokens or 0
            self._achieved.add(sample)
        quota = quota_error(batch.ended, 0 if self._holder is None else self._holder.level)
        if self._burster is not None and (quota is not None or self._abort_monitor.abort is not None):
            raise AbortedError  # what the search has found stands
        if quota is not None:
            raise quota

    async def _watch_server(self) -> None:
        clock = self._parts.clock
        while True:
            asked_s = clock.monotonic()
            load = await self._parts.telemetry.scrape()
            answered_s = clock.monotonic()
            if load is not None:
                self._server.add(load)
                if self._holder is not None and self._holder.phase is Phase.COUNTED:
                    self._cross.scraped(load)
            await self._abort_monitor.saw(load)
            self._live.saw(asked_s, answered_s, load)
            await self._parts.clock.sleep(SCRAPE_S - SETTLE_S)

    def _show(self, running: Stage, measure: Measure, history: History, now_s: float) -> None:
        if now_s - self._shown_at_s < PROGRESS_S or self._holder is None:
            return
        self._shown_at_s = now_s
        metric, fold = self._order.objectives[0].metric, self._folds[running.level]
        progress = replace(
            self._progress(running.level),
            phase="ramp" if self._holder.phase is Phase.RAMP else measure.test.value,
            n=min(part.n for part in running.evidence),
            exceedances=max(part.exceedances for part in running.evidence),
            verdict=level_verdict(history, running.level).kind.value,
            p50_s=fold.quick_quantile(metric, 0.5),
            p99_s=fold.quick_quantile(metric, 0.99),
            requests=history.requests,
            elapsed_s=now_s,
            in_flight=self._holder.in_flight,
            organic=self._live.watch.estimate,
            overload_s=overload_s(history, self._abort_monitor.overload(self._origin_s)),
        )
        self._listener.progress(progress)

    def _progress(self, level: int) -> Progress:
        """A blank one, with the budgets."""
        order = self._order
        fixed = len(order.levels) * order.requests_per_level
        return Progress(
            sweep_id=order.sweep_id,
            level=level,
            phase="preflight",
            n=0,
            exceedances=0,
            verdict="",
            p50_s=None,
            p99_s=None,
            requests=0,
            requests_budget=fixed or order.bounds.requests + order.bounds.requests_per_level * level,
            elapsed_s=0.0,
            duration_budget_s=order.bounds.duration_s,
            in_flight=0,
            overload_budget_s=order.bounds.overload_s,
        )

    # ------------------------------------------------------------------------------------------------ record
    def record(
        self, conclusion: Conclusion | None, *, remedy: str = "", error_exit_code: int = ExitCode.UNEXPECTED
    ) -> SweepRecord:
        """The sweep so far; `conclusion` None while it runs."""
        order, tally, facts = self._order, self._tally, self._facts
        elapsed_s = self._parts.clock.monotonic() - self._origin_s
        return SweepRecord(
            sweep_id=order.sweep_id,
            backend=order.backend,
            mode="levels" if order.levels else "search",
            started_at=order.started_at,
            ended_at=None if conclusion is None else self._parts.clock.wall(),
            outcome=None if conclusion is None else conclusion.outcome,
            grade=None if conclusion is None else conclusion.grade,
            capacity=None if conclusion is None else conclusion.capacity,
            reason="" if conclusion is None else conclusion.reason,
            requests=self._history.requests + (0 if self._burster is None else self._burster.requests),
            duration_s=elapsed_s,
            overload_s=overload_s(self._history, self._abort_monitor.overload(self._origin_s)),
            prompt_tokens=tally.prompt_tokens,
            output_tokens=tally.output_tokens,
            levels=self._levels(),
            warnings=self._warnings(),
            provenance=Provenance(
                backend=order.backend,
                url=order.target.url,
                model=order.target.model,
                engine=self._server.engine or (None if facts is None else facts.engine),
                objectives=tuple(str(objective) for objective in order.objectives),
                workload=str(order.workload),
                prompt_tokens_achieved=tally.prompt_tokens / tally.completed if tally.completed else None,
                output_tokens_achieved=tally.output_tokens / tally.completed if tally.completed else None,
                seed=order.seed,
                software=__version__,
                bounds=order.bounds,
                adjustments=() if facts is None else tuple(map(str, facts.adjustments)),
                cached_ratio_achieved=self._achieved.cached_ratio,
                classes_achieved=self._achieved.classes(),
            ),
            history=self._history,
            remedy=remedy,
            error_exit_code=int(error_exit_code),
            burst=None if self._burster is None else self._burster.report,
            aborted=self._abort_monitor.abort,
            harm=self._abort_monitor.harm,
            trigger=order.trigger,
            samples=b"" if conclusion is None else self._samples.packed(self._history, order.objectives),
            outcomes=tuple((outcome.value, tally.outcomes[outcome]) for outcome in RequestOutcome),
        )

    def _warnings(self) -> tuple[str, ...]:
        if self._facts is None:
            return ()
        achieved = self._achieved.warnings(self._facts.token_scale.overhead)
        failures, live = self._tally.failures.warnings, self._live.warnings(self._parts.telemetry.problem)
        watched = (*self._unmeasured.warnings, *self._cross.warnings, *live)
        return (*self._order.prior_warnings, *self._facts.warnings, *failures, *achieved, *watched)

    def _levels(self) -> tuple[LevelReport, ...]:
        return tuple(self._level_report(level) for level in sorted(self._folds) if self._history.at_level(level))

    def _level_report(self, level: int) -> LevelReport:
        stages = self._history.at_level(level)
        alone = replace(self._history, stages=stages)
        verdict = level_verdict(alone if self._order.levels else self._history, level)
        n = sum(min(part.n for part in stage.evidence) for stage in stages)
        exceedances = max(
            sum(stage.evidence[index].exceedances for stage in stages) for index in range(len(self._order.objectives))
        )
        known = [(stage.organic, stage.duration_s) for stage in stages if stage.organic is not None]
        organic = sum(one * s for one, s in known) / sum(s for _, s in known) if known else None
        return self._folds[level].report(verdict, (n, exceedances), stages[-1].audit, stages[-1].server, organic)
