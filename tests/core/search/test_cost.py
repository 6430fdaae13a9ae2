"""What a sweep costs, against the figures of the simulation and of Wald's formulas (independently tabulated)."""

from __future__ import annotations

import pytest

from calibrator.core.records.history import Bounds, Evidence, History, Stage
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sweep import VerdictKind
from calibrator.core.search.cost import can_certify, passes_needed, sweep_cost
from calibrator.core.search.verdict import level_verdict
from calibrator.core.workload.classes import Workload, WorkloadClass

P99 = parse_objective("ttft p99 <= 500ms")
P999 = parse_objective("ttft p99.9 <= 500ms")
CHAT = Workload()


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("ttft p90 <= 1s", 35),  # 2 ln 19 / ln(0.95 / 0.8) = 34.3
        ("ttft p99 <= 1s", 388),  # 2 x 193.8
        ("ttft p99.9 <= 1s", 3922),  # ten times as many
    ],
)
def test_passes_needed_follow_from_the_zone(text: str, passes: int) -> None:
    assert passes_needed(parse_objective(text), 8) == passes


@pytest.mark.parametrize("level", [1, 2, 3, 64])
@pytest.mark.parametrize("text", ["ttft p99 <= 1s", "e2e p50 <= 1s", "ttft p95 <= 1s"])
def test_that_many_passes_and_no_fewer_certify_a_level_in_the_real_verdict(text: str, level: int) -> None:
    objective = parse_objective(text)

    def verdict(passes: int) -> VerdictKind:
        stage = Stage(level, 0.0, 100.0, 0.1, (Evidence("0" * passes),), ())
        return level_verdict(History((objective,), (stage,)), level).kind

    needed = passes_needed(objective, level)
    assert verdict(needed) is VerdictKind.WITHIN
    assert verdict(needed - 1) is VerdictKind.INCONCLUSIVE


def test_a_typical_search_costs_what_the_simulation_measured() -> None:
    """1,479 requests on average for P99 within 1..512."""
    cost = sweep_cost(Bounds(), (P99,), CHAT)
    assert cost.requests_expected == pytest.approx(1479, rel=0.10)
    assert cost.requests_bound == 1800 + 4 * 512
    assert cost.duration_bound_s == 1200.0


def test_tokens_follow_the_mix() -> None:
    mix = Workload((WorkloadClass("short", 3.0, 100, 10), WorkloadClass("long", 1.0, 500, 50)))
    cost = sweep_cost(Bounds(), (P99,), mix)
    assert (cost.prompt_tokens_bound, cost.output_tokens_bound) == (200 * cost.requests_bound, 20 * cost.requests_bound)
    assert cost.prompt_tokens_expected == 200 * cost.requests_expected
    assert cost.output_tokens_expected == 20 * cost.requests_expected


def test_the_strictest_objective_sets_the_price_and_the_budget_caps_it() -> None:
    lax = parse_objective("e2e p90 <= 2s")
    assert sweep_cost(Bounds(), (lax, P99), CHAT) == sweep_cost(Bounds(), (P99,), CHAT)
    assert sweep_cost(Bounds(), (lax,), CHAT).requests_expected < 400
    assert sweep_cost(Bounds(requests=200, requests_per_level=0), (P99,), CHAT).requests_expected == 200


@pytest.mark.parametrize(
    ("requests", "refused"),
    [(378, True), (379, False)],  # 388 passes + 3 to warm level 3 up = 391 = 379 + 4 x 3
)
def test_the_smallest_budget_that_can_certify(requests: int, refused: bool) -> None:  # noqa: FBT001 - a table's column
    message = can_certify(Bounds(requests=requests), (P99,), CHAT)
    assert (message is not None) is refused


def test_a_search_of_level_1_alone_is_cheaper_because_one_user_cannot_clump() -> None:
    assert can_certify(Bounds(1, 1, requests=191), (P99,), CHAT) is None  # 194 + 1 = 191 + 4 x 1
    assert can_certify(Bounds(1, 1, requests=190), (P99,), CHAT) is not None


def test_the_refusal_names_the_strictest_objective_and_a_budget_that_would_do() -> None:
    message = can_certify(Bounds(), (P99, P999), CHAT)
    assert message is not None
    assert "ttft p99.9" in message
    assert "Allow 3913 requests or more" in message
    assert can_certify(Bounds(requests=3913), (P99, P999), CHAT) is None


def test_an_objective_for_some_prompts_needs_more_requests_of_all() -> None:
    scoped = parse_objective("ttft p99 <= 500ms for prompts <= 128 tokens")
    mix = Workload((WorkloadClass("short", 1.0, 100, 10), WorkloadClass("long", 3.0, 500, 50)))
    assert can_certify(Bounds(requests=1500), (scoped,), mix) is not None  # 4 x 388 > 1,512
    assert can_certify(Bounds(requests=1600), (scoped,), mix) is None


@pytest.mark.parametrize(
    ("text", "workload"),
    [
        ("ttft p99 <= 500ms", Workload((WorkloadClass(stream=False),))),  # no first token to be seen
        ("ttft p99 <= 500ms for prompts <= 100 tokens", CHAT),  # every prompt is longer
    ],
)
def test_an_objective_that_nothing_is_judged_by_is_refused(text: str, workload: Workload) -> None:
    message = can_certify(Bounds(), (parse_objective(text),), workload)
    assert message is not None
    assert message.startswith("No class")
