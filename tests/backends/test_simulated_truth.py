"""The judge is judged: by arithmetic where arithmetic can answer, by a count of its own levels elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from calibrator.backends.simulated.parameters import PARAMETER_SETS, WORKLOADS, EngineParameters, Faults, Refusal
from calibrator.backends.simulated.truth import BOUNDARY_REQUESTS, TruthQuestion, count_level, true_capacity
from calibrator.backends.simulated.virtual_loop import VirtualRequest, run_level
from calibrator.core.records.objective import Objective, parse_objective
from calibrator.core.workload.classes import Workload, WorkloadClass

# Four slots, everybody alike: above four, somebody waits for a slot.
FOUR = EngineParameters(slots=4, decode_base_s=0.01, prefill_per_token_s=1e-5, prefix_cache_tokens=0)
ALIKE = Workload((WorkloadClass(prompt_tokens=100, output_tokens=10),))


def objectives(*texts: str) -> tuple[Objective, ...]:
    return tuple(parse_objective(text) for text in texts)


def capacity(parameters: EngineParameters, workload: Workload, *texts: str, requests: int = 4000) -> int:
    return true_capacity(parameters, workload, objectives(*texts), boundary_requests=requests).capacity


def test_where_only_slots_limit_the_capacity_is_the_slots() -> None:
    """A free slot costs at most two steps (the running one and one's own), a taken one about ten."""
    assert capacity(FOUR, ALIKE, "ttft p99 <= 30ms") == 4
    assert capacity(replace(FOUR, slots=8), ALIKE, "ttft p99 <= 30ms") == 8


def test_each_metric_is_counted() -> None:
    """Ten steps of 10 ms and a millisecond per prompt that joins; 20 tokens in a step at most, so ITL stays small."""
    assert capacity(FOUR, ALIKE, "e2e p90 <= 50ms") == 0
    assert capacity(FOUR, ALIKE, "e2e p90 <= 125ms") == 4
    assert capacity(FOUR, ALIKE, "itl p90 <= 9ms") == 0
    generous = true_capacity(FOUR, ALIKE, objectives("itl p90 <= 14ms", "tpot p90 <= 14ms"), max_level=40)
    assert (generous.capacity, generous.at_max) == (40, True)  # who waits in the queue has no gaps


def test_all_objectives_must_hold_and_the_strictest_decides() -> None:
    assert capacity(FOUR, ALIKE, "ttft p99 <= 30ms", "e2e p99 <= 10s") == 4
    assert capacity(FOUR, ALIKE, "ttft p99 <= 30ms", "e2e p99 <= 50ms") == 0


def test_an_objective_for_short_prompts_ignores_the_long_ones() -> None:
    mix = Workload((WorkloadClass("short", 9, 50, 5), WorkloadClass("long", 1, 4000, 5)))
    slow = EngineParameters(decode_base_s=0.005, prefill_per_token_s=1e-4, prefix_cache_tokens=0)
    assert capacity(slow, mix, "ttft p99 <= 300ms") == 0  # a long prompt alone takes 400 ms
    assert capacity(slow, mix, "ttft p99 <= 300ms for prompts <= 100 tokens") > 0


@pytest.mark.parametrize("faults", [Faults(truncate_ratio=0.03), Faults(reset_ratio=0.03), Faults(hang_ratio=0.03)])
def test_failed_requests_exceed_every_objective(faults: Faults) -> None:
    level = count_level(replace(FOUR, faults=faults), ALIKE, objectives("ttft p99 <= 10s", "e2e p99 <= 10s"), 2, 4000)
    assert level.exceedance_ratios == pytest.approx((0.03, 0.03), abs=0.011)
    assert not level.holds


def test_refusals_limit_the_capacity_to_slots_and_queue() -> None:
    """Who comes at the end of a step finds in the queue those whom the freed slots have not taken in yet."""
    assert capacity(replace(FOUR, max_queue=3), ALIKE, "ttft p99 <= 10s") in (5, 6, 7)
    assert capacity(FOUR, ALIKE, "ttft p99 <= 1s") > 20


@pytest.mark.parametrize(
    ("name", "text"),
    [("seed", "ttft p99 <= 300ms"), ("small", "ttft p99 <= 300ms"), ("long_prompts", "ttft p99 <= 400ms"),
     ("tight_memory", "ttft p99 <= 100ms"), ("large", "tpot p99 <= 50ms")],
)  # fmt: skip
def test_the_boundary_is_counted_out_and_holds_on_another_seed(name: str, text: str) -> None:
    """At least 100,000 requests on both sides together; an independent count sides with it next to the boundary."""
    sla = objectives(text)
    truth = true_capacity(PARAMETER_SETS[name], WORKLOADS[name], sla)
    levels = {level.level: level for level in truth.levels}
    inside, outside = levels[truth.capacity], levels[truth.capacity + 1]
    assert inside.holds
    assert not outside.holds
    assert inside.requests + outside.requests >= BOUNDARY_REQUESTS
    assert all(level.holds for level in truth.levels if level.level <= truth.capacity)
    assert exceedance(name, sla, truth.capacity - 2) < 0.01
    assert exceedance(name, sla, truth.capacity + 3) > 0.01


def exceedance(name: str, sla: Sequence[Objective], users: int) -> float:
    """By another count: sort all latencies, look where the limit falls."""
    values: list[float] = []

    def note(request: VirtualRequest) -> None:
        values.append(request.ttft_s if sla[0].metric == "ttft" else request.tpot_s)

    run_level(PARAMETER_SETS[name], WORKLOADS[name], users, 20_000, note, seed=77)
    return sum(value > sla[0].limit_s for value in values) / len(values)


def test_a_question_survives_the_way_to_another_process() -> None:
    parameters = replace(FOUR, refusal=Refusal.ERROR_EVENT, faults=Faults(stall_ratio=0.1, refusal=Refusal.STATUS_503))
    question = TruthQuestion(parameters, WORKLOADS["seed"], objectives("itl p90 <= 20ms", "ttft p99 <= 1s"), 64)
    assert TruthQuestion.loads(question.dumps()) == question
