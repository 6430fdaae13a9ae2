"""When a sweep must end at once: when it hurts live users more than is allowed.

The rules take every scrape of the swept replica and our own requests' events. Live is what the engine counts and we did
not cause:

    organic(t)   = in flight by the gauge - the most probes of the last `LAG_S`           (`core.live.organic_load`)
    live(t)      = engine's counter since the sweep began - ours, taken as its running maximum

Our own count is overestimated (a probe in flight for longer than the bound counts as beyond it before the engine can
have counted it), and the running maximum restores what was subtracted too early. So a probe is never mistaken for a
user, whichever side counts it first.

| reason | ends the sweep when |
|---|---|
| live_latency | S >= live_exceedances, with S = max(0, S + beyond - p1 * answered) at each scrape |
| overload | the time between scrapes in which S grew reaches the overload budget |
| live_refusals | the same S of refusals reaches live_refusals |
| preemptions | their number reaches its limit, while live requests are in flight |
| probe_failures | likewise; without refusals, where the engine's counter shows those of users |
| kv_usage | the gauge reaches its limit while live requests are in flight; by default there is none |
| prefix_hits | live hit ratio over `PREFIX_WINDOW_S` falls by that share below the engine's own before the sweep |
| restart | the engine restarts (`core.records.server_load.has_restarted`) |
| blind | no scrape for `blind_s` although live requests were in flight |

S is Page's CUSUM with the upper end p1 of the indifference zone (`core.search.verdict.zone`) as its reference: traffic
within the SLA never moves it for long, and its limit is the number of users that one sweep may hurt. "Beyond" counts
from the engine's first bucket bound at or above the limit; TTFT and e2e objectives without a prompt length are watched.

A full KV cache alone is no reason: an engine that is limited by memory works there, and its queue and preemptions,
which users notice, are watched. Nor could such an engine otherwise be calibrated with live traffic.

What users experience before the first probe, or between two levels without probes, is not caused by us and does not
count. On an idle engine there are no users to hurt: only `restart` ends a sweep, and the search may cross the boundary
freely. With live traffic it crosses it too; the default limits allow for that (`tests/simulation/test_abort_costs.py`).

Called by `service.sweep.run`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from calibrator.core.live.organic_load import LAG_S, OwnLoad, live_in_flight
from calibrator.core.records.harm import Abort, AbortLimits, AbortReason, Harm
from calibrator.core.records.objective import Metric, Objective
from calibrator.core.records.sample import Sample
from calibrator.core.records.server_load import Histogram, ServerLoad, has_restarted
from calibrator.core.search.verdict import zone

LIVE_HOLDS_S = 5.0  # after the last scrape that showed a live request
PREFIX_WINDOW_S = 30.0
PREFIX_TOKENS_LEAST = 5_000.0  # live prompt tokens, before the sweep and in the window, for a ratio to mean anything
PREFIX_RATIO_LEAST = 0.1  # below it there is little to lose
SURE_EXCESS = 2.0  # of S, before a scrape counts as overload
_WATCHED = {Metric.TTFT: "ttft_s", Metric.E2E: "e2e_s"}


@dataclass(slots=True)
class _Envelope:
    """A live count: the growth of the engine's counter minus ours, never falling."""

    base: float | None = None
    value: float = 0.0

    def rise(self, engine: float, ours: float) -> float:
        """The increase."""
        if self.base is None:
            self.base = engine - ours
        risen = max(0.0, engine - ours - self.base - self.value)
        self.value += risen
        return risen


@dataclass(slots=True)
class _WatchedObjective:
    """One objective against one histogram."""

    index: int
    objective: Objective
    bound_s: float = 0.0  # 0: no histogram seen yet
    open: dict[int, float] = field(default_factory=dict)  # our requests that may still exceed the bound: start time
    answered: int = 0  # ours
    beyond: int = 0  # ours
    live: _Envelope = field(default_factory=_Envelope)
    live_beyond: _Envelope = field(default_factory=_Envelope)
    counted: float = 0.0  # live answers and exceedances while live requests were in flight
    counted_beyond: float = 0.0
    excess: float = 0.0  # S

    def decided(self, request_id: int, *, violated: bool | None) -> None:
        if violated is False and self.open.pop(request_id, None) is not None:
            self.answered += 1

    def ended(self, sample: Sample) -> None:
        if self.open.pop(sample.request_id, None) is None:
            return
        latency_s = sample.latency_s(self.objective.metric)
        if latency_s is None and sample.completed:
            latency_s = sample.duration_s  # a probe without streaming: its first token came no later
        if latency_s is not None:
            self.answered += 1
            self.beyond += latency_s > self.bound_s

    def scraped(self, now_s: float, histogram: Histogram, *, is_live: bool) -> bool:
        """Whether live requests have just exceeded the bound more often than the zone allows, beyond doubt."""
        index = next(i for i, bound in enumerate(histogram.bounds) if bound >= self.objective.limit_s - 1e-9)
        if self.bound_s != histogram.bounds[index]:
            self.bound_s = histogram.bounds[index]
            self.beyond, self.live_beyond = 0, _Envelope()
        late = sum(now_s - started_s > self.bound_s for started_s in self.open.values())
        answered = self.live.rise(histogram.total, self.answered)
        beyond = self.live_beyond.rise(histogram.total - histogram.counts[index], self.beyond + late)
        if not is_live:
            return False
        self.counted += answered
        self.counted_beyond += beyond
        before = self.excess
        self.excess = max(0.0, before + beyond - zone(self.objective).p1 * answered)
        return self.excess > before and self.excess >= SURE_EXCESS


class AbortRules:
    """Takes events in order of time; times are seconds on one clock."""

    def __init__(self, objectives: Sequence[Objective], limits: AbortLimits, overload_budget_s: float) -> None:
        self._limits = limits
        self._overload_budget_s = overload_budget_s
        self._watched = [
            _WatchedObjective(index, objective)
            for index, objective in enumerate(objectives)
            if objective.metric in _WATCHED and objective.max_prompt_tokens is None
        ]
        self._first: ServerLoad | None = None
        self._last: ServerLoad | None = None
        self._last_s = 0.0
        self._ours = OwnLoad()
        self._live_until_s = -1.0
        self._most_organic = 0
        self._own_failures = 0
        self._own_refusals = 0  # among them
        self._failures_beside = 0  # ours, while live requests were in flight
        self._failures_seen = 0
        self._allowed = min((zone(objective).p1 for objective in objectives), default=0.0)
        self._refusals = _Envelope()
        self._refused = 0.0
        self._refused_excess = 0.0  # S of refusals
        self._preempted = 0.0
        self._prefix = _PrefixWatch()
        self.overload: list[tuple[float, float]] = []  # spells in which live requests exceeded a limit too often

    # ------------------------------------------------------------------------------------------- our requests
    def ours(self, at_s: float, in_flight: int) -> None:
        """Between two scrapes, so that a peak of probes that the gauge still shows is not mistaken for users."""
        self._ours = self._ours.after(at_s, in_flight)

    def started(self, request_id: int, started_s: float) -> None:
        for watched in self._watched:
            watched.open[request_id] = started_s

    def decided(self, request_id: int, objective: int, *, violated: bool | None) -> None:
        for watched in self._watched:
            if watched.index == objective:
                watched.decided(request_id, violated=violated)

    def ended(self, sample: Sample) -> None:
        for watched in self._watched:
            watched.ended(sample)
        self._own_failures += sample.failure is not None
        self._own_refusals += sample.failure is not None and sample.failure.is_refusal
        self._prefix.ended(sample)

    # ------------------------------------------------------------------------------------------------ scrapes
    def scraped(self, now_s: float, load: ServerLoad | None, probes: int, asked_s: float | None = None) -> Abort | None:
        """One scrape, begun at `asked_s`; `probes`: ours in flight. None: the sweep may go on."""
        if load is None:
            return self._blind(now_s)
        before, since_s = self._last, self._last_s
        self._first, self._last, self._last_s = self._first or load, load, now_s
        if before is not None and has_restarted(before, load):
            return Abort(AbortReason.RESTART, "the engine restarted, or another one answers at its address")
        self._ours = self._ours.after(now_s, probes)
        most = self._ours.between((now_s if asked_s is None else asked_s) - LAG_S, now_s)[1]
        is_live = self._sees_live(now_s, load, most) and most > 0
        counted = self._answered
        hurts = [self._exceeds(watched, now_s, load, is_live=is_live) for watched in self._watched]
        if any(hurts) and before is not None:
            self.overload.append((since_s, now_s))
        self._count(load, before, self._answered - counted, is_live=is_live)
        self._prefix.scraped(now_s, load, probes)
        return self._judge(load) if is_live else None

    def _sees_live(self, now_s: float, load: ServerLoad, most: int) -> bool:
        in_flight = load.in_flight_requests
        organic = 0.0 if in_flight is None else live_in_flight(in_flight, most)
        if organic >= 1.0:
            self._live_until_s = now_s + LIVE_HOLDS_S
            self._most_organic = max(self._most_organic, int(organic))
        return now_s <= self._live_until_s

    @staticmethod
    def _exceeds(watched: _WatchedObjective, now_s: float, load: ServerLoad, *, is_live: bool) -> bool:
        histogram: Histogram | None = getattr(load, _WATCHED[watched.objective.metric])
        return histogram is not None and watched.scraped(now_s, histogram, is_live=is_live)

    @property
    def _answered(self) -> float:
        """Live requests answered, by the histogram that counted most."""
        return max((watched.counted for watched in self._watched), default=0.0)

    def _count(self, load: ServerLoad, before: ServerLoad | None, answered: float, *, is_live: bool) -> None:
        refused = 0.0 if load.refused_total is None else self._refusals.rise(load.refused_total, self._own_failures)
        # Where the engine counts refusals, those of users are known, and ours do no harm.
        ours = self._own_failures - (0 if load.refused_total is None else self._own_refusals)
        failed, self._failures_seen = max(0, ours - self._failures_seen), ours
        if not is_live or before is None:
            return
        self._refused += refused
        self._refused_excess = max(0.0, self._refused_excess + refused - self._allowed * (answered + refused))
        self._failures_beside += failed
        if load.preemptions_total is not None and before.preemptions_total is not None:
            self._preempted += max(0.0, load.preemptions_total - before.preemptions_total)

    def _blind(self, now_s: float) -> Abort | None:
        limit_s = self._limits.blind_s
        was_live = self._last is not None and self._last_s <= self._live_until_s
        if limit_s is None or not was_live or now_s - self._last_s < limit_s:
            return None
        words = (
            f"no answer from the engine's metrics for {now_s - self._last_s:.0f} s while live requests were in flight"
        )
        return Abort(AbortReason.BLIND, words)

    # ----------------------------------------------------------------------------------------------- judging
    def _judge(self, load: ServerLoad) -> Abort | None:
        limits = self._limits
        for watched in self._watched:
            if _reaches(watched.excess, limits.live_exceedances):
                beyond, counted = watched.counted_beyond, watched.counted
                words = f"{beyond:.0f} of {counted:.0f} live requests exceeded '{watched.objective}'"
                return Abort(AbortReason.LIVE_LATENCY, words)
        spent_s = self.harm.live_overload_s
        if spent_s >= self._overload_budget_s:
            return Abort(AbortReason.OVERLOAD, f"live requests were above the SLA for {spent_s:.0f} s")
        totals = (
            (
                AbortReason.LIVE_REFUSALS,
                self._refused_excess,
                limits.live_refusals,
                f"{self._refused:.0f} live requests were refused",
            ),
            (
                AbortReason.PROBE_FAILURES,
                self._failures_beside,
                limits.probe_failures,
                "{} probes failed while live requests were in flight",
            ),
            (
                AbortReason.PREEMPTIONS,
                self._preempted,
                limits.preemptions,
                "{} requests were preempted while live requests were in flight",
            ),
        )
        for reason, count, limit, words in totals:
            if _reaches(count, limit):
                return Abort(reason, words.format(round(count)))
        if limits.kv_usage_ratio is not None and (load.kv_usage_ratio or 0.0) >= limits.kv_usage_ratio:
            return Abort(AbortReason.KV_USAGE, f"the KV cache is {load.kv_usage_ratio:.0%} full with live requests")
        return self._prefix.judge(limits.prefix_hit_fall_ratio)

    @property
    def harm(self) -> Harm:
        """The harm so far."""
        worst = max(self._watched, key=lambda watched: (watched.counted_beyond, watched.counted), default=None)
        return Harm(
            live_requests=0 if worst is None else round(worst.counted),
            live_exceedances=0 if worst is None else round(worst.counted_beyond),
            live_overload_s=sum(end_s - start_s for start_s, end_s in self.overload),
            live_refusals=round(self._refused),
            preemptions=round(self._preempted),
            most_organic=self._most_organic,
            prefix_hit_ratio_before=self._prefix.before,
            prefix_hit_ratio=self._prefix.now,
        )


@dataclass(slots=True)
class _PrefixWatch:
    """Prefix cache hits of live prompts. Our prompts in flight count with the mean of those that ended."""

    before: float | None = None
    now: float | None = None
    _is_begun: bool = False
    _prompts: int = 0
    _prompt_tokens: float = 0.0
    _cached_tokens: float = 0.0
    _seen: deque[tuple[float, float, float]] = field(default_factory=deque)  # time, live tokens queried, live hits

    def ended(self, sample: Sample) -> None:
        if sample.prompt_tokens is not None:
            self._prompts += 1
            self._prompt_tokens += sample.prompt_tokens
            self._cached_tokens += sample.cached_tokens or 0

    def scraped(self, now_s: float, load: ServerLoad, probes: int) -> None:
        queried, hits = load.prefix_queried_tokens_total, load.prefix_hit_tokens_total
        if queried is None or hits is None:
            return
        if not self._is_begun:
            self._is_begun = True
            self.before = hits / queried if queried >= PREFIX_TOKENS_LEAST else None
        open_tokens = probes * self._prompt_tokens / self._prompts if self._prompts else 0.0
        self._seen.append((now_s, queried - self._prompt_tokens - open_tokens, hits - self._cached_tokens))
        while self._seen[0][0] < now_s - PREFIX_WINDOW_S:
            self._seen.popleft()
        (_, first_queried, first_hits), (_, last_queried, last_hits) = self._seen[0], self._seen[-1]
        if last_queried - first_queried >= PREFIX_TOKENS_LEAST:
            self.now = min(1.0, max(0.0, (last_hits - first_hits) / (last_queried - first_queried)))

    def judge(self, fall_ratio: float | None) -> Abort | None:
        if fall_ratio is None or self.before is None or self.now is None or self.before < PREFIX_RATIO_LEAST:
            return None
        if self.now >= self.before * (1.0 - fall_ratio):
            return None
        words = f"{self.now:.0%} of the live prompt tokens are found in the prefix cache instead of {self.before:.0%}"
        return Abort(AbortReason.PREFIX_HITS, words)


def _reaches(count: float, limit: int | None) -> bool:
    return limit is not None and count >= limit
