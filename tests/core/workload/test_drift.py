"""Other traffic is noticed and explained, the same traffic is not called other."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy.stats import entropy
from support.live_traffic import TOKEN_BOUNDS, lognormal, token_histogram

from calibrator.core.records.server_load import Histogram
from calibrator.core.workload.drift import (
    DriftPolicy,
    drift,
    in_buckets,
    is_enough,
    moved_most,
    stability_index,
    unlike_probes,
)
from calibrator.core.workload.live_mix import LiveMix

POLICY = DriftPolicy()


def lengths(median: int, n: int, seed: int) -> list[int]:
    draws, draw = random.Random(seed), lognormal(median, 0.7)
    return [draw(draws) for _ in range(n)]


def mix(median: int = 200, n: int = 600, seed: int = 1, hits: float = 0.3, looked_up: float = 100_000.0) -> LiveMix:
    return LiveMix(
        prompts=token_histogram(lengths(median, n, seed)), queried_tokens=looked_up, hit_tokens=hits * looked_up
    )


def test_the_index_is_the_sum_of_both_relative_entropies() -> None:
    live, reference = Histogram((1.0, 2.0, math.inf), (200.0, 500.0, 1000.0)), Histogram(
        (1.0, 2.0, math.inf), (500.0, 700.0, 1000.0)
    )  # fmt: skip
    p = (np.array([200, 300, 500]) + 0.5) / 1001.5
    q = (np.array([500, 200, 300]) + 0.5) / 1001.5
    assert stability_index(live, reference) == pytest.approx(entropy(p, q) + entropy(q, p))
    assert stability_index(reference, live) == pytest.approx(stability_index(live, reference))
    assert stability_index(live, live) == 0.0


def test_chance_alone_is_no_drift() -> None:
    """Two samples of the same traffic, as small as may be: none of 300 pairs passes the threshold."""
    found = [drift(mix(n=500, seed=seed), mix(n=500, seed=seed + 1000), POLICY) for seed in range(300)]
    assert not any(one.words for one in found)
    assert max(one.prompt_psi or 0.0 for one in found) < 0.15


def test_prompts_twice_as_long_are_drift_and_the_words_say_where() -> None:
    found = drift(mix(400, seed=2), mix(200), POLICY)
    assert found.prompt_psi is not None
    assert found.prompt_psi > 0.5
    assert found.words.startswith("prompts changed (stability index ")
    assert " tokens went from " in found.words


@pytest.mark.parametrize(("now", "then", "drifts"), [(0.3, 0.32, False), (0.1, 0.3, True), (0.9, 0.3, True)])
def test_prefix_hits_drift_either_way(now: float, then: float, drifts: bool) -> None:  # noqa: FBT001 - a column of the table
    found = drift(mix(hits=now), mix(hits=then, seed=2), POLICY)
    assert bool(found.words) is drifts
    assert found.hit_ratio_change == pytest.approx(now - then)
    assert not drifts or found.words == f"prefix hits went from {then:.0%} to {now:.0%}"


def test_too_little_says_nothing() -> None:
    found = drift(mix(800, n=100, looked_up=1000.0, hits=0.9), mix(200), POLICY)
    assert (found.prompt_psi, found.hit_ratio_change, found.words) == (None, None, "")
    assert drift(LiveMix(), LiveMix(), POLICY).words == ""


def test_other_bounds_cannot_be_compared() -> None:
    other = LiveMix(prompts=in_buckets(lengths(900, 600, 1), (100.0, math.inf)))
    assert drift(other, mix(), POLICY).prompt_psi is None


def test_what_can_be_compared_is_enough_of_something() -> None:
    assert is_enough(mix())
    assert not is_enough(mix(n=100))
    assert is_enough(LiveMix(queried_tokens=100_000.0)), "an engine that tells counters only"
    assert not is_enough(LiveMix())
    empty = Histogram((1.0, math.inf), (0.0, 0.0))
    assert stability_index(empty, empty) == 0.0


def test_buckets_count_as_engines_do() -> None:
    """A length that equals a bound lies below it."""
    assert in_buckets([1, 2, 3, 9999], TOKEN_BOUNDS).counts[:3] == (1.0, 2.0, 3.0)
    assert in_buckets([9999], TOKEN_BOUNDS).counts[-2:] == (0.0, 1.0)


def test_the_bucket_that_moved_most_is_named() -> None:
    now, then = in_buckets([10] * 9 + [9000], TOKEN_BOUNDS), in_buckets([10] * 10, TOKEN_BOUNDS)
    assert moved_most(now, then) in (
        "those of 5 to 10 tokens went from 100% to 90%",
        "those above 5000 tokens went from 0% to 10%",
    )


def test_users_unlike_the_probes_are_told_with_the_remedy() -> None:
    assert unlike_probes(mix(), lengths(200, 1000, 7), POLICY) == ""
    words = unlike_probes(mix(800), lengths(200, 1000, 7), POLICY)
    assert words.startswith("Live prompts differ from the probes'")
    assert words.endswith("Change the workload, or mirror live traffic.")
    assert unlike_probes(LiveMix(), lengths(200, 1000, 7), POLICY) == ""
    assert unlike_probes(mix(800), (), POLICY) == ""
