"""What live users sent over some time: lengths of prompts and answers, prefix reuse, how busy the engine was.

A `LiveMix` is the difference of two scrapes of one replica, or the sum of such differences over time and replicas.
Mixes can be added (`summed`), so a day is kept as a few dozen of them. Drift compares two mixes; the mirror workload is
built from one.

Each observation in a histogram is a request that ended, so histograms describe the requests, not their arrival. They
are None for an engine without them. A sum keeps the histogram whose bounds most observations share: replicas of one
kind have the same bounds, and counts under other bounds cannot be added.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from calibrator.core.records.server_load import Histogram, ServerLoad, grown, has_restarted


@dataclass(frozen=True, slots=True)
class LiveMix:
    """Totals over `seconds` of replica time."""

    seconds: float = 0.0
    busy_s: float = 0.0  # requests in flight, integrated over time
    prompts: Histogram | None = None  # prompt tokens of requests that ended
    outputs: Histogram | None = None
    prompt_tokens: float = 0.0  # of all requests; 0: not reported
    output_tokens: float = 0.0
    queried_tokens: float = 0.0  # prompt tokens looked up in the prefix cache, and found there
    hit_tokens: float = 0.0

    @property
    def requests(self) -> float:
        """Requests that ended, by the histogram of prompt lengths."""
        return 0.0 if self.prompts is None else self.prompts.total

    @property
    def hit_ratio(self) -> float | None:
        """Of prefix cache lookups; None: there were none."""
        return min(1.0, self.hit_tokens / self.queried_tokens) if self.queried_tokens > 0.0 else None

    @property
    def in_flight(self) -> float:
        """Mean requests in flight."""
        return self.busy_s / self.seconds if self.seconds > 0.0 else 0.0


def mix_between(before: ServerLoad, now: ServerLoad, seconds: float) -> LiveMix | None:
    """Of one replica. None: it restarted in between, or another engine took its place: the differences mean nothing."""
    if before.engine != now.engine or has_restarted(before, now):
        return None
    in_flight = ((before.in_flight_requests or 0.0) + (now.in_flight_requests or 0.0)) / 2.0
    return LiveMix(
        seconds=seconds,
        busy_s=in_flight * seconds,
        prompts=_since(now.prompt_tokens, before.prompt_tokens),
        outputs=_since(now.output_tokens, before.output_tokens),
        prompt_tokens=grown(now.prompt_tokens_total, before.prompt_tokens_total) or 0.0,
        output_tokens=grown(now.output_tokens_total, before.output_tokens_total) or 0.0,
        queried_tokens=grown(now.prefix_queried_tokens_total, before.prefix_queried_tokens_total) or 0.0,
        hit_tokens=grown(now.prefix_hit_tokens_total, before.prefix_hit_tokens_total) or 0.0,
    )


def summed(mixes: Iterable[LiveMix]) -> LiveMix:
    parts = tuple(mixes)
    return LiveMix(
        seconds=math.fsum(part.seconds for part in parts),
        busy_s=math.fsum(part.busy_s for part in parts),
        prompts=_added(part.prompts for part in parts),
        outputs=_added(part.outputs for part in parts),
        prompt_tokens=math.fsum(part.prompt_tokens for part in parts),
        output_tokens=math.fsum(part.output_tokens for part in parts),
        queried_tokens=math.fsum(part.queried_tokens for part in parts),
        hit_tokens=math.fsum(part.hit_tokens for part in parts),
    )


def _since(now: Histogram | None, before: Histogram | None) -> Histogram | None:
    return None if now is None or before is None else now.since(before)


def _added(histograms: Iterable[Histogram | None]) -> Histogram | None:
    by_bounds: dict[tuple[float, ...], tuple[float, ...]] = {}
    for one in histograms:
        if one is not None:
            known = by_bounds.get(one.bounds, (0.0,) * len(one.bounds))
            by_bounds[one.bounds] = tuple(a + b for a, b in zip(known, one.counts, strict=True))
    most = max(by_bounds.items(), key=lambda item: item[1][-1], default=None)
    return None if most is None else Histogram(*most)
