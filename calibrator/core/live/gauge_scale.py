"""Whether an engine's gauges count each of our requests exactly once: a check without a table of names and labels.

With k of our probes in flight and no live traffic, running + waiting must read about k. There may be live traffic from
the first scrape on, so it is not the reading that is compared but its movement with our own count:

    gauge = scale * ours + organic        scale 1: right; 2, 3, 4: a total with its parts, or ranks with the same work

For each scale the organic load is followed as in `core.live.organic_load`: the estimate moves only as far as the
interval left by our own count forces it to. At the right scale our ramps move nothing; at a wrong one each of them
does. A scale above one is assumed once scale 1 has moved `MOVED` requests in `STEPS` scrapes and that scale explains
three quarters of it. Live traffic cannot imitate this: it would have to come and go with our probes, several times and
in the same number, while steering removes a probe for each live request that comes.

Below one, movement shows nothing, because that steering keeps the reading constant while live traffic moves. There the
reading itself is the sign: it is lower than our own count alone (`lacks_ours`), `BLIND_SCRAPES` times in a row.

Called by `core.live.organic_load` with every scrape; `core.live.metrics_sanity` uses the same rule between sweeps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

SCALES = (2.0, 3.0, 4.0)
MOVED = 4.0  # requests
STEPS = 3
EXPLAINED = 0.25  # what may be left of the movement
BLIND_SCRAPES = 3  # consecutive scrapes that lack our requests: the page is not that of the engine under load
FEWER_RATIO = 0.7


def lacks_ours(gauge: float, fewest: int) -> bool:
    """Whether a gauge is too low to include even the fewest that our requests can have been, given the lag."""
    return gauge < FEWER_RATIO * fewest - 1.0


class GaugeFault(StrEnum):
    """Reason codes."""

    TOO_MANY = "gauges_count_too_many"
    TOO_FEW = "gauges_count_too_few"


@dataclass(slots=True)
class _Organic:
    """The organic load under the assumption of one scale."""

    scale: float
    latest: float | None = None
    moved: float = 0.0
    steps: int = 0

    def add(self, in_flight: float, fewest: int, most: int) -> None:
        low, high = in_flight - self.scale * most, in_flight - self.scale * fewest
        before = self.latest
        self.latest = high if before is None else min(max(before, low), high)
        step = 0.0 if before is None else abs(self.latest - before)
        self.moved += step
        self.steps += step >= 1.0


@dataclass(slots=True)
class GaugeScale:
    """One for each sweep. A `fault` is permanent."""

    fault: GaugeFault | None = None
    words: str = ""  # the evidence
    _fewer: int = 0
    _right: _Organic = field(default_factory=lambda: _Organic(1.0))
    _wrong: tuple[_Organic, ...] = field(default_factory=lambda: tuple(_Organic(scale) for scale in SCALES))

    def scraped(self, in_flight: float, fewest: int, most: int) -> None:
        """One scrape, and the fewest and most that ours can have been, given the lag."""
        if self.fault is not None:
            return
        for organic in (self._right, *self._wrong):
            organic.add(in_flight, fewest, most)
        self._fewer = self._fewer + 1 if lacks_ours(in_flight, fewest) else 0
        scale = self._scale()
        if self._fewer >= BLIND_SCRAPES:
            self.fault = GaugeFault.TOO_FEW
            self.words = f"they show {in_flight:.0f} in flight with {fewest} of ours"
        elif scale is not None:
            self.fault = GaugeFault.TOO_MANY
            self.words = f"they rise and fall by {scale:.0f} with each of ours"

    def _scale(self) -> float | None:
        right = self._right
        if right.steps < STEPS or right.moved < MOVED:
            return None
        best = min(self._wrong, key=lambda organic: organic.moved)
        return best.scale if best.moved <= EXPLAINED * right.moved else None
