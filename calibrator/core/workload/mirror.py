"""The mirror workload: probes like the live traffic of the last hours, from the engine's own histograms and counters.

An engine tells how many prompts, and how many answers, fell into each bucket, not which prompt had which answer. So

1. `CARDS` lengths are laid into the buckets of either histogram at the quantiles (i + 1/2) / CARDS; each lies within
   the bucket that the source's quantile lies in, so every quantile agrees with the source within one bucket;
2. inside a bucket from a to b a length is a + (b - a) u^theta, u the place in the bucket. One theta for all buckets is
   chosen so that the mean agrees with the engine's token counters, as far as buckets allow; without counters theta = 1;
3. prompts and answers are paired at random (independent; seeded), but a pair that is longer than the longest prompt
   ever seen fits exchanges its answer with a shorter prompt, because the engine's context bounds the sum;
4. the cards are a deck of recorded sizes (`core.workload.classes`), dealt stratified.

The bucket without an upper end counts as its lower one: nobody knows more.

Prefix reuse is hits / queries of the prefix cache. `peak` weighs towards busy hours: only the busiest quarter of the
time slices counts, because that is when a cap is used.

Pure; fed by `service.backend.traffic`.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from calibrator.core.records.server_load import Histogram
from calibrator.core.workload.classes import MAX_PREFIX_REUSE, Workload, WorkloadClass
from calibrator.core.workload.live_mix import LiveMix, summed

CARDS = 256
LEAST_REQUESTS = 200.0  # below them a P99 of prompt lengths is a guess
LEAST_TOKENS = 20_000.0  # looked up in the prefix cache
PEAK_SHARE = 0.25  # of the slices
NAME = "mirrored"
_THETAS = (0.05, 20.0)  # nearly everything at the upper, or at the lower end of its bucket


class MirrorWeight(StrEnum):
    REQUESTS = "requests"  # every request alike
    PEAK = "peak"


@dataclass(frozen=True, slots=True)
class MirrorPolicy:
    """What of live traffic the probes copy."""

    lengths: bool = True
    prefix_reuse: bool = True
    over_s: float = 86_400.0
    weight: MirrorWeight = MirrorWeight.REQUESTS


@dataclass(frozen=True, slots=True)
class Mirrored:
    """The workload to use, and in words what it was made of or why it is the configured one."""

    workload: Workload
    words: str
    is_live: bool = True  # everything asked for was known


def mirrored(slices: Sequence[LiveMix], policy: MirrorPolicy, configured: Workload) -> Mirrored:
    """`slices`: of the time that the policy names."""
    live = summed(_chosen(slices, policy.weight))
    workload, said, missing = configured, [], []
    if policy.lengths:
        if live.prompts is not None and live.outputs is not None and _requests(live) >= LEAST_REQUESTS:
            stream = any(cls.stream for cls in configured.classes)
            sizes = _cards(live, live.prompts, live.outputs)
            limit = configured.classes[0].max_prompt_tokens  # one for all classes
            workload = replace(workload, classes=(WorkloadClass.recorded(NAME, sizes, stream=stream),)).cut(limit)
            said.append(f"the lengths of {_requests(live):.0f} live requests")
        else:
            missing.append(_too_few(live))
    if policy.prefix_reuse:
        if live.hit_ratio is not None and live.queried_tokens >= LEAST_TOKENS:
            workload = replace(workload, prefix_reuse_ratio=round(min(MAX_PREFIX_REUSE, live.hit_ratio), 3))
            said.append(f"their prefix reuse of {live.hit_ratio:.0%}")
        else:
            missing.append("the engine showed too few look-ups in its prefix cache")
    words = f"mirrored: {' and '.join(said)}" if said else ""
    if missing:
        words += f"{'; ' if words else ''}not mirrored, the configured workload stands in: {'; '.join(missing)}"
    return Mirrored(workload, words, is_live=not missing)


def _too_few(live: LiveMix) -> str:
    if live.prompts is None or live.outputs is None:
        return "the engine shows no histograms of prompt and answer lengths"
    return f"only {_requests(live):.0f} live requests were seen without probes, {LEAST_REQUESTS:.0f} are needed"


def _requests(live: LiveMix) -> float:
    return 0.0 if live.outputs is None else min(live.requests, live.outputs.total)


def _chosen(slices: Sequence[LiveMix], weight: MirrorWeight) -> Sequence[LiveMix]:
    """For the peak the busiest slices, and as many more as it takes to have enough requests."""
    if weight is MirrorWeight.REQUESTS:
        return slices
    busiest = sorted(slices, key=lambda one: one.in_flight, reverse=True)
    wanted, requests = math.ceil(PEAK_SHARE * len(busiest)), 0.0
    for index, one in enumerate(busiest):
        requests += one.requests
        if index + 1 >= wanted and requests >= LEAST_REQUESTS:
            return busiest[: index + 1]
    return busiest


# -------------------------------------------------------------------------------------------------------------- cards
def _cards(live: LiveMix, prompts: Histogram, outputs: Histogram) -> list[tuple[int, int]]:
    mean_prompt = live.prompt_tokens / prompts.total if live.prompt_tokens else None
    mean_output = live.output_tokens / outputs.total if live.output_tokens else None
    lengths, answers = laid(prompts, mean_prompt), laid(outputs, mean_output)
    random.Random(CARDS).shuffle(answers)  # noqa: S311 - probes are seeded so that sweeps repeat
    longest = max(_finite(prompts.bounds)[-1:] or [0.0])
    return _fitted(lengths, answers, max(longest, max(lengths) + min(answers)))


def laid(histogram: Histogram, mean: float | None = None) -> list[int]:
    """`CARDS` lengths, ascending. `mean`: what their mean shall be, as far as the buckets allow."""
    if mean is None:
        return _laid(histogram, 1.0)
    low, high = _THETAS
    for _ in range(24):  # the mean falls as theta grows
        theta = math.sqrt(low * high)
        low, high = (theta, high) if sum(_laid(histogram, theta)) / CARDS > mean else (low, theta)
    return _laid(histogram, math.sqrt(low * high))


def _laid(histogram: Histogram, theta: float) -> list[int]:
    return [_quantile(histogram, (index + 0.5) / CARDS, theta) for index in range(CARDS)]


def _quantile(histogram: Histogram, q: float, theta: float) -> int:
    """In the bucket of the source's own quantile: above its lower bound, at most its upper one."""
    rank = q * histogram.total
    index = bisect_left(histogram.counts, rank)
    before = histogram.counts[index - 1] if index else 0.0
    low = math.floor(histogram.bounds[index - 1]) if index else 0
    high = histogram.bounds[index]
    if high == math.inf:
        return low + 1
    place = (rank - before) / (histogram.counts[index] - before)
    return max(1, low + 1, min(math.floor(high), round(low + (high - low) * math.pow(place, theta))))


def _finite(bounds: tuple[float, ...]) -> list[float]:
    return [bound for bound in bounds if bound != math.inf]


def _fitted(lengths: list[int], answers: list[int], most: float) -> list[tuple[int, int]]:
    """Pairs of at most `most` tokens, where exchanging answers can do it; both marginals stay as they are."""
    for index in reversed(range(len(lengths))):  # the longest prompt chooses first
        if lengths[index] + answers[index] > most:
            other = min(range(len(answers)), key=lambda i: (answers[i], i) if i <= index else (math.inf, i))
            answers[index], answers[other] = answers[other], answers[index]
    return list(zip(lengths, answers, strict=True))
