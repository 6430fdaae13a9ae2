"""Not a real model? What a few requests at level 1 give away before a sweep.

**suspect_stub**: a long prompt costs no more than a short one. A prompt of n tokens is n passes through the weights;
2 P n operations at 10^15 a second make 0.5 us a token for P = 250 million parameters at the full speed of one H200.
Whatever needs less than `FLOOR_S_PER_TOKEN` does not read its prompts. The question is therefore not "is the
difference zero?" but "is it certainly below the floor?": with D = latency(long) - latency(short) and n more tokens,

    suspect      upper bound of D < FLOOR_S_PER_TOKEN * n   and   lower bound of D <= CARRYING_S_PER_TOKEN * n
    real         lower bound of D > FLOOR_S_PER_TOKEN * n
    unknown      else: silence, for a wrong warning would be read as a wrong cap

(the second condition: a server that is slower by more than bytes take to carry and to parse did read its prompt,
however fast). The bounds are distribution-free (Mann-Whitney 1947, Hodges-Lehmann 1963): of all differences
long_i - short_j, as many are cut off at an end as the rank sum may leave with probability 5 %. Both latencies are of
whole answers of equal length, so that an early first byte does not hide a late answer.

**suspect_cache**: (1) the server reports cached tokens for prompts that are new from their first word, beyond its own
template and one block; (2) the exact repeat of a prompt is answered without decoding: a prefix cache saves the prompt's
share, never the answer's, so an answer whose tokens arrive in less than half of the fastest decoding time of fresh
prompts was stored as a whole. Prefix reuse that the workload asks for is of no concern: these prompts share nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

FLOOR_S_PER_TOKEN = 0.5e-6
CARRYING_S_PER_TOKEN = 0.25e-6  # five bytes at 1 Gbit/s take 0.04 us, and a slow server needs more to parse them
ERROR = 0.05  # of each bound
LEAST = 3  # looks of a kind; three against three is the least that can say anything at 5 %
CACHE_BLOCK_TOKENS = 128  # largest block of a prefix cache seen in use; a template fills the first
CACHED_RATIO = 0.1  # of a fresh prompt
STORED_RATIO = 0.5  # of the fastest decoding
MIN_DECODING_S = 0.001  # shorter spans are the transport's


@dataclass(frozen=True, slots=True)
class CheckAnswer:
    """One answered request of the look; all answers have the same length."""

    prompt_tokens: int  # by the server's usage, else as wanted
    latency_s: float  # whole answer
    decoding_s: float | None = None  # first to last token; None where the answer is not streamed
    cached_tokens: int | None = None  # None: the server does not say


@dataclass(frozen=True, slots=True)
class StubCheck:
    """`repeats`: prompts of `short` sent once more, letter by letter."""

    short: Sequence[CheckAnswer] = ()
    long: Sequence[CheckAnswer] = ()
    repeats: Sequence[CheckAnswer] = ()


class Reading(StrEnum):
    """Of the prompt's price."""

    FLAT = "flat"
    GROWS = "grows"
    UNKNOWN = "unknown"


def read_price(looks: StubCheck) -> Reading:
    """Does a long prompt cost more than a short one?"""
    if min(len(looks.short), len(looks.long)) < LEAST:
        return Reading.UNKNOWN
    more_tokens = min(look.prompt_tokens for look in looks.long) - max(look.prompt_tokens for look in looks.short)
    if more_tokens <= 0:
        return Reading.UNKNOWN
    low_s, high_s = shift_bounds(
        [look.latency_s for look in looks.short], [look.latency_s for look in looks.long], ERROR
    )
    if low_s > FLOOR_S_PER_TOKEN * more_tokens:
        return Reading.GROWS
    is_flat = high_s < FLOOR_S_PER_TOKEN * more_tokens and low_s <= CARRYING_S_PER_TOKEN * more_tokens
    return Reading.FLAT if is_flat else Reading.UNKNOWN


def suspicions(looks: StubCheck, template_tokens: float) -> tuple[str, ...]:
    """Warnings, each starting with its name. `template_tokens`: what the server adds to each prompt, cached rightly."""
    warnings = []
    if read_price(looks) is Reading.FLAT:
        short, long = looks.short[0].prompt_tokens, looks.long[0].prompt_tokens
        warnings.append(
            f"suspect_stub: a prompt of {long} tokens is answered as fast as one of {short}: a stub, or something that "
            "does not read prompts, answers here; its capacity says nothing about a model's."
        )
    excess = [_excess_ratio(look, template_tokens) for look in looks.long]
    if len(excess) >= LEAST and min(excess) > CACHED_RATIO:
        warnings.append(
            f"suspect_cache: the server reports {looks.long[-1].cached_tokens} of {looks.long[-1].prompt_tokens} "
            "tokens as cached for prompts that it has never seen."
        )
    if _answers_are_stored(looks):
        warnings.append(
            "suspect_cache: a repeated prompt gets its whole answer without decoding: something in front of the model "
            "stores answers. Probes are never repeated, so the capacity is the model's; live traffic may see more."
        )
    return tuple(warnings)


def shift_bounds(lower: Sequence[float], upper: Sequence[float], error: float) -> tuple[float, float]:
    """One-sided bounds, each at `error`, of how far `upper` lies above `lower`. Both not empty."""
    differences = sorted(high - low for high in upper for low in lower)
    n, m = len(upper), len(lower)
    total, seen, cut = math.comb(n + m, n), 0, 0
    while (seen := seen + _rank_sums(n, m, cut)) <= error * total:
        cut += 1
    cut = max(0, cut - 1)
    return differences[cut], differences[-1 - cut]


def _rank_sums(n: int, m: int, statistic: int) -> int:
    """Orders of n + m values in which exactly `statistic` pairs lie the wrong way round (Mann-Whitney's U)."""
    if statistic < 0:
        return 0
    if n == 0 or m == 0:
        return int(statistic == 0)
    return _rank_sums(n - 1, m, statistic - m) + _rank_sums(n, m - 1, statistic)


def _excess_ratio(look: CheckAnswer, template_tokens: float) -> float:
    rightly = template_tokens + CACHE_BLOCK_TOKENS
    return ((look.cached_tokens or 0) - rightly) / look.prompt_tokens


def _answers_are_stored(looks: StubCheck) -> bool:
    fresh = [look.decoding_s for look in looks.short if look.decoding_s is not None]
    again = [look.decoding_s for look in looks.repeats if look.decoding_s is not None]
    if len(fresh) < LEAST or len(again) < 2 or min(fresh) < MIN_DECODING_S:
        return False
    return max(again) < STORED_RATIO * min(fresh)
