"""Live traffic beside our probes: how much there is, how many probes make up a level, which samples belong to it.

The engine's gauges count everybody: in flight = running + queued = organic + ours. They may be up to `LAG_S` old, and
while our own count moves, nobody knows which of its values they contain. So a scrape gives an interval,

    organic in [gauge - most of ours, gauge - fewest of ours]      over the lags that are still possible,

and the estimate moves only as far as the interval compels it. While ours is steady the interval is a point, whatever
the lag; while it moves, the estimate is never wrong by more than our own movement. Following the gauge at once instead
would take our own ramp for users, answer it, and oscillate.

**Lag.** Our own ramps show it. For each of `LAGS_S`, organic = gauge - ours(then) makes a series; with a wrong lag each
movement of ours is in it twice. The lags whose series moved least (sum of steps, within `TIE`) are possible.

**Steering.** probes = level - organic, at least `PROBE_FLOOR`; lowered at once, raised by at most `RISE_RATIO` of the
level a scrape (DESIGN section 2).

**Binning.** A sample counts for the level if the total was there when it started: users of ours + organic within
`BAND_RATIO` of it. Nothing that happens after its start is asked, so neither fast nor slow requests are preferred. A
change of organic load is seen late; when a scrape shows one larger than the band, whatever started since it may have
begun (the scrape before, less the lag) is taken back: `doubt_s`.

**Floor.** Below the median of `MEMORY_S` no level can be held; such levels leave the candidate set.

**Unknown.** An engine without these gauges, or whose gauges do not count each of our requests once
(`live.gauge_scale`), shows no organic load: the probes are then the whole level, and the record says so. What such
gauges told before is taken back. Gauges that fall silent keep their last word: without a scrape nothing is steered.

Times are seconds on one monotonic clock. Called by `service.sweep.live_traffic` and `service.sweep.level_runner`.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field

from calibrator.core.live.gauge_scale import GaugeScale

LAG_S = 2.0
LAGS_S = (0.0, 0.5, 1.0, 1.5, 2.0)
LAG_STEP_S = 0.5
TIE = 4.0  # requests: two movements of ours by two
FADE = 0.98  # a scrape: the lag may change with the load
RISE_RATIO = 0.1  # of the level, each scrape
BAND_RATIO = 0.07  # of the level; below 15 the total must be exact
BAND_LEAST = 0.5
PROBE_FLOOR = 1
MEMORY_S = 20.0
ROUNDING = 1e-9
POLL_S = 0.1  # our own events come so late


@dataclass(slots=True)
class _Series:
    """The organic load as it would be if the gauges were so old."""

    lag_s: float
    latest: float | None = None
    moved: float = 0.0  # sum of its steps, fading

    def add(self, organic: float) -> None:
        step = 0.0 if self.latest is None else abs(organic - self.latest)
        self.latest, self.moved = organic, FADE * self.moved + step


@dataclass(slots=True)
class OrganicWatch:
    """Fed with our own count at every poll and with every scrape, in order of time."""

    estimate: float | None = None  # organic in flight; None: not known
    looks: int = 0  # scrapes that counted requests
    doubt_s: float = math.inf  # at the last scrape: samples that started since then belong to no known level
    doubt: float = 0.0  # by how much the organic load changed then
    scale: GaugeScale = field(default_factory=GaugeScale)
    _most: float = 0.0  # of the estimate
    _ours: deque[tuple[float, int]] = field(default_factory=deque)
    _seen: deque[tuple[float, float]] = field(default_factory=deque)
    _seen_s: float = -math.inf
    _series: list[_Series] = field(default_factory=lambda: [_Series(lag_s) for lag_s in LAGS_S])

    def ours(self, at_s: float, in_flight: int) -> None:
        self._ours.append((at_s, in_flight))
        while len(self._ours) > 1 and self._ours[1][0] <= at_s - 2.0 * LAG_S:
            self._ours.popleft()

    def saw(self, asked_s: float, answered_s: float, in_flight: float) -> None:
        """A scrape that lasted from `asked_s` to `answered_s`."""
        was_blind = self.is_blind
        self.scale.saw(in_flight, *self._range(asked_s - LAG_S, answered_s))
        lags_s = self._possible_lags(asked_s, in_flight)
        ranges = [self._range(asked_s - lag_s, answered_s - lag_s) for lag_s in lags_s]
        fewest, most = min(fewest for fewest, _ in ranges), max(most for _, most in ranges)
        self.looks += 1
        if self.is_blind:
            self.estimate, self.doubt, self.doubt_s = None, 0.0 if was_blind else self._most, -math.inf
            return
        low, high = max(0.0, in_flight - most), max(0.0, in_flight - fewest)
        before = self.estimate
        self.estimate = high if before is None else min(max(before, low), high)
        self._most = max(self._most, self.estimate)
        self.doubt = 0.0 if before is None else abs(self.estimate - before)
        self.doubt_s = (self._seen_s if self._seen else asked_s) - max(lags_s) - LAG_STEP_S / 2.0
        self._seen_s = answered_s
        self._seen.append((answered_s, self.estimate))
        while self._seen[0][0] < answered_s - MEMORY_S:
            self._seen.popleft()

    @property
    def is_blind(self) -> bool:
        """The gauges do not count each of our requests once."""
        return self.scale.fault is not None

    @property
    def floor(self) -> int:
        """Organic in flight as it usually is: levels up to here cannot be held."""
        if self.estimate is None or not self._seen:
            return 0
        return math.floor(statistics.median(value for _, value in self._seen) + 0.5)

    def _possible_lags(self, asked_s: float, in_flight: float) -> list[float]:
        """Ascending; at least one."""
        for series in self._series:
            then_s = asked_s - series.lag_s
            series.add(in_flight - self._range(then_s, then_s)[1])
        least = min(series.moved for series in self._series)
        return [series.lag_s for series in self._series if series.moved <= least + TIE]

    def _range(self, since_s: float, until_s: float) -> tuple[int, int]:
        """Fewest and most of ours; what was in force at the beginning counts."""
        counts = [0]
        for at_s, count in self._ours:
            if at_s <= since_s:
                counts = [count]
            elif at_s <= until_s + POLL_S:
                counts.append(count)
        return min(counts), max(counts)


def band(level: int) -> float:
    """How far the total may be from a level."""
    return max(BAND_LEAST, BAND_RATIO * level) + ROUNDING


def is_suspect(level: int, change: float) -> bool:
    """Has a change of the organic load made another level of this one?"""
    return change > max(1.0, band(level)) + ROUNDING


def probes_for(level: int, organic: float | None) -> int:
    """Probes that make up a level."""
    return level if organic is None else max(PROBE_FLOOR, level - math.floor(organic + 0.5))


def steered(level: int, organic: float | None, probes: int) -> int:
    """The same, from `probes` on, after one scrape."""
    return min(probes_for(level, organic), probes + max(1, math.ceil(RISE_RATIO * level)))


def is_on_level(level: int, organic: float | None, users: int) -> bool:
    """Does what starts now, beside `users` of ours, belong to this level?"""
    return organic is None or abs(users + organic - level) <= band(level)
