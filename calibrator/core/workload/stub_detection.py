"""Whether a real model answers: what a few requests at level 1 show before a sweep (the stub check).

**suspect_stub**: a long prompt costs no more than a short one. A prompt of n tokens is n passes through the weights;
2 P n operations at 10^15 per second take 0.5 us per token for P = 250 million parameters at the full speed of one H200.
A server that needs less than `FLOOR_S_PER_TOKEN` does not read its prompts. So the question is not "is the difference
zero?" but "is it certainly below the floor?". With D = latency(long) - latency(short) and n more tokens,

    suspect      upper bound of D < FLOOR_S_PER_TOKEN * n   and   lower bound of D <= CARRYING_S_PER_TOKEN * n
    real         lower bound of D > FLOOR_S_PER_TOKEN * n
    unknown      otherwise: no warning, because a wrong one would be taken for a wrong cap

(The second condition: a server that slows down by more than it takes to transfer and parse the bytes has read its
prompt, however fast.) The bounds are distribution-free (Mann-Whitney 1947, Hodges-Lehmann 1963): of all differences
long_i - short_j, as many are cut off at each end as the rank sum may leave with probability 5 %. Both latencies are of
whole answers of equal length, so that an early first byte does not hide a late answer.

**suspect_cache**: (1) the server reports cached tokens for prompts that are new from their first word, beyond its own
template and one block; or (2) an exact repeat of a prompt is answered without decoding. A prefix cache saves the
prompt's part, never the answer's, so an answer whose tokens arrive in less than half of the shortest decoding time of
new prompts was stored as a whole. Prefix reuse that the workload asks for plays no part: these prompts share nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

FLOOR_S_PER_TOKEN = 0.5e-6
CARRYING_S_PER_TOKEN = 0.25e-6  # five bytes at 1 Gbit/s take 0.04 us, and a slow server needs more to parse them
ERROR = 0.05  # of each bound
LEAST = 3  # answers of a kind; three against three is the least that can be significant at 5 %
CACHE_BLOCK_TOKENS = 128  # largest block size of a prefix cache known to be in use; a template fills the first
CACHED_RATIO = 0.1  # of a new prompt
STORED_RATIO = 0.5  # of the fastest decoding
MIN_DECODING_S = 0.001  # shorter spans are due to the transport


@dataclass(frozen=True, slots=True)
class CheckAnswer:
    """One answered request of the check; all answers have the same length."""

    prompt_tokens: int  # by the server's usage, else as wanted
    latency_s: float  # whole answer
    decoding_s: float | None = None  # first to last token; None: the answer is not streamed
    cached_tokens: int | None = None  # None: the server does not report it


@dataclass(frozen=True, slots=True)
class StubCheck:
    """`repeats`: exact repeats of prompts of `short`."""

    short: Sequence[CheckAnswer] = ()
    long: Sequence[CheckAnswer] = ()
    repeats: Sequence[CheckAnswer] = ()


class Reading(StrEnum):
    """How latency depends on prompt length."""

    FLAT = "flat"
    GROWS = "grows"
    UNKNOWN = "unknown"


def read_price(check: StubCheck) -> Reading:
    """Whether a long prompt costs more than a short one."""
    if min(len(check.short), len(check.long)) < LEAST:
        return Reading.UNKNOWN
    more_tokens = min(answer.prompt_tokens for answer in check.long) - max(
        answer.prompt_tokens for answer in check.short
    )
    if more_tokens <= 0:
        return Reading.UNKNOWN
    low_s, high_s = shift_bounds(
        [answer.latency_s for answer in check.short], [answer.latency_s for answer in check.long], ERROR
    )
    if low_s > FLOOR_S_PER_TOKEN * more_tokens:
        return Reading.GROWS
    is_flat = high_s < FLOOR_S_PER_TOKEN * more_tokens and low_s <= CARRYING_S_PER_TOKEN * more_tokens
    return Reading.FLAT if is_flat else Reading.UNKNOWN


def suspicions(check: StubCheck, template_tokens: float) -> tuple[str, ...]:
    """Warnings, each beginning with its code. `template_tokens`: added by the server, legitimately cached."""
    warnings = []
    if read_price(check) is Reading.FLAT:
        short, long = check.short[0].prompt_tokens, check.long[0].prompt_tokens
        warnings.append(
            f"suspect_stub: a prompt of {long} tokens is answered as fast as one of {short}: this is a stub, or "
            "does not read its prompts; its capacity says nothing about a model's."
        )
    excess = [_excess_ratio(answer, template_tokens) for answer in check.long]
    if len(excess) >= LEAST and min(excess) > CACHED_RATIO:
        warnings.append(
            f"suspect_cache: the server reports {check.long[-1].cached_tokens} of {check.long[-1].prompt_tokens} "
            "tokens as cached for prompts that it cannot have seen before."
        )
    if _answers_are_stored(check):
        warnings.append(
            "suspect_cache: a repeated prompt is answered without decoding: something in front of the model caches "
            "answers. Probes are never repeated, so the capacity is the model's; live traffic may see more."
        )
    return tuple(warnings)


def shift_bounds(lower: Sequence[float], upper: Sequence[float], error: float) -> tuple[float, float]:
    """One-sided bounds, each at `error`, of how far `upper` is above `lower`. Neither is empty."""
    differences = sorted(high - low for high in upper for low in lower)
    n, m = len(upper), len(lower)
    total, seen, cut = math.comb(n + m, n), 0, 0
    while (seen := seen + _rank_sums(n, m, cut)) <= error * total:
        cut += 1
    cut = max(0, cut - 1)
    return differences[cut], differences[-1 - cut]


def _rank_sums(n: int, m: int, statistic: int) -> int:
    """Orders of n + m values in which exactly `statistic` pairs are inverted (Mann-Whitney's U)."""
    if statistic < 0:
        return 0
    if n == 0 or m == 0:
        return int(statistic == 0)
    return _rank_sums(n - 1, m, statistic - m) + _rank_sums(n, m - 1, statistic)


def _excess_ratio(answer: CheckAnswer, template_tokens: float) -> float:
    legitimate = template_tokens + CACHE_BLOCK_TOKENS
    return ((answer.cached_tokens or 0) - legitimate) / answer.prompt_tokens


def _answers_are_stored(check: StubCheck) -> bool:
    fresh = [answer.decoding_s for answer in check.short if answer.decoding_s is not None]
    again = [answer.decoding_s for answer in check.repeats if answer.decoding_s is not None]
    if len(fresh) < LEAST or len(again) < 2 or min(fresh) < MIN_DECODING_S:
        return False
    return max(again) < STORED_RATIO * min(fresh)
