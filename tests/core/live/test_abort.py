"""Live users are told apart from probes, and a sweep ends when they suffer beyond what is allowed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from calibrator.core.live.abort import AbortWatch
from calibrator.core.records.harm import Abort, AbortLimits, AbortReason
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sample import Failure, FailureKind, Label, Phase, Sample
from calibrator.core.records.server_load import Histogram, ServerLoad

OBJECTIVE = parse_objective("ttft p99 <= 200ms")
BOUNDS = (0.1, 0.25, 1.0, math.inf)
LIMITS = AbortLimits(live_exceedances=5, live_refusals=3, probe_failures=4, preemptions=10, kv_usage_ratio=0.95)


def ttft(good: float, late: float) -> Histogram:
    return Histogram(BOUNDS, (good, good, good + late, good + late))


def load(good: float = 0.0, late: float = 0.0, running: float = 8.0, **more: float | str | None) -> ServerLoad:
    plain = ServerLoad("vllm", running, 0.0, 0.5, 0.0, "1", refused_total=0.0, ttft_s=ttft(good, late))
    return replace(plain, **more)  # type: ignore[arg-type] # a table of fields


def watch(limits: AbortLimits = LIMITS, budget_s: float = 120.0) -> AbortWatch:
    return AbortWatch((OBJECTIVE,), limits, budget_s)


def sample(request_id: int, ttft_s: float | None = 0.05, failure: Failure | None = None, cached: int = 0) -> Sample:
    return Sample(
        request_id, Label(1, Phase.COUNTED), "c", True, 100, 0.0, 1.0, ttft_s, failure=failure,
        prompt_tokens=1000, completion_tokens=10, cached_tokens=cached,
    )  # fmt: skip


def look(watched: AbortWatch, now_s: float, live: ServerLoad | None, probes: int = 1) -> Abort | None:
    """`live`: the page without the probes that are in flight beside."""
    if live is not None and live.running_requests is not None:
        live = replace(live, running_requests=live.running_requests + probes)
    return watched.look(now_s, live, probes)


def reason(abort: Abort | None) -> AbortReason | None:
    return None if abort is None else abort.reason


@pytest.mark.parametrize(
    ("now", "wanted"),
    [
        (load(100, 4), None),  # below the limit
        (load(0, 6), AbortReason.LIVE_LATENCY),
        (load(500, 5), None),  # within the zone: 2 % of 505 are allowed
        (load(0, 50, running=0.0), None),  # nobody live: whoever was late, it was not a user
        (load(refused_total=2.0), None),
        (load(refused_total=4.0), AbortReason.LIVE_REFUSALS),
        (load(preemptions_total=9.0), None),
        (load(preemptions_total=10.0), AbortReason.PREEMPTIONS),
        (load(preemptions_total=99.0, running=0.0), None),
        (load(kv_usage_ratio=0.94), None),
        (load(kv_usage_ratio=0.95), AbortReason.KV_USAGE),
        (load(kv_usage_ratio=1.0, running=0.0), None),
        (load(process_start="2"), AbortReason.RESTART),
        (load(process_start="2", running=0.0), AbortReason.RESTART),  # also with nobody live
        (load(process_start=None), None),  # what is not told is no change
        (load(running_requests=None, preemptions_total=99.0), None),  # organic unknown
    ],
)
def test_one_scrape_after_a_quiet_one(now: ServerLoad, wanted: AbortReason | None) -> None:
    before = load(running=now.running_requests or 0.0)
    watched = watch()
    assert look(watched, 1.0, before) is None
    assert reason(look(watched, 2.0, now)) is wanted


def test_nothing_is_watched_without_limits() -> None:
    watched = watch(AbortLimits(None, None, None, None, None, None, None), math.inf)
    look(watched, 1.0, load())
    worst = load(0, 500, refused_total=99.0, preemptions_total=99.0, kv_usage_ratio=1.0)
    assert look(watched, 2.0, worst) is None
    assert look(watched, 60.0, None) is None
    assert watched.harm.live_exceedances == 500, "it is counted all the same"


def test_late_probes_are_no_users_whoever_notices_first() -> None:
    """The engine counts twenty late probes before, while and after they end here."""
    watched = watch()
    watched.look(1.0, load(running=28.0), 20)
    for request_id in range(20):
        watched.started(request_id, 1.0)
    assert watched.look(2.0, load(0, 20, running=28.0), 20) is None, "in flight for longer than the bound"
    for request_id in range(20):
        watched.ended(sample(request_id, ttft_s=0.5))
    assert watched.look(3.0, load(0, 20, running=28.0), 20) is None
    assert watched.harm.live_exceedances == 0
    assert reason(watched.look(4.0, load(0, 25, running=28.0), 20)) is AbortReason.LIVE_LATENCY
    assert watched.harm.live_exceedances == 5


def test_a_probe_between_limit_and_bucket_bound_hides_no_user() -> None:
    """The limit is 200 ms, the engine counts above 250 ms: a probe of 220 ms is not in its count."""
    watched = watch()
    watched.look(1.0, load(running=28.0), 20)
    for request_id in range(20):
        watched.started(request_id, 1.0)
        watched.decided(request_id, 0, violated=True)
        watched.ended(sample(request_id, ttft_s=0.22))
    assert reason(watched.look(2.0, load(20, 6, running=28.0), 20)) is AbortReason.LIVE_LATENCY


def test_a_gauge_that_lags_makes_no_users_out_of_probes() -> None:
    watched = watch()
    for second, probes in enumerate((50, 50, 20, 2)):
        gauge = 50.0  # still what it was before our probes left
        assert watched.look(float(second), load(0, 99.0 * second, running=gauge), probes) is None
    assert watched.harm.most_organic == 0


def test_violations_within_the_zone_never_add_up() -> None:
    """An hour at 50 live requests a second, 1 % of them late: half of the zone's upper end."""
    watched = watch()
    for second in range(3600):
        now = load(49.5 * second, 0.5 * second)
        assert look(watched, float(second), now) is None


def test_overload_seconds_are_counted_and_budgeted() -> None:
    watched = watch(replace(LIMITS, live_exceedances=None), budget_s=3.0)
    found = [reason(look(watched, float(second), load(0, 3.0 * second))) for second in range(5)]
    assert found == [None, None, None, AbortReason.OVERLOAD, AbortReason.OVERLOAD]
    assert watched.harm.live_overload_s == 4.0


@pytest.mark.parametrize(("running", "wanted"), [(8.0, AbortReason.PROBE_FAILURES), (0.0, None)])
def test_failing_probes_count_beside_live_traffic_only(running: float, wanted: AbortReason | None) -> None:
    watched = watch()
    look(watched, 1.0, load(running=running))
    for request_id in range(4):
        watched.ended(sample(request_id, None, Failure(FailureKind.STATUS, "broken", 500)))
    assert reason(look(watched, 2.0, load(running=running, refused_total=4.0))) is wanted
    assert watched.harm.live_refusals == 0, "all four were ours"


@pytest.mark.parametrize(
    "failure",
    [
        Failure(FailureKind.STATUS, "full", 503),
        Failure(FailureKind.STATUS, "full", 429),
        Failure(FailureKind.STATUS, "full", 529),
        Failure(FailureKind.ERROR_EVENT, "full"),
        Failure(FailureKind.ERROR_EVENT, "full", 529),
    ],
)
@pytest.mark.parametrize(("refused_total", "wanted"), [(4.0, None), (None, AbortReason.PROBE_FAILURES)])
def test_refused_probes_hurt_nobody_where_the_engine_counts_whom_it_refuses(
    refused_total: float | None, wanted: AbortReason | None, failure: Failure
) -> None:
    watched = watch()
    look(watched, 1.0, load(refused_total=refused_total and 0.0))
    for request_id in range(4):
        watched.ended(sample(request_id, None, failure))
    assert reason(look(watched, 2.0, load(refused_total=refused_total))) is wanted


def test_refusals_within_the_zone_never_add_up_and_those_beyond_it_do() -> None:
    watched = watch()
    for second in range(3600):
        assert look(watched, float(second), load(49.0 * second, refused_total=0.9 * second)) is None
    for second in range(3600, 3602):
        found = look(watched, float(second), load(49.0 * second, refused_total=3240.0 + 4.0 * (second - 3599)))
    assert reason(found) is AbortReason.LIVE_REFUSALS


@pytest.mark.parametrize(("probes", "wanted"), [(0, None), (1, AbortReason.LIVE_LATENCY)])
def test_what_users_meet_without_a_probe_beside_them_is_none_of_our_doing(
    probes: int, wanted: AbortReason | None
) -> None:
    watched = watch()
    for second in range(10):
        found = look(watched, float(second), load(0, 5.0 * second, refused_total=5.0 * second), probes)
    assert reason(found) is wanted


@pytest.mark.parametrize(("running", "wanted"), [(8.0, AbortReason.BLIND), (0.0, None)])
def test_metrics_that_stop_beside_live_traffic_end_it(running: float, wanted: AbortReason | None) -> None:
    watched = watch()
    assert look(watched, 0.0, None) is None, "an engine without metrics was never seen"
    look(watched, 1.0, load(running=running))
    assert look(watched, 10.0, None) is None
    assert reason(look(watched, 11.0, None)) is wanted


def test_a_counter_that_falls_is_a_restart_where_no_start_time_is_told() -> None:
    watched = watch()
    look(watched, 1.0, load(process_start=None, output_tokens_total=500.0))
    assert reason(look(watched, 2.0, load(process_start=None, output_tokens_total=3.0))) is AbortReason.RESTART


@pytest.mark.parametrize(("hits_per_s", "wanted"), [(800.0, None), (300.0, AbortReason.PREFIX_HITS)])
def test_live_prompts_that_lose_their_cached_prefixes(hits_per_s: float, wanted: AbortReason | None) -> None:
    """Before the sweep 80 % of the tokens were found. Our own prompts, which are never found, do not count."""
    watched, found = watch(), None
    for second in range(60):
        own = 20 * second
        for request_id in range(20 if second else 0):
            watched.ended(sample(request_id))
        found = found or watched.look(
            float(second),
            load(
                prefix_queried_tokens_total=100_000.0 + 1000.0 * (second + own) + 20_000.0,  # twenty in flight
                prefix_hit_tokens_total=96_000.0 + hits_per_s * second,
                running=28.0,
            ),
            20 if second else 0,
        )
    assert reason(found) is wanted
    assert watched.harm.prefix_hit_ratio == pytest.approx(hits_per_s / 1000.0, abs=0.05) or wanted


def test_objectives_that_live_traffic_cannot_be_held_against_are_not_watched() -> None:
    """Whose prompts are longer than the objective's is not known of live requests."""
    short = AbortWatch((parse_objective("ttft p99 <= 200ms for prompts <= 100 tokens"),), LIMITS, 120.0)
    short.look(1.0, load(), 0)
    assert short.look(2.0, load(0, 500), 0) is None


def test_answers_of_ours_are_told_from_live_ones_in_every_form() -> None:
    """In time and said so early; without streaming, where only the end is known; cancelled; of an unknown start."""
    both = AbortWatch((OBJECTIVE, parse_objective("e2e p99 <= 1s")), LIMITS, 120.0)
    both.look(1.0, load(running=12.0), 4)
    for request_id in range(4):
        both.started(request_id, 1.0)
    both.decided(0, 0, violated=False)
    both.decided(1, 0, violated=None)
    both.ended(sample(0))
    both.ended(replace(sample(1, ttft_s=None), stream=False, duration_s=0.9))
    both.ended(replace(sample(2, ttft_s=None), cancelled=True, prompt_tokens=None))
    both.ended(sample(9))
    assert both.look(2.0, load(3.0, 3.0, running=12.0), 1) is None
    harm = both.harm
    assert (harm.live_exceedances, harm.live_requests) == (1, 4), "one of ours was late, one may still be"


def test_an_engine_without_preemptions_or_latencies_is_watched_for_the_rest() -> None:
    watched = watch()
    bare = ServerLoad("vllm", 8.0, 0.0)
    assert look(watched, 1.0, bare) is None
    assert look(watched, 2.0, bare) is None
    assert watched.harm.most_organic == 8
