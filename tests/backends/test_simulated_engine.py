"""The step model: what a batch costs, who is in it, and that nothing gets lost. Costs are round numbers here."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrator.backends.simulated.engine import Engine, Fate, Job
from calibrator.backends.simulated.parameters import PARAMETER_SETS, WORKLOADS, EngineParameters, Faults
from calibrator.backends.simulated.prefix_cache import BLOCK_TOKENS, PrefixCache, block_hashes
from calibrator.backends.simulated.virtual_loop import VirtualRequest, run_level
from calibrator.core.workload.classes import Workload, WorkloadClass
from calibrator.errors import ConfigurationError

ROUND = EngineParameters(
    slots=4,
    decode_base_s=1.0,
    decode_per_request_s=0.1,
    prefill_fixed_s=0.5,
    prefill_per_token_s=0.01,
    prefill_chunk_tokens=1000,
    prefix_cache_tokens=0,
)


def run(engine: Engine[Job], jobs: Sequence[Job], max_repeats: int = 1) -> dict[Job, tuple[float, float]]:
    """(first token, end) of each job; all are submitted when their time has come."""
    coming = sorted(jobs, key=lambda job: job.arrived_s)
    first: dict[Job, float] = {}
    times: dict[Job, tuple[float, float]] = {}
    now_s = 0.0
    while len(times) < len(jobs):
        while coming and coming[0].arrived_s <= now_s:
            assert engine.submit(coming.pop(0))
        until_s = coming[0].arrived_s if coming else float("inf")
        step = engine.start_step(now_s, until_s=until_s, max_repeats=max_repeats)
        assert engine.kv_tokens <= engine.parameters.kv_capacity_tokens
        if step is None:
            now_s = until_s
            continue
        now_s += step.duration_s * step.repeats
        end = engine.finish_step()
        for job in end.prefilled:
            first.setdefault(job, now_s)
        times.update({job: (first[job], now_s) for job in end.finished})
    return times


def test_a_step_costs_its_base_its_decoding_requests_and_its_prompt_tokens() -> None:
    early, late = Job(100, 3, 0.0), Job(200, 2, 1.0)
    times = run(Engine(ROUND), [early, late])
    # Step 1: prompt of 100. Step 2: one decodes beside the prompt of 200. Step 3: both decode, both are done.
    assert times[early] == pytest.approx((1 + 0.5 + 1.0, 2.5 + (1 + 0.1 + 0.5 + 2.0) + (1 + 0.2)))
    assert times[late] == pytest.approx((6.1, 7.3))


def test_a_long_prompt_is_spread_over_steps_and_the_next_one_waits_its_turn() -> None:
    long, short = Job(1500, 1, 0.0), Job(100, 1, 0.0)
    times = run(Engine(ROUND), [long, short])
    assert times[long][0] == times[short][0] == pytest.approx((1 + 0.5 + 10.0) + (1 + 0.5 + 6.0))


def test_requests_run_in_the_order_in_which_they_came() -> None:
    jobs = [Job(10, 3 + index % 3, 0.0) for index in range(12)]
    times = run(Engine(ROUND), jobs)
    firsts = [times[job][0] for job in jobs]
    assert firsts == sorted(firsts)
    assert firsts[0] < firsts[1] == firsts[2] == firsts[3] < firsts[4]  # the first starts the engine; four slots


def test_a_request_that_comes_at_a_steps_end_misses_the_next_step() -> None:
    running = Job(100, 5, 0.0)
    coming = Job(100, 1, 2.5)  # exactly when the first step ends
    assert run(Engine(ROUND), [running, coming])[coming][0] == pytest.approx(2.5 + 1.1 + 2.6)


def test_concurrency_alone_costs_nothing() -> None:
    """With slots for all and no cost per request or prompt, level 1 and level 16 have the same latency."""
    free = EngineParameters(decode_base_s=0.01, prefix_cache_tokens=0)
    workload = Workload((WorkloadClass(prompt_tokens=50, output_tokens=5),))
    ends: dict[int, list[float]] = {1: [], 16: []}
    for users, durations in ends.items():
        run_level(free, workload, users, 300, lambda request, seen=durations: seen.append(request.e2e_s))
    assert max(ends[1]) == pytest.approx(0.05)
    assert max(ends[16]) <= 0.06 + 1e-9  # one step of waiting for the running one


TIGHT = replace(ROUND, kv_capacity_tokens=120, max_context_tokens=100)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40), st.floats(0, 60)), min_size=1, max_size=25),
    slots=st.integers(1, 8),
)
def test_preemption_and_leaps_lose_nothing_and_change_no_time(sizes: list[tuple[int, int, float]], slots: int) -> None:
    """Every request gets exactly its tokens, memory is empty at the end, and leaps are a matter of work only."""
    outcomes = []
    for max_repeats in (1, 1000):
        engine: Engine[Job] = Engine(replace(TIGHT, slots=slots))
        jobs = [Job(prompt, output, arrived_s) for prompt, output, arrived_s in sizes]
        times = run(engine, jobs, max_repeats)
        assert [job.made_tokens for job in jobs] == [output for _, output, _ in sizes]
        assert (engine.kv_tokens, engine.running, engine.waiting) == (0, 0, 0)
        assert engine.counters.generated_tokens == sum(output for _, output, _ in sizes)
        assert engine.counters.prompt_tokens == sum(prompt for prompt, _, _ in sizes)
        assert engine.counters.preemptions == sum(job.preemptions for job in jobs)
        outcomes.append([at_s for job in jobs for at_s in times[job]])
    assert outcomes[0] == pytest.approx(outcomes[1])


def test_full_memory_preempts_the_youngest_and_computes_it_again() -> None:
    old, young = Job(50, 40, 0.0), Job(50, 40, 0.0)
    engine: Engine[Job] = Engine(TIGHT)
    times = run(engine, [old, young])
    assert (old.preemptions, young.preemptions) == (0, 1)
    assert times[old][1] < times[young][1]
    roomy = run(Engine(replace(TIGHT, kv_capacity_tokens=1000)), [Job(50, 40, 0.0), again := Job(50, 40, 0.0)])
    assert times[young][1] > roomy[again][1]


@pytest.mark.parametrize("steps", [0, 1, 5], ids=["queued", "in its prompt", "decoding"])
def test_a_client_that_leaves_frees_its_place_and_its_memory(steps: int) -> None:
    engine: Engine[Job] = Engine(replace(ROUND, slots=1, prefill_chunk_tokens=600))
    leaver, next_one = Job(900, 50, 0.0), Job(10, 1, 0.0)
    engine.submit(leaver)
    engine.submit(next_one)
    for now_s in range(steps):
        engine.start_step(float(now_s + 1))
        engine.finish_step()
    engine.start_step(9.0)  # and in the middle of a step
    engine.cancel(leaver)
    assert leaver not in engine.finish_step().decoded
    assert (engine.running, engine.waiting, engine.kv_tokens) == (0, 1, 0)
    engine.start_step(10.0)
    assert engine.finish_step().finished == [next_one]
    engine.cancel(leaver)  # twice is no error
    assert engine.kv_tokens == 0


def test_a_full_queue_refuses() -> None:
    engine: Engine[Job] = Engine(replace(ROUND, max_queue=2))
    assert [engine.submit(Job(1, 1, 0.0)) for _ in range(4)] == [True, True, False, False]
    assert (engine.waiting, engine.counters.refused) == (2, 2)


def test_a_stall_delays_everybody_once() -> None:
    engine: Engine[Job] = Engine(ROUND)
    engine.stall(30.0)
    job = Job(100, 3, 0.0)
    assert run(engine, [job], max_repeats=1000)[job] == pytest.approx((32.5, 34.7))


def test_stalls_come_as_often_as_asked() -> None:
    engine: Engine[Job] = Engine(replace(ROUND, faults=Faults(stall_ratio=0.2, stall_s=100.0)))
    job = Job(1, 1000, 0.0)
    _, end_s = run(engine, [job], max_repeats=1000)[job]
    assert 130 <= end_s // 100 <= 270  # 200 expected, five standard deviations


def test_fates_are_dealt_by_their_ratios_and_cut_answers_short() -> None:
    faults = Faults(truncate_ratio=0.2, reset_ratio=0.1, hang_ratio=0.1)
    engine: Engine[Job] = Engine(replace(ROUND, faults=faults))
    jobs = [Job(1, 10, 0.0) for _ in range(2000)]
    for job in jobs:
        engine.submit(job)
    counts = {fate: sum(job.fate is fate for job in jobs) for fate in Fate}
    assert counts[Fate.TRUNCATED] == pytest.approx(400, abs=90)
    assert counts[Fate.RESET] == pytest.approx(200, abs=70)
    assert counts[Fate.HANGS] == pytest.approx(200, abs=70)
    assert all((job.output_tokens < 10) == (job.fate is not Fate.DONE) for job in jobs)


def test_the_prefix_cache_saves_the_known_blocks_and_forgets_the_oldest() -> None:
    words = [f"w{index}" for index in range(10 * BLOCK_TOKENS + 3)]
    blocks = block_hashes(words)
    assert len(blocks) == 10
    cache = PrefixCache(capacity_tokens=10 * BLOCK_TOKENS)
    assert cache.match(blocks) == 0
    cache.insert(blocks)
    assert cache.match(blocks) == 10 * BLOCK_TOKENS
    assert cache.match(block_hashes(["nonce", *words])) == 0  # different from the first token on
    assert cache.match(block_hashes(words[: 4 * BLOCK_TOKENS] + ["other"] * 40)) == 4 * BLOCK_TOKENS
    cache.insert(block_hashes([f"x{index}" for index in range(6 * BLOCK_TOKENS)]))
    assert cache.match(blocks) == 4 * BLOCK_TOKENS  # its end was used longer ago than its head
    assert (cache.queries, cache.hits) == ((10 + 10 + 10 + 6 + 10) * BLOCK_TOKENS, 18 * BLOCK_TOKENS)


def test_a_cached_prompt_is_quicker_but_never_free() -> None:
    engine: Engine[Job] = Engine(replace(ROUND, prefix_cache_tokens=10_000))
    blocks = block_hashes(["w"] * 320)
    first, second = Job(320, 1, 0.0, blocks), Job(320, 1, 100.0, blocks)
    times = run(engine, [first, second])
    assert times[first][0] == pytest.approx(1 + 0.5 + 3.2)
    assert times[second][0] - 100.0 == pytest.approx(1 + 0.5 + 0.01)
    assert (first.cached_tokens, second.cached_tokens) == (0, 319)


@pytest.mark.parametrize(
    "changes",
    [{"slots": 0}, {"decode_base_s": 0.0}, {"prefill_chunk_tokens": 4}, {"kv_capacity_tokens": 10}],
)
def test_impossible_engines_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        replace(ROUND, **changes)


@pytest.mark.parametrize("changes", [{"stall_s": -1}, {"hang_ratio": 2}, {"reset_ratio": 0.6, "hang_ratio": 0.6}])
def test_impossible_faults_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        Faults(**changes)


# ------------------------------------------------------------------------------- a second opinion, token by token
def brute_force(  # noqa: C901 - one plain loop, to be read beside the rules at the head of the engine
    p: EngineParameters, users: int, count: int, prompt: int, output: int
) -> list[float]:
    """TTFT of `count` requests by the plainest loop: one pass over all requests for each step, nothing remembered.

    Lengths vary uniformly by half. Shares no code with the engine.
    """
    rng = random.Random(7)

    def request(at_s: float) -> dict[str, float]:
        prompt_tokens, output_tokens = (round(size * rng.uniform(0.5, 1.5)) for size in (prompt, output))
        return {"came": at_s, "prompt": prompt_tokens, "left": output_tokens, "first": -1.0}

    queue = [request(0.013 * user) for user in range(users)]
    running: list[dict[str, float]] = []
    ttft_s: list[float] = []
    now_s = 0.0
    while len(ttft_s) < count + 10 * users:
        if not running and queue[0]["came"] > now_s:
            now_s = queue[0]["came"]
        decoding = [one for one in running if one["prompt"] == 0]
        budget = p.prefill_chunk_tokens - len(decoding)
        step_s = p.decode_base_s + p.decode_per_request_s * len(decoding)
        reached: list[dict[str, float]] = []
        for one in [*running, *queue]:
            if one in queue:
                if len(running) == p.slots or budget == 0 or (running and one["came"] >= now_s):
                    break
                queue.remove(one)
                running.append(one)
                step_s += p.prefill_fixed_s
            if one["prompt"] > 0:
                taken = min(one["prompt"], budget)
                one["prompt"] -= taken
                budget -= taken
                step_s += p.prefill_per_token_s * taken
                if one["prompt"] == 0:
                    reached.append(one)
        now_s += step_s
        for one in [*decoding, *reached]:
            one["left"] -= 1
            if one["first"] < 0:
                one["first"] = now_s
                ttft_s.append(now_s - one["came"])
            if one["left"] == 0:
                running.remove(one)
                queue.append(request(now_s))
    return sorted(ttft_s[10 * users :])


BASE = EngineParameters(slots=8, decode_base_s=0.005, decode_per_request_s=2e-4, prefill_per_token_s=2e-5,
                        prefill_chunk_tokens=512, prefix_cache_tokens=0)  # fmt: skip


@pytest.mark.parametrize("users", [4, 12, 24])
@pytest.mark.parametrize(
    ("slots", "prompt"), [(8, 200), (16, 200), (8, 400)], ids=["base", "slots doubled", "prompts doubled"]
)
def test_the_curve_moves_as_a_brute_force_count_predicts(users: int, slots: int, prompt: int) -> None:
    parameters = replace(BASE, slots=slots)
    wanted = brute_force(parameters, users, 4000, prompt, 12)
    seen: list[float] = []
    workload = Workload((WorkloadClass(prompt_tokens=prompt, output_tokens=12, spread_ratio=0.5),))

    def note(request: VirtualRequest) -> None:
        seen.append(request.ttft_s)

    run_level(parameters, workload, users, 4000, note)
    seen.sort()
    for quantile in (0.5, 0.9, 0.99):
        assert seen[int(quantile * 4000)] == pytest.approx(wanted[int(quantile * 4000)], rel=0.05)


def test_the_moves_are_large_enough_to_be_seen() -> None:
    """The comparison above would prove nothing if doubling changed nothing."""
    base = brute_force(BASE, 24, 2000, 200, 12)[1980]
    assert brute_force(replace(BASE, slots=16), 24, 2000, 200, 12)[1980] < 0.7 * base
    assert brute_force(BASE, 24, 2000, 400, 12)[1980] > 1.3 * base


def test_the_parameter_sets_are_limited_by_what_they_say() -> None:
    """Only the set that is short of memory ever preempts."""
    preemptions = {}
    for name, parameters in PARAMETER_SETS.items():
        seen = [0]

        def note(request: VirtualRequest, seen: list[int] = seen) -> None:
            seen[0] += request.preemptions

        run_level(parameters, WORKLOADS[name], 40, 1000, note)
        preemptions[name] = seen[0]
    assert preemptions.pop("tight_memory") > 0
    assert not any(preemptions.values())
