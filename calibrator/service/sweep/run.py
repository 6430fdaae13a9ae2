"""A sweep: ask the policy, hold the level, add the stage to the history, ask again.

    inspect ─▶ next_step(history) ─▶ Measure ─▶ hold ─▶ Stage ─▶ history ─┐
                    ▲  └▶ Conclusion ─▶ record                           │
                    └──────────────────────────────────────────────────────┘

With `order.levels` there is no policy: exactly those levels are measured, each judged on its own requests.

Failures of the backend are data, unless they have a cause other than load (credentials, model, no listener): then the
sweep ends as `error` with cause and remedy. Cancelling ends all probes within a second and re-raises.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from calibrator import __version__
from calibrator.core.live.organic_load import LAG_S
from calibrator.core.publish.snapshot import Progress
from calibrator.core.records.history import Evidence, History, Stage
from calibrator.core.records.level_accumulator import LevelAccumulator, outcome_of
from calibrator.core.records.sample import Phase, RequestOutcome
from calibrator.core.records.sweep import EndReason, LevelReport, Provenance, SweepOutcome, SweepRecord
from calibrator.core.records.unmeasured import UnmeasuredTally, holes
from calibrator.core.search.burst import unlimited
from calibrator.core.search.burst_mode import BurstMode
from calibrator.core.search.policy import next_step
from calibrator.core.search.state import must_leave, overload_s
from calibrator.core.search.steps import Conclusion, Ending, Measure, Step, Test
from calibrator.core.search.verdict import is_settled, level_verdict
from calibrator.core.workload.achieved import AchievedLengths
from calibrator.errors import CalibratorError, ExitCode
from calibrator.ports.backend import BackendFacts, Inspector
from calibrator.ports.clock import Clock
from calibrator.ports.load import Batch, LoadGenerator
from calibrator.ports.sweeps import Permit, SweepListener, SweepOrder, forever
from calibrator.ports.telemetry import Telemetry
from calibrator.service.sweep.abort_monitor import SETTLE_S, AbortedError, AbortMonitor
from calibrator.service.sweep.burst import BurstRunner
from calibrator.service.sweep.failures import FailureTally, quota_error, refuse_unmeasurable
from calibrator.service.sweep.level_runner import LevelRunner, ServerPeaks
from calibrator.service.sweep.live_traffic import LiveTraffic
from calibrator.service.sweep.sample_buffer import SampleBuffer
from calibrator.service.sweep.ttft_agreement import TtftAgreement

SCRAPE_S = 1.0
PROGRESS_S = 0.2


@dataclass(frozen=True, slots=True)
class SweepParts:
    """What wiring provides for a sweep."""

    inspector: Inspector
    telemetry: Telemetry
    load: Callable[[BackendFacts], LoadGenerator]
    clock: Clock
    permit: Permit = forever


@dataclass(slots=True)
class _Tally:
    """Totals over the whole sweep."""

    outcomes: Counter[RequestOutcome] = field(default_factory=Counter)
    prompt_tokens: int = 0
    output_tokens: int = 0
    failures: FailureTally = field(default_factory=FailureTally)

    @property
    def completed(self) -> int:
        return self.failures.completed


async def run_sweep(order: SweepOrder, parts: SweepParts, listener: SweepListener) -> SweepRecord:
    """Run to the end; outcome `error` is a record too. Cancellation re-raises after all probes have ended."""
    sweep = _Sweep(order, parts, listener)
    try:
        conclusion = await sweep.run()
    except CalibratorError as error:
        return sweep.record(
            Conclusion(SweepOutcome.ERROR, None, None, Ending(EndReason.ERROR, error.cause)),
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
        self._accumulators: dict[int, LevelAccumulator] = {}
        self._tally = _Tally()
        self._achieved = AchievedLengths(order.workload)
        self._unmeasured = UnmeasuredTally(order.objectives)
        self._facts: BackendFacts | None = None
        self._origin_s = 0.0
        self._shown_at_s = -PROGRESS_S
        self._server = ServerPeaks()
        self._live = LiveTraffic(parts.clock)
        self._abort_monitor = AbortMonitor(order, parts.clock)
        self._ttft_agreement = TtftAgreement()
        self._samples = SampleBuffer(parts.clock)
        self._load: LoadGenerator | None = None
        self._runner: LevelRunner | None = None
        self._burst_runner: BurstRunner | None = None

    async def run(self) -> Conclusion:
        clock = self._parts.clock
        self._origin_s = clock.monotonic()
        self._listener.progress(self._progress(self._order.bounds.min_level))
        self._facts = await self._parts.inspector.inspect(self._order.workload)
        refuse_unmeasurable(self._order, self._facts)
        self._origin_s = clock.monotonic()
        load = self._load = self._parts.load(self._facts)
        load.allow(self._parts.permit())
        self._runner = LevelRunner(
            load, clock, self._order.objectives, self._origin_s, self._server, self._live, self._record_batch
        )
        watcher = asyncio.create_task(self._watch_server())
        try:
            await load.start()
            await self._live.begin()
            conclusion = await self._measure_all(self._runner)
            return await self._measure_burst(load, conclusion)
        finally:
            watcher.cancel()
            await load.stop()
            await asyncio.gather(watcher, return_exceptions=True)

    async def _measure_all(self, runner: LevelRunner) -> Conclusion:
        while True:
            step = self._next()
            if isinstance(step, Conclusion):
                if await self._was_invalidated(runner, step):
                    continue
                return step
            measure = step
            accumulator = self._accumulators.setdefault(
                measure.level, LevelAccumulator(measure.level, self._order.objectives)
            )
            should_leave = functools.partial(self._should_leave, measure, accumulator)
            stage = self._live.left(await runner.hold(measure, accumulator, should_leave))
            self._ttft_agreement.leave(stage.level)
            before = self._live.invalidated(self._history.stages, self._origin_s)
            self._history = replace(self._history, stages=(*before, stage))
            self._listener.partial(self.record(None))

    async def _was_invalidated(self, runner: LevelRunner, conclusion: Conclusion) -> bool:
        """Whether live traffic changed just before the end and invalidated the last stage: the search then continues.

        Without live traffic so far there is no wait, unless the conclusion is that the backend is infeasible.
        """
        live = self._live
        is_waiting = live.most > 0.0 or (live.organic.scrapes > 0 and conclusion.outcome is SweepOutcome.INFEASIBLE)
        if not is_waiting or not self._history.stages or self._abort_monitor.abort is not None:
            return False
        await runner.pause(LAG_S + SCRAPE_S)
        before = self._history.stages
        self._history = replace(self._history, stages=self._live.invalidated(before, self._origin_s))
        return self._history.stages != before

    async def _measure_burst(self, load: LoadGenerator, conclusion: Conclusion) -> Conclusion:
        clock, organic = self._parts.clock, self._live.organic
        objectives = self._order.objectives
        self._burst_runner = BurstRunner(load, clock, objectives, self._record_batch, lambda: organic.estimate or 0.0)
        order, mode = self._order, self._order.burst if self._abort_monitor.abort is None else BurstMode.OFF
        try:
            return await self._burst_runner.follow(conclusion, mode, self._levels(), order.bounds.min_level)
        except AbortedError:
            return unlimited(conclusion) if mode is BurstMode.ENFORCE else conclusion

    # --------------------------------------------------------------------------------------------- decisions
    def _next(self) -> Step:
        order = self._order
        self._history = replace(self._history, organic_floor=self._live.organic.floor)
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
            late = Ending(EndReason.TIME_BUDGET, "the time budget is spent before the last level")
            return Conclusion(SweepOutcome.INCONCLUSIVE, None, None, late)
        complete = Ending(EndReason.ALL_LEVELS, "all levels were measured")
        return self._nothing_worked() or Conclusion(SweepOutcome.CALIBRATED, None, None, complete)

    def _nothing_worked(self) -> Conclusion | None:
        """If no request succeeded in the whole sweep, the backend is broken; that is not a small capacity."""
        words = self._tally.failures.nothing_worked
        why = Ending(EndReason.NO_SUCCESS, words)
        return Conclusion(SweepOutcome.ERROR, None, None, why) if words else None

    def _should_leave(self, measure: Measure, accumulator: LevelAccumulator, running: Stage) -> bool:
        now_s = running.ended_at_s
        history = replace(self._history, stages=(*self._history.stages, running))
        self._show(running, measure, history, now_s)
        bounds = self._order.bounds
        if (
            now_s >= bounds.duration_s
            or self._abort_monitor.must_stop(history)
            or running.level <= self._live.organic.floor
        ):
            return True
        if measure.test is Test.FIXED:
            enough = all(_is_enough(part, measure.max_samples) for part in running.evidence)
            return enough and accumulator.ended_in_order(measure.max_samples) >= measure.max_samples
        return must_leave(history, bounds) or is_settled(history, measure)

    # -------------------------------------------------------------------------------------------- observation
    def _record_batch(self, batch: Batch) -> None:
        if self._load is not None:
            self._load.allow(self._parts.permit())
        self._ttft_agreement.ended(batch.ended)
        self._samples.add(batch.ended)
        self._abort_monitor.record(batch)
        self._unmeasured.add(batch.ended)
        tally = self._tally
        tally.failures.add(batch.ended)
        for sample in batch.ended:
            tally.outcomes[outcome_of(sample, self._order.objectives)] += 1
            tally.prompt_tokens += sample.prompt_tokens or 0
            tally.output_tokens += sample.completion_tokens or 0
            self._achieved.add(sample)
        quota = quota_error(batch.ended, 0 if self._runner is None else self._runner.level)
        if self._burst_runner is not None and (quota is not None or self._abort_monitor.abort is not None):
            raise AbortedError  # the result of the search stands
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
                if self._runner is not None and self._runner.phase is Phase.COUNTED:
                    self._ttft_agreement.scraped(load)
            await self._abort_monitor.scraped(asked_s, load)
            self._live.scraped(asked_s, answered_s, load)
            await self._parts.clock.sleep(SCRAPE_S - SETTLE_S)

    def _show(self, running: Stage, measure: Measure, history: History, now_s: float) -> None:
        if now_s - self._shown_at_s < PROGRESS_S or self._runner is None:
            return
        self._shown_at_s = now_s
        metric, accumulator = self._order.objectives[0].metric, self._accumulators[running.level]
        progress = replace(
            self._progress(running.level),
            phase="ramp" if self._runner.phase is Phase.RAMP else measure.test.value,
            n=min(part.n for part in running.evidence),
            exceedances=max(part.exceedances for part in running.evidence),
            verdict=level_verdict(history, running.level).kind.value,
            p50_s=accumulator.quick_quantile(metric, 0.5),
            p99_s=accumulator.quick_quantile(metric, 0.99),
            requests=history.requests,
            elapsed_s=now_s,
            in_flight=self._runner.in_flight,
            organic=self._live.organic.estimate,
            overload_s=overload_s(history, self._abort_monitor.overload(self._origin_s)),
        )
        self._listener.progress(progress)

    def _progress(self, level: int) -> Progress:
        """An initial one, with the budgets."""
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
            end_reason=None if conclusion is None else conclusion.why.code,
            requests=self._history.requests + (0 if self._burst_runner is None else self._burst_runner.requests),
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
            burst=None if self._burst_runner is None else self._burst_runner.report,
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
        measured = (*self._unmeasured.warnings, *self._ttft_agreement.warnings, *live)
        return (*self._order.prior_warnings, *self._facts.warnings, *failures, *achieved, *measured)

    def _levels(self) -> tuple[LevelReport, ...]:
        return tuple(self._level_report(level) for level in sorted(self._accumulators) if self._history.at_level(level))

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
        return self._accumulators[level].report(verdict, (n, exceedances), stages[-1].audit, stages[-1].server, organic)
