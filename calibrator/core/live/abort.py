"""When must a sweep end at once? When live users suffer from it beyond what is allowed.

Fed with every scrape of the swept replica and with our own requests' events; what is live is what the engine counts and
we did not cause:

    organic(t)   = in flight by the gauge - the most probes of the last `GAUGE_LAG_S`     (gauges lag)
    live(t)      = engine's counter since the sweep began - ours, taken as its running maximum

Ours is counted on the high side (a probe in flight for longer than the bound counts as beyond it before the engine can
have counted it), and the running maximum lets what was subtracted too early come back. So no probe is ever taken for a
user, whichever side notices first.

| reason | ends the sweep when |
|---|---|
| live_latency | S >= live_exceedances, with S = max(0, S + beyond - p1 * answered) at each scrape |
| overload | scrapes in which S grew fill the overload budget, in seconds |
| live_refusals | the same S of refusals reaches live_refusals |
| preemptions | as many, while live requests are in flight |
| probe_failures | likewise; refusals are not among them where the engine's counter shows those of users |
| kv_usage | the gauge reaches its bound while live requests are in flight; by default there is none |
| prefix_hits | live hit ratio over `PREFIX_WINDOW_S` falls by that share below the engine's own before the sweep |
| restart | the engine's start time changes or, where it tells none, a counter falls |
| blind | no scrape for that long although live requests were in flight |

S is Page's CUSUM with the upper end p1 of the indifference zone (`core.search.verdict.zone`) as its reference: traffic
within the SLA never moves it for long, and its bound is the number of users that one sweep may hurt. "Beyond" counts
from the engine's first bucket bound at or above the limit; TTFT and e2e objectives without a prompt length are watched.

Full KV memory is no reason by itself: an engine that memory limits works there, and its queue and preemptions, which
users feel, are watched. Nor could such an engine be calibrated beside users otherwise.

What users meet before the first probe, or between two levels without any, is none of our doing and does not count.
An idle engine has nobody to hurt: only `restart` ends a sweep there, and the search may touch the boundary as it likes.
Beside live traffic it touches it too; the default limits leave room for what that costs
(`tests/simulation/test_abort_costs.py`).

Called by `service.sweep.run`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from calibrator.core.records.harm import Abort, AbortLimits, AbortReason, Harm
from calibrator.core.records.objective import Metric, Objective
from calibrator.core.records.sample import Sample
from calibrator.core.records.server_load import Histogram, ServerLoad
from calibrator.core.search.verdict import zone

GAUGE_LAG_S = 3.0
LIVE_HOLDS_S = 5.0  # after the last scrape that showed a live request
PREFIX_WINDOW_S = 30.0
PREFIX_TOKENS_LEAST = 5_000.0  # live prompt tokens, before the sweep and in the window, to speak of a ratio
PREFIX_RATIO_LEAST = 0.1  # nothing to lose below it
SURE_EXCESS = 2.0  # of S, before a scrape counts as overload
_WATCHED = {Metric.TTFT: "ttft_s", Metric.E2E: "e2e_s"}


@dataclass(slots=True)
class _Envelope:
    """A live count: the engine's growth less ours, never falling."""

    base: float | None = None
    value: float = 0.0

    def rise(self, engine: float, ours: float) -> float:
        """By how much it rose."""
        if self.base is None:
            self.base = engine - ours
        risen = max(0.0, engine - ours - self.base - self.value)
        self.value += risen
        return risen


@dataclass(slots=True)
class _Line:
    """One objective against one histogram."""

    index: int
    objective: Objective
    bound_s: float = 0.0  # 0: no histogram seen yet
    open: dict[int, float] = field(default_factory=dict)  # our requests that may still pass the bound: start
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
            latency_s = sample.duration_s  # a probe without streaming: its first token was no later
        if latency_s is not None:
            self.answered += 1
            self.beyond += latency_s > self.bound_s

    def look(self, now_s: float, histogram: Histogram, *, is_live: bool) -> bool:
        """Whether live requests exceeded the bound more often than the zone allows, surely and just now."""
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


class AbortWatch:
    """Feed it in order; times are seconds on one clock."""

    def __init__(self, objectives: Sequence[Objective], limits: AbortLimits, overload_budget_s: float) -> None:
        self._limits = limits
        self._overload_budget_s = overload_budget_s
        self._lines = [
            _Line(index, objective)
            for index, objective in enumerate(objectives)
            if objective.metric in _WATCHED and objective.max_prompt_tokens is None
        ]
        self._first: ServerLoad | None = None
        self._last: ServerLoad | None = None
        self._last_s = 0.0
        self._probes: deque[tuple[float, int]] = deque()
        self._live_until_s = -1.0
        self._most_organic = 0
        self._own_failures = 0
        self._own_refusals = 0  # of them
        self._failures_met = 0  # ours, while live requests were in flight
        self._failures_seen = 0
        self._allowed = min((zone(objective).p1 for objective in objectives), default=0.0)
        self._refusals = _Envelope()
        self._refused = 0.0
        self._refused_excess = 0.0  # S of refusals
        self._preempted = 0.0
        self._prefix = _PrefixWatch()
        self.overload: list[tuple[float, float]] = []  # spells in which live requests exceeded a limit too often

    # ------------------------------------------------------------------------------------------- our requests
    def started(self, request_id: int, started_s: float) -> None:
        for line in self._lines:
            line.open[request_id] = started_s

    def decided(self, request_id: int, objective: int, *, violated: bool | None) -> None:
        for line in self._lines:
            if line.index == objective:
                line.decided(request_id, violated=violated)

    def ended(self, sample: Sample) -> None:
        for line in self._lines:
            line.ended(sample)
        self._own_failures += sample.failure is not None
        self._own_refusals += sample.failure is not None and sample.failure.is_refusal
        self._prefix.ended(sample)

    # ------------------------------------------------------------------------------------------------ scrapes
    def look(self, now_s: float, load: ServerLoad | None, probes: int) -> Abort | None:
        """One scrape; `probes`: ours in flight. None: the sweep may go on."""
        if load is None:
            return self._blind(now_s)
        before, since_s = self._last, self._last_s
        self._first, self._last, self._last_s = self._first or load, load, now_s
        if before is not None and _restarted(load, before):
            return Abort(AbortReason.RESTART, "the engine restarted, or another one answers at its address")
        is_live = self._sees_live(now_s, load, probes) and any(count for _, count in self._probes)
        counted = self._answered
        hurts = [self._look_at(line, now_s, load, is_live=is_live) for line in self._lines]
        if any(hurts) and before is not None:
            self.overload.append((since_s, now_s))
        self._count(load, before, self._answered - counted, is_live=is_live)
        self._prefix.look(now_s, load, probes)
        return self._judge(load) if is_live else None

    def _sees_live(self, now_s: float, load: ServerLoad, probes: int) -> bool:
        self._probes.append((now_s, probes))
        while self._probes[0][0] < now_s - GAUGE_LAG_S:
            self._probes.popleft()
        in_flight = load.in_flight_requests
        organic = 0.0 if in_flight is None else in_flight - max(count for _, count in self._probes)
        if organic >= 1.0:
            self._live_until_s = now_s + LIVE_HOLDS_S
            self._most_organic = max(self._most_organic, int(organic))
        return now_s <= self._live_until_s

    @staticmethod
    def _look_at(line: _Line, now_s: float, load: ServerLoad, *, is_live: bool) -> bool:
        histogram: Histogram | None = getattr(load, _WATCHED[line.objective.metric])
        return histogram is not None and line.look(now_s, histogram, is_live=is_live)

    @property
    def _answered(self) -> float:
        """Live requests, as the histogram with most of them says."""
        return max((line.counted for line in self._lines), default=0.0)

    def _count(self, load: ServerLoad, before: ServerLoad | None, answered: float, *, is_live: bool) -> None:
        refused = 0.0 if load.refused_total is None else self._refusals.rise(load.refused_total, self._own_failures)
        # Where the engine counts whom it turns away, users' refusals are known, and ours hurt nobody.
        ours = self._own_failures - (0 if load.refused_total is None else self._own_refusals)
        failed, self._failures_seen = max(0, ours - self._failures_seen), ours
        if not is_live or before is None:
            return
        self._refused += refused
        self._refused_excess = max(0.0, self._refused_excess + refused - self._allowed * (answered + refused))
        self._failures_met += failed
        if load.preemptions_total is not None and before.preemptions_total is not None:
            self._preempted += max(0.0, load.preemptions_total - before.preemptions_total)

    def _blind(self, now_s: float) -> Abort | None:
        limit_s = self._limits.blind_s
        was_live = self._last is not None and self._last_s <= self._live_until_s
        if limit_s is None or not was_live or now_s - self._last_s < limit_s:
            return None
        words = f"the engine's metrics have not answered for {now_s - self._last_s:.0f} s beside live requests"
        return Abort(AbortReason.BLIND, words)

    # ----------------------------------------------------------------------------------------------- judging
    def _judge(self, load: ServerLoad) -> Abort | None:
        limits = self._limits
        for line in self._lines:
            if _reaches(line.excess, limits.live_exceedances):
                words = f"{line.counted_beyond:.0f} of {line.counted:.0f} live requests exceeded '{line.objective}'"
                return Abort(AbortReason.LIVE_LATENCY, words)
        spent_s = self.harm.live_overload_s
        if spent_s >= self._overload_budget_s:
            return Abort(AbortReason.OVERLOAD, f"live requests were above the SLA for {spent_s:.0f} s")
        counted = (
            (
                AbortReason.LIVE_REFUSALS,
                self._refused_excess,
                limits.live_refusals,
                f"{self._refused:.0f} live requests were refused",
            ),
            (
                AbortReason.PROBE_FAILURES,
                self._failures_met,
                limits.probe_failures,
                "{} probes failed beside live ones",
            ),
            (
                AbortReason.PREEMPTIONS,
                self._preempted,
                limits.preemptions,
                "{} requests were preempted beside live ones",
            ),
        )
        for reason, count, limit, words in counted:
            if _reaches(count, limit):
                return Abort(reason, words.format(round(count)))
        if limits.kv_usage_ratio is not None and (load.kv_usage_ratio or 0.0) >= limits.kv_usage_ratio:
            return Abort(AbortReason.KV_USAGE, f"KV memory is {load.kv_usage_ratio:.0%} full beside live requests")
        return self._prefix.judge(limits.prefix_hit_fall_ratio)

    @property
    def harm(self) -> Harm:
        """So far."""
        worst = max(self._lines, key=lambda line: (line.counted_beyond, line.counted), default=None)
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
    """The prefix cache as live prompts find it. Our prompts in flight count with the mean of those that ended."""

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

    def look(self, now_s: float, load: ServerLoad, probes: int) -> None:
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
        words = f"the prefix cache holds {self.now:.0%} of the live prompts instead of {self.before:.0%}"
        return Abort(AbortReason.PREFIX_HITS, words)


def _reaches(count: float, limit: int | None) -> bool:
    return limit is not None and count >= limit


def _restarted(now: ServerLoad, before: ServerLoad) -> bool:
    if now.process_start is not None and before.process_start is not None:
        return now.process_start != before.process_start
    pairs = (
        (now.finished_total, before.finished_total),
        (now.output_tokens_total, before.output_tokens_total),
        (now.preemptions_total, before.preemptions_total),
    )
    return any(new is not None and old is not None and new < old for new, old in pairs)
