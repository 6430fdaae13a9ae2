"""Live ("organic") traffic during a sweep: how much there is, how many probes make up a level, which samples belong to
it.

The engine's gauges count all requests: in flight = running + queued = organic + ours. They may be up to `LAG_S` old, so
while our own count changes it is not known which of its values they contain. A scrape therefore gives an interval,

    organic in [gauge - most of ours, gauge - fewest of ours]      over the lags that are still possible,

and the estimate moves only as far as the interval forces it to. While our count is steady the interval is a point,
whatever the lag; while it changes, the estimate is never off by more than that change. Following the gauge directly
would mistake our own ramp for users, compensate for it, and oscillate.

**Lag.** It shows in our own ramps. For each of `LAGS_S`, organic = gauge - ours(then) is a series that contains each
change of ours twice if the lag is wrong. The lags whose series moved least (sum of steps, within `TIE`) are possible.

**Steering.** probes = level - organic, at least `PROBE_FLOOR`; lowered at once, raised by at most `RISE_RATIO` of the
level per scrape (DESIGN section 2).

**Binning.** A sample belongs to the level if the total was at the level when it started: our users + organic within
`BAND_RATIO` of it. What happens after its start plays no part, so neither fast nor slow requests are favoured. A change
of organic load is noticed late; when a scrape shows one larger than the band, all samples that started since it may
have begun (the scrape before, minus the lag) are suspect and taken back: `suspect_since_s`.

**Floor.** No level below the median of the last `MEMORY_S` can be held; such levels leave the candidate set.

**Unknown.** An engine without these gauges, or whose gauges do not count each of our requests once
(`live.gauge_scale`), shows no organic load: the probes are then the whole level, and the record says so. Earlier
estimates from such gauges are discarded. When scrapes fail, the last estimate stays and nothing is steered.

Times are seconds on one monotonic clock. Called by `service.sweep.live_traffic`, `service.sweep.level_runner`,
`core.live.abort`, `core.live.metrics_sanity` and `core.publish.fleet`.
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
TIE = 4.0  # requests: two changes of ours by two
FADE = 0.98  # per scrape: the lag may change with the load
RISE_RATIO = 0.1  # of the level, each scrape
BAND_RATIO = 0.07  # of the level; below 15 the total must be exact
BAND_LEAST = 0.5
PROBE_FLOOR = 1
MEMORY_S = 20.0
ROUNDING = 1e-9
POLL_S = 0.1  # delay of our own events
KEPT_S = 2.0 * LAG_S  # of our own count: for the lag, and a scrape that takes as long


@dataclass(frozen=True, slots=True)
class OwnLoad:
    """Our own requests in flight over the last `KEPT_S`: (since when, how many), oldest first."""

    counts: tuple[tuple[float, int], ...] = ()

    def after(self, at_s: float, in_flight: int) -> OwnLoad:
        counts = (*self.counts, (at_s, in_flight))
        first = 0
        while first + 1 < len(counts) and counts[first + 1][0] <= at_s - KEPT_S:
            first += 1
        return OwnLoad(counts[first:])

    def between(self, since_s: float, until_s: float) -> tuple[int, int]:
        """Fewest and most, including the count in force at `since_s`; before the first count it was 0."""
        found = [0]
        for at_s, count in self.counts:
            if at_s <= since_s:
                found = [count]
            elif at_s <= until_s + POLL_S:
                found.append(count)
        return min(found), max(found)


def live_in_flight(gauge: float, ours: int) -> float:
    """Live requests in flight by a gauge that includes `ours` of our own.

    With the most that it may include (`OwnLoad.between` over `LAG_S`) the result is a lower bound; with the fewest, an
    upper one.
    """
    return max(0.0, gauge - ours)


@dataclass(slots=True)
class _Series:
    """The organic load under the assumption of one lag."""

    lag_s: float
    latest: float | None = None
    moved: float = 0.0  # sum of its steps, fading

    def add(self, organic: float) -> None:
        step = 0.0 if self.latest is None else abs(organic - self.latest)
        self.latest, self.moved = organic, FADE * self.moved + step


@dataclass(slots=True)
class OrganicEstimate:
    """Takes our own count at every poll, and every scrape, in order of time."""

    estimate: float | None = None  # organic in flight; None: not known
    scrapes: int = 0  # scrapes that counted requests
    suspect_since_s: float = math.inf  # by the last scrape: samples that started since then may be off the level
    change: float = 0.0  # of the organic load at the last scrape
    scale: GaugeScale = field(default_factory=GaugeScale)
    _most: float = 0.0  # of the estimate
    _ours: OwnLoad = field(default_factory=OwnLoad)
    _seen: deque[tuple[float, float]] = field(default_factory=deque)
    _seen_s: float = -math.inf
    _series: list[_Series] = field(default_factory=lambda: [_Series(lag_s) for lag_s in LAGS_S])

    def ours(self, at_s: float, in_flight: int) -> None:
        self._ours = self._ours.after(at_s, in_flight)

    def scraped(self, asked_s: float, answered_s: float, in_flight: float) -> None:
        """A scrape from `asked_s` to `answered_s`."""
        was_blind = self.is_blind
        self.scale.scraped(in_flight, *self._ours.between(asked_s - LAG_S, answered_s))
        lags_s = self._possible_lags(asked_s, in_flight)
        ranges = [self._ours.between(asked_s - lag_s, answered_s - lag_s) for lag_s in lags_s]
        fewest, most = min(fewest for fewest, _ in ranges), max(most for _, most in ranges)
        self.scrapes += 1
        if self.is_blind:
            self.estimate, self.change, self.suspect_since_s = None, 0.0 if was_blind else self._most, -math.inf
            return
        low, high = live_in_flight(in_flight, most), live_in_flight(in_flight, fewest)
        before = self.estimate
        self.estimate = high if before is None else min(max(before, low), high)
        self._most = max(self._most, self.estimate)
        self.change = 0.0 if before is None else abs(self.estimate - before)
        self.suspect_since_s = (self._seen_s if self._seen else asked_s) - max(lags_s) - LAG_STEP_S / 2.0
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
        """The usual organic load: levels up to this one cannot be held."""
        if self.estimate is None or not self._seen:
            return 0
        return math.floor(statistics.median(value for _, value in self._seen) + 0.5)

    def _possible_lags(self, asked_s: float, in_flight: float) -> list[float]:
        """Ascending; at least one."""
        for series in self._series:
            then_s = asked_s - series.lag_s
            series.add(in_flight - self._ours.between(then_s, then_s)[1])
        least = min(series.moved for series in self._series)
        return [series.lag_s for series in self._series if series.moved <= least + TIE]


def band(level: int) -> float:
    """How far the total may be from a level."""
    return max(BAND_LEAST, BAND_RATIO * level) + ROUNDING


def is_suspect(level: int, change: float) -> bool:
    """Whether a change of the organic load moved the total off this level."""
    return change > max(1.0, band(level)) + ROUNDING


def probes_for(level: int, organic: float | None) -> int:
    """Probes that make up a level."""
    return level if organic is None else max(PROBE_FLOOR, level - math.floor(organic + 0.5))


def steered(level: int, organic: float | None, probes: int) -> int:
    """The next number of probes after one scrape, starting from `probes`."""
    return min(probes_for(level, organic), probes + max(1, math.ceil(RISE_RATIO * level)))


def is_on_level(level: int, organic: float | None, users: int) -> bool:
    """Whether a request that starts now, with `users` of ours, belongs to this level."""
    return organic is None or abs(users + organic - level) <= band(level)
