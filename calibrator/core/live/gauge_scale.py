"""Do an engine's gauges count each of our requests once? A safety net that needs no table of names and labels.

With k probes of ours in flight and nobody else, running + waiting must read about k. Users may be there from the first
look on, so it is not the reading that is compared but its movement with ours:

    gauge = scale * ours + organic        scale 1: right; 2, 3, 4: a total beside its parts, or ranks with the same work

For each scale the organic load is followed as `live.organic_load` does it: it moves only as far as the interval that
our own count leaves compels it. With the right scale our ramps move nothing; with a wrong one each of them does. A
scale above one is believed once scale 1 was moved `MOVED` requests in `STEPS` scrapes, and that scale explains three
quarters of it. Users cannot imitate this: they would have to come and go with our probes, several times and in the same
number, while steering takes a probe away for each that comes.

Below one movement says nothing, for exactly that steering makes a reading that stands still of users that move. There
the reading itself is the sign: it is smaller than ours alone, `FEWER_LOOKS` scrapes in a row and allowing for the lag.

Pure; fed by `live.organic_load` with every scrape.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

SCALES = (2.0, 3.0, 4.0)
MOVED = 4.0  # requests
STEPS = 3
EXPLAINED = 0.25  # what may be left of the movement
FEWER_LOOKS = 3
FEWER_RATIO = 0.7


class GaugeFault(StrEnum):
    """Reason codes."""

    TOO_MANY = "gauges_count_too_many"
    TOO_FEW = "gauges_count_too_few"


@dataclass(slots=True)
class _Organic:
    """As it would be at one scale."""

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
    """One for each sweep. Once there is a `fault` it stays."""

    fault: GaugeFault | None = None
    words: str = ""  # what was seen
    _fewer: int = 0
    _right: _Organic = field(default_factory=lambda: _Organic(1.0))
    _wrong: tuple[_Organic, ...] = field(default_factory=lambda: tuple(_Organic(scale) for scale in SCALES))

    def saw(self, in_flight: float, fewest: int, most: int) -> None:
        """One scrape, and between which numbers ours were when it was taken, whatever its lag."""
        if self.fault is not None:
            return
        for organic in (self._right, *self._wrong):
            organic.add(in_flight, fewest, most)
        self._fewer = self._fewer + 1 if in_flight < FEWER_RATIO * fewest - 1.0 else 0
        scale = self._scale()
        if self._fewer >= FEWER_LOOKS:
            self.fault = GaugeFault.TOO_FEW
            self.words = f"they show {in_flight:.0f} in flight beside {fewest} of ours"
        elif scale is not None:
            self.fault = GaugeFault.TOO_MANY
            self.words = f"they rise and fall by {scale:.0f} with each of ours"

    def _scale(self) -> float | None:
        right = self._right
        if right.steps < STEPS or right.moved < MOVED:
            return None
        best = min(self._wrong, key=lambda organic: organic.moved)
        return best.scale if best.moved <= EXPLAINED * right.moved else None
