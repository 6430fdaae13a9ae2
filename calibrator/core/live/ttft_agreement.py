"""Whether the engine's own times to first token agree with ours.

An engine counts each request's time to first token in a histogram, from its arrival; we measure the same from the
moment we sent it. Over one stretch of time the two distributions must agree, up to the network and the width of a
bucket. Where they do not, something in between adds latency, or one of the two is wrong:

    delta = histogram at the end of the stretch - histogram at its start
    the engine's q-quantile lies in (low, high], between two bounds of its buckets; ours is one number t

    t > high + width   ours is later: a proxy or queue in front of the engine, the network, or a late client of ours
    t < low            ours is earlier, which nothing in between can cause: the histogram belongs to another engine, or
                       counts from another moment
    width = high - low: the engine's own uncertainty, allowed once more for what is in between

**Other requests.** Live users are in the same histogram, and at both ends of the stretch some requests are counted here
and not yet there. The stretch is compared only if the two counts differ by at most `STRANGERS` of ours. Then, whatever
the other requests' times, the q-quantile of ours lies between the engine's (q - STRANGERS) and (q + STRANGERS)
quantiles, whose buckets give low and high. Hence no extreme quantiles.

Called by `service.sweep.ttft_agreement`; a stretch is the counted part of one stage.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from calibrator.core.records.server_load import Histogram

QUANTILES = (0.5, 0.8)
STRANGERS = 0.1
MIN_REQUESTS = 40  # with fewer, the ends of the stretch matter more than that


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One quantile of one stretch: our value, and the bounds of the engine's (`high_s` may be infinite)."""

    level: int
    quantile: float
    ours_s: float
    low_s: float
    high_s: float

    @property
    def excess_s(self) -> float:
        """How far our value lies outside what the engine's bounds allow."""
        width_s = self.high_s - self.low_s
        return max(self.ours_s - self.high_s - width_s, self.low_s - self.ours_s)


def compare(level: int, delta: Histogram | None, ours_s: Sequence[float]) -> tuple[Disagreement, ...]:
    """The quantiles that disagree; none if the two cannot be compared."""
    n = len(ours_s)
    if delta is None or n < MIN_REQUESTS or abs(delta.total - n) > STRANGERS * n:
        return ()
    seen = [
        Disagreement(
            level,
            quantile,
            float(np.quantile(ours_s, quantile)),
            _bucket(delta, quantile - STRANGERS)[0],
            _bucket(delta, quantile + STRANGERS)[1],
        )
        for quantile in QUANTILES
    ]
    return tuple(one for one in seen if one.excess_s > 0.0)


def warning(found: Iterable[Disagreement]) -> str:
    """The worst case in words; empty: nothing disagrees."""
    worst = max(found, key=lambda one: one.excess_s, default=None)
    if worst is None:
        return ""
    meaning = (
        "something between us and the engine adds latency (a proxy, a queue, the network), or our client is late"
        if worst.ours_s > worst.high_s
        else "the histogram may belong to another engine, or count from another moment"
    )
    return (
        f"time to first token at {worst.level} in flight: we measure {_ms(worst.ours_s)} ms "
        f"(P{worst.quantile * 100:g}), the engine's own histogram says {_ms(worst.low_s)} to {_ms(worst.high_s)} ms; "
        f"{meaning}"
    )


def _bucket(histogram: Histogram, quantile: float) -> tuple[float, float]:
    """Bounds of the bucket that holds the quantile."""
    index = bisect_left(histogram.counts, quantile * histogram.total)
    return histogram.bounds[index - 1] if index else 0.0, histogram.bounds[index]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}" if math.isfinite(seconds) else "any number of"
