"""What a sweep did to live users, and why one was ended for it: values, and what
they mean for the next try. `core.live.abort` computes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class AbortReason(StrEnum):
    """Contract words of `sweep_aborts_total{reason}`."""

    LIVE_LATENCY = "live_latency"  # live requests exceed their limit
    OVERLOAD = "overload"  # they did so for as long as the overload budget allows
    LIVE_REFUSALS = "live_refusals"
    PROBE_FAILURES = "probe_failures"
    PREEMPTIONS = "preemptions"
    KV_USAGE = "kv_usage"
    PREFIX_HITS = "prefix_hits"  # live prompts are found less often in the prefix cache
    RESTART = "restart"  # of the engine
    BLIND = "blind"  # the engine's metrics stopped answering while live requests were in flight


OF_THE_LEVEL = frozenset(  # reasons that a lower level takes away
    {
        AbortReason.LIVE_LATENCY,
        AbortReason.OVERLOAD,
        AbortReason.LIVE_REFUSALS,
        AbortReason.PROBE_FAILURES,
        AbortReason.PREEMPTIONS,
        AbortReason.KV_USAGE,
    }
)
GENTLER_RATIO = 0.8


@dataclass(frozen=True, slots=True)
class Abort:
    """Why a sweep must end at once."""

    reason: AbortReason
    words: str


@dataclass(frozen=True, slots=True)
class AbortLimits:
    """What live users may suffer from one sweep. None: not limited."""

    live_exceedances: int | None = 60  # beyond the share that the objectives' zone allows
    live_refusals: int | None = 30  # likewise
    probe_failures: int | None = 60
    preemptions: int | None = 500
    kv_usage_ratio: float | None = None  # full memory is how an engine works that memory limits
    prefix_hit_fall_ratio: float | None = 0.5
    blind_s: float | None = 10.0


@dataclass(frozen=True, slots=True)
class SweepLimits:
    """What one sweep may spend, beside its bounds. None: no limit of this kind."""

    requests: int | None = None
    tokens: int | None = None  # prompt and output together
    ends_at: float | None = None  # Unix seconds: its window closes


@dataclass(frozen=True, slots=True)
class Harm:
    """What live users met with during one sweep. Zero where the engine's metrics do not tell."""

    live_requests: int = 0  # answered
    live_exceedances: int = 0  # beyond a limit (counted from the engine's next bucket bound)
    live_overload_s: float = 0.0  # time in which they exceeded it more often than the zone allows
    live_refusals: int = 0
    preemptions: int = 0  # while live requests were in flight
    most_organic: int = 0  # live requests in flight
    prefix_hit_ratio_before: float | None = None  # of live prompts, since the engine started
    prefix_hit_ratio: float | None = None  # at its last reading


def ceiling(abort: Abort, level: int, most_organic: int) -> int | None:
    """The highest level of the next try, after one that users suffered from at `level`.

    None: the level was not the matter. Live traffic that alone reached it has made another level of it.
    """
    if abort.reason not in OF_THE_LEVEL or most_organic >= level:
        return None
    return max(1, math.floor(GENTLER_RATIO * level))
