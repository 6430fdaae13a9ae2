"""The search ends, is safe, and says what it knows, whatever the backend does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.synthetic import P99, Player, Synthetic, cliff, logistic, run_sweep

from calibrator.core.records.history import Bounds, History, Stage
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.server_load import ServerLoadPeak
from calibrator.core.records.sweep import EndReason, Grade, SweepOutcome
from calibrator.core.search.policy import next_step
from calibrator.core.search.posterior import Counts, ObjectiveData, capacity_posterior
from calibrator.core.search.state import must_leave, overload_s, search_state
from calibrator.core.search.steps import Conclusion, Measure, Test
from calibrator.errors import ConfigurationError

LONG = Bounds(duration_s=1e9, overload_s=1e9)


def synthetic(ratio: object, seed: int = 1, **options: object) -> Player:
    return Player(Synthetic(ratio, np.random.default_rng(seed), **options))  # type: ignore[arg-type]  # test shorthand


@pytest.mark.parametrize("knee", [1, 2, 3, 7, 20, 64, 200])
def test_a_clear_boundary_is_found(knee: int) -> None:
    for seed in range(3):
        conclusion, history = run_sweep(synthetic(cliff(knee), seed), LONG)
        assert conclusion.outcome is SweepOutcome.CALIBRATED
        assert conclusion.capacity is not None
        assert 0.85 * knee - 1e-9 <= conclusion.capacity.estimate <= knee
        assert conclusion.capacity.low <= knee <= conclusion.capacity.high
        assert history.requests <= 1800 + 4 * knee + 512


@pytest.mark.parametrize(("knee", "slope"), [(5, 8.0), (30, 8.0), (100, 12.0)])
def test_a_smooth_boundary_is_found_within_a_quarter(knee: int, slope: float) -> None:
    for seed in range(3):
        conclusion, _ = run_sweep(synthetic(logistic(knee, slope), seed), LONG)
        assert conclusion.capacity is not None
        assert 0.7 * knee - 1 <= conclusion.capacity.estimate <= 1.25 * knee


def test_level_one_fails() -> None:
    conclusion, history = run_sweep(synthetic(lambda _: 0.3))
    assert conclusion.outcome is SweepOutcome.INFEASIBLE
    assert conclusion.grade is Grade.INFEASIBLE
    assert conclusion.capacity is not None
    assert conclusion.capacity.estimate == 0
    assert history.requests < 100


def test_a_dead_backend_is_infeasible_after_few_requests() -> None:
    conclusion, history = run_sweep(synthetic(lambda _: 1.0))
    assert conclusion.outcome is SweepOutcome.INFEASIBLE
    assert history.requests <= 16


def test_it_never_fails_up_to_the_maximum() -> None:
    conclusion, history = run_sweep(synthetic(lambda _: 0.0), Bounds(max_level=40))
    assert conclusion.grade is Grade.AT_MAX
    assert conclusion.capacity is not None
    assert conclusion.capacity.estimate == 40
    assert max(stage.level for stage in history.stages) == 40
    assert sum(stage.evidence[0].n for stage in history.at_level(40)) >= 300  # a full verdict, not a screen


@pytest.mark.parametrize("bounds", [Bounds(min_level=1, max_level=1), Bounds(min_level=6, max_level=6)])
def test_a_single_level_is_simply_judged(bounds: Bounds) -> None:
    good, history = run_sweep(synthetic(lambda _: 0.0), bounds)
    assert good.grade is Grade.AT_MAX
    assert {stage.level for stage in history.stages} == {bounds.min_level}
    bad, _ = run_sweep(synthetic(lambda _: 0.3), bounds)
    assert bad.outcome is SweepOutcome.INFEASIBLE


def test_levels_below_the_minimum_are_never_measured() -> None:
    conclusion, history = run_sweep(synthetic(cliff(3)), Bounds(min_level=8, max_level=64))
    assert conclusion.outcome is SweepOutcome.INFEASIBLE
    assert min(stage.level for stage in history.stages) == 8
    assert conclusion.capacity is not None
    assert conclusion.capacity.high == 7


def test_nothing_above_a_hole_is_published_once_it_is_seen() -> None:
    """Levels 10..14 are bad, 15..60 are good: a search that lands in the hole stays below it."""

    def ratio(level: int) -> float:
        return 0.4 if 10 <= level <= 14 or level > 60 else 0.0

    landed = 0
    for seed in range(6):
        conclusion, history = run_sweep(synthetic(ratio, seed, tail=lambda level: 0.1 if level < 8 else 0.6), LONG)
        assert conclusion.capacity is not None
        if any(10 <= stage.level <= 14 for stage in history.stages):
            landed += 1
            assert conclusion.capacity.estimate <= 9
        else:
            assert conclusion.capacity.estimate <= 60
    assert landed


# -------------------------------------------------------------------------------------------------------------- budgets
@pytest.mark.parametrize(
    ("bounds", "code"),
    [
        (Bounds(requests=300, requests_per_level=0), EndReason.REQUEST_BUDGET),
        (Bounds(duration_s=60.0), EndReason.TIME_BUDGET),
        (Bounds(overload_s=0.0), EndReason.OVERLOAD_BUDGET),
    ],
)
def test_budgets_end_the_sweep(bounds: Bounds, code: EndReason) -> None:
    conclusion, history = run_sweep(synthetic(logistic(30.0)), bounds)
    assert conclusion.why.code is code
    assert conclusion.outcome is SweepOutcome.CALIBRATED
    assert conclusion.grade in (Grade.PROVISIONAL, Grade.CERTIFIED)
    assert history.requests <= 1300


def test_without_any_good_level_a_spent_budget_is_inconclusive() -> None:
    conclusion, _ = run_sweep(synthetic(lambda _: 0.0), Bounds(requests=1, requests_per_level=0, min_level=2))
    assert conclusion.outcome in (SweepOutcome.INCONCLUSIVE, SweepOutcome.CALIBRATED)
    assert conclusion.grade is not Grade.CERTIFIED


@pytest.mark.parametrize("seed", range(4))
def test_a_level_inside_the_indifference_zone_is_given_up(seed: int) -> None:
    """True ratio 1 %: no affordable test decides, so the sweep ends instead of spending the whole budget there."""
    conclusion, history = run_sweep(synthetic(lambda _: 0.01, seed), Bounds(min_level=4, max_level=4, requests=5000))
    assert history.requests <= 900
    assert conclusion.why.code in (EndReason.INDIFFERENCE_ZONE, EndReason.AT_MAX, EndReason.INFEASIBLE)


def test_overload_counts_only_stages_above_the_zone() -> None:
    _, history = run_sweep(synthetic(cliff(10)), LONG)
    above = sum(stage.duration_s for stage in history.stages if stage.level > 10)
    assert 0.0 < overload_s(history) <= above


# ----------------------------------------------------------------------------------------------------------------- ramp
def with_stage(
    history: History, level: int, tail: float | None, *, bits: str = "0" * 24, waiting: float = 0.0
) -> History:
    measured = synthetic(lambda _: 0.0).stage(History((P99,)), Measure(level, Test.SCREEN, 96, ""))
    evidence = replace(measured.evidence[0], bits=bits, violation_at_s=tuple(float(i) for i in range(bits.count("1"))))
    stage: Stage = replace(
        measured, evidence=(evidence,), tail_ratio=(tail,), server=ServerLoadPeak(waiting_requests=waiting)
    )
    return replace(history, stages=(*history.stages, stage))


@pytest.mark.parametrize(
    ("tails", "bits", "waiting", "factor"),
    [
        ((0.1, 0.1), "0" * 24, 0.0, 2.0),  # far from the limit: doubles
        ((None, None), "0" * 24, 0.0, 2.0),  # nothing known about the tail
        ((0.4, 0.7), "0" * 24, 0.0, 1.36),  # aimed at 0.9: smaller step
        ((0.4, 0.9), "0" * 24, 0.0, 1.25),  # never below the least
        ((0.1, 0.1), "0" * 60 + "1", 0.0, 1.5),  # a violation was seen
        ((0.1, 0.1), "0" * 24, 3.0, 1.4),  # the engine queues
        ((0.4, 0.9), "0" * 24, 3.0, 1.15),  # the engine queues and the tail is near the limit
    ],
)
def test_the_brake_of_the_ramp(
    tails: tuple[float | None, float | None], bits: str, waiting: float, factor: float
) -> None:
    history = with_stage(with_stage(History((P99,)), 20, tails[0]), 40, tails[1], bits=bits, waiting=waiting)
    step = next_step(history, Bounds())
    assert isinstance(step, Measure)
    assert step.test is Test.SCREEN
    assert step.level == int(40 * factor + 1e-9)


def test_a_screen_that_ends_undecided_above_three_allowances_ends_the_ramp() -> None:
    history = with_stage(with_stage(History((P99,)), 20, 0.1), 40, 0.1, bits=("0" * 31 + "1") * 3)
    step = next_step(history, Bounds())
    assert isinstance(step, Measure)
    assert step.test is Test.VERDICT


def test_the_ramp_at_most_doubles_and_never_leaves_the_bounds() -> None:
    player = synthetic(cliff(300))
    _, history = run_sweep(player, Bounds(max_level=400, duration_s=1e9, overload_s=1e9))
    highest = 1
    for stage in history.stages:
        assert stage.level <= min(400, 2 * highest)
        highest = max(highest, stage.level)


# ------------------------------------------------------------------------------------------------- several objectives
def test_the_smallest_capacity_of_several_objectives_counts() -> None:
    objectives = (P99, parse_objective("e2e p95 <= 1.5s"))

    class Two(Synthetic):
        def sample(self, level: int, n: int) -> np.ndarray:
            return np.where(self.rng.random(n) < (0.3 if level > 24 else 0.0), 2.0, 0.5)

    conclusion, _ = run_sweep(Player(Two(lambda _: 0.0, np.random.default_rng(3)), objectives), LONG)
    assert conclusion.capacity is not None
    assert 20 <= conclusion.capacity.estimate <= 24


@pytest.mark.parametrize(("text", "allowance"), [("ttft p95 <= 1s", 0.05), ("ttft p90 <= 1s", 0.1)])
def test_lower_quantiles_need_fewer_requests(text: str, allowance: float) -> None:
    objective = parse_objective(text)
    player = Player(Synthetic(logistic(30.0, 8.0, allowance), np.random.default_rng(5)), (objective,))
    conclusion, history = run_sweep(player, LONG)
    assert conclusion.capacity is not None
    assert 20 <= conclusion.capacity.estimate <= 36
    assert history.requests < 1300


def test_the_cap_of_an_objective_for_short_prompts_and_one_for_all_is_the_smaller() -> None:
    """Every other prompt is short; its objective breaks at 12, the one for all at 48."""
    objectives = (parse_objective("ttft p99 <= 1s for prompts <= 1024 tokens"), parse_objective("e2e p99 <= 9s"))

    class Classes(Player):
        def stage(self, history: History, measure: Measure) -> Stage:
            stage = super().stage(history, measure)
            short, every = stage.evidence
            halved = [index for index, bit in enumerate(short.bits) if bit == "1" and index % 2 == 0]
            times_s = dict(
                zip([i for i, bit in enumerate(short.bits) if bit == "1"], short.violation_at_s, strict=True)
            )
            part = replace(short, bits=short.bits[::2], violation_at_s=tuple(times_s[index] for index in halved))
            return replace(stage, evidence=(part, every))

    class TwoLimits(Synthetic):
        def sample(self, level: int, n: int) -> np.ndarray:
            values = np.where(self.rng.random(n) < (0.3 if level > 12 else 0.0), 2.0, 0.5)
            return np.where(self.rng.random(n) < (0.3 if level > 48 else 0.0), 10.0, values)

    conclusion, history = run_sweep(Classes(TwoLimits(lambda _: 0.0, np.random.default_rng(4)), objectives), LONG)
    assert conclusion.capacity is not None
    assert 9 <= conclusion.capacity.estimate <= 12
    assert any(stage.evidence[0].n < stage.evidence[1].n for stage in history.stages)


def test_an_objective_that_no_level_can_meet_is_named() -> None:
    """The promises contradict each other: one always fails, the other never does."""
    objectives = (P99, parse_objective("e2e p99 <= 100ms"))
    player = Player(Synthetic(lambda _: 0.0, np.random.default_rng(1)), objectives)  # every latency is 0.5 s
    conclusion, history = run_sweep(player, LONG)
    assert conclusion.outcome is SweepOutcome.INFEASIBLE
    assert "e2e p99 <= 100ms" in conclusion.reason
    assert "ttft" not in conclusion.reason
    assert history.requests < 100


# -------------------------------------------------------------------------------------------- a world that changes
class Changing(Synthetic):
    """Everything fails from request `first` to `last`; afterwards, or from then on, `ratio` is `then`."""

    first: int = 10**9
    last: int = 10**9
    then: object = None
    seen: int = 0

    def sample(self, level: int, n: int) -> np.ndarray:
        values = super().sample(level, n)
        places = np.arange(self.seen, self.seen + n)
        self.seen += n
        if self.then is not None and self.seen > self.first:
            self.ratio = self.then  # type: ignore[assignment]  # test shorthand
        return np.where((places >= self.first) & (places < self.last), 2.0, values)


@pytest.mark.parametrize("hit", [3, 8])
def test_a_backend_that_dies_in_mid_level_and_returns_costs_no_capacity(hit: int) -> None:
    source = Changing(cliff(24), np.random.default_rng(2))
    source.first, source.last = 400, 400 + hit
    conclusion, history = run_sweep(Player(source), LONG)
    assert conclusion.capacity is not None
    assert 14 <= conclusion.capacity.estimate <= 24
    assert sum(stage.evidence[0].exceedances for stage in history.stages) >= hit


def test_a_capacity_that_falls_in_mid_sweep_is_not_missed() -> None:
    """From 60 to 30 after 500 requests; what was seen before still counts, so the answer may lie between."""
    found = []
    for seed in range(6):
        source = Changing(cliff(60), np.random.default_rng(seed))
        source.first, source.last, source.then = 500, 500, cliff(30)
        conclusion, _ = run_sweep(Player(source), LONG)
        assert conclusion.outcome is SweepOutcome.CALIBRATED
        assert conclusion.capacity is not None
        found.append(conclusion.capacity.estimate)
    assert sum(estimate <= 33 for estimate in found) >= 5


def test_organic_traffic_above_a_level_takes_it_out_of_the_search() -> None:
    """The floor rises in mid-sweep: no lower level is measured, and what was certified below stays the answer."""
    history, player = History((P99,)), synthetic(cliff(24))
    certified = 0
    while not certified:
        step = next_step(history, LONG)
        assert isinstance(step, Measure)
        history = replace(history, stages=(*history.stages, player.stage(history, step)))
        certified = search_state(history, LONG).certified
    raised = replace(LONG, min_level=40)
    while isinstance(step := next_step(history, raised), Measure):
        assert step.level >= 40
        history = replace(history, stages=(*history.stages, player.stage(history, step)))
    assert step.grade is Grade.CERTIFIED
    assert step.capacity is not None
    assert step.capacity.estimate == certified
    assert step.why.code is EndReason.LIVE_TRAFFIC


def test_a_ramp_whose_floor_rises_goes_on_above_it() -> None:
    history = with_stage(with_stage(History((P99,)), 2, 0.1), 4, 0.1)
    step = next_step(history, Bounds(min_level=20))
    assert isinstance(step, Measure)
    assert step.level == 20


# ------------------------------------------------------------------------------------------- when a stage must end
def test_an_overloaded_stage_ends_with_the_budget_and_a_harmless_one_goes_on() -> None:
    bad = with_stage(History((P99,)), 8, 0.9, bits="01" * 12)
    good = with_stage(bad, 4, 0.1)
    spent = Bounds(overload_s=0.0)
    assert must_leave(bad, spent)
    assert not must_leave(good, spent)
    assert not must_leave(bad, LONG)
    assert must_leave(good, Bounds(duration_s=0.0))


def test_after_the_overload_budget_the_answer_still_gets_its_test() -> None:
    conclusion, history = run_sweep(synthetic(cliff(24)), Bounds(overload_s=0.001))
    assert conclusion.grade is Grade.CERTIFIED
    assert conclusion.capacity is not None
    assert conclusion.capacity.estimate <= 24
    assert conclusion.why.code is EndReason.OVERLOAD_BUDGET
    assert len([stage.level for stage in history.stages if stage.level > 24]) == 1


# ------------------------------------------------------------------------------------------------ replay, bad input
def test_replaying_any_prefix_gives_the_same_steps() -> None:
    player = synthetic(logistic(40.0))
    _, history = run_sweep(player)
    for index, step in enumerate(player.steps):
        prefix = History(history.objectives, history.stages[:index])
        assert next_step(prefix, Bounds()) == step


def test_a_history_of_another_version_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="version 99"):
        History((P99,), (), version=99)


def test_an_invalid_stage_is_repeated_once() -> None:
    player = synthetic(logistic(40.0))
    invalid_once: list[int] = []

    def invalidate(level: int) -> tuple[str, ...]:
        if level >= 8 and not invalid_once:
            invalid_once.append(level)
            return ("generator saturated: late",)
        return ()

    player.invalidate = invalidate
    conclusion, history = run_sweep(player, LONG)
    index = next(index for index, stage in enumerate(history.stages) if stage.audit.reasons)
    assert history.stages[index + 1].level == history.stages[index].level
    assert conclusion.outcome is SweepOutcome.CALIBRATED


def test_a_saturated_generator_ends_the_sweep_below_itself() -> None:
    player = synthetic(lambda _: 0.0)
    player.invalidate = lambda level: ("generator saturated: late",) if level >= 16 else ()
    conclusion, history = run_sweep(player, LONG)
    assert conclusion.why.code is EndReason.INVALID_MEASUREMENT
    assert "generator saturated: late" in conclusion.reason, "the audit's own words are part of the reason"
    assert conclusion.capacity is not None
    assert conclusion.capacity.estimate < 16
    assert conclusion.grade is not Grade.CERTIFIED or conclusion.capacity.estimate <= 8
    assert len(history.stages) < 12


def test_a_generator_that_is_always_saturated_is_inconclusive() -> None:
    player = synthetic(lambda _: 0.0)
    player.invalidate = lambda _: ("generator saturated: late",)
    conclusion, history = run_sweep(player)
    assert conclusion == Conclusion(SweepOutcome.INCONCLUSIVE, None, None, conclusion.why)
    assert conclusion.why.code is EndReason.INVALID_MEASUREMENT
    assert len(history.stages) == 2


def test_the_time_budget_ends_a_closing_test_too() -> None:
    conclusion, history = run_sweep(synthetic(logistic(30.0)), Bounds(duration_s=40.0))
    assert conclusion.why.code is EndReason.TIME_BUDGET
    assert history.elapsed_s < 60.0


def test_a_stage_without_samples_says_nothing() -> None:
    nothing = capacity_posterior([ObjectiveData(0.01, ())], 1, 64)
    empty = capacity_posterior([ObjectiveData(0.01, (Counts(8, 0, 0),))], 1, 64)
    assert np.array_equal(nothing.weights, empty.weights)
