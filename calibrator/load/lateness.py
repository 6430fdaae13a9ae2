"""When was this process itself late, and by how much? Keeps its own delay from being taken for the backend's.

A probe sleeps for `PROBE_S` at a time. If it wakes late, there was a *spell*: at some time since it last woke, the
process did not run or its event loop was busy, and whatever arrived meanwhile was stamped late.

    last waking          due        woken
        |- - - - - - - - -|============|         spell = [last waking, woken], error = woken - last waking
             PROBE_S           lag

A stamp inside a spell may be late by up to the spell's error; a stamp outside is accurate to `NOTICE_S`. A request sent
in a spell was sent in a burst with others, and the burst, which is our fault, slows the backend down: by no more than
the spell's error, because work that arrives at most so much later is done at most so much later.

Hence a violation is *suspect* if its excess over the limit is smaller than both errors together: that of its stamps
and that of its sending. A larger excess is the backend's, however late we were. Only violations can be suspect:
lateness adds latency and never removes any.

Caller: `closed_loop`. Times are seconds of the monotonic clock.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left

from calibrator.core.records.objective import Metric, Objective
from calibrator.core.records.sample import Sample

PROBE_S = 0.01
NOTICE_S = 0.002  # timers of event loops have a resolution of 1 ms
KEEP_SPELLS = 20_000  # 200 s of a process that is late at every probe


class Lateness:
    """Spells, oldest first. They do not overlap, so both their ends ascend."""

    def __init__(self, now_s: float) -> None:
        self._from_s = array("d")
        self._to_s = array("d")
        self._awake_s = now_s

    def awake(self, now_s: float) -> float:
        """The probe woke, normally `PROBE_S` after the last call. Returns its lag."""
        lag_s = max(0.0, now_s - self._awake_s - PROBE_S)
        if lag_s > NOTICE_S:
            if len(self._to_s) >= KEEP_SPELLS:
                del self._from_s[: KEEP_SPELLS // 2], self._to_s[: KEEP_SPELLS // 2]
            self._from_s.append(self._awake_s)
            self._to_s.append(now_s)
        self._awake_s = now_s
        return lag_s

    def error_s(self, from_s: float, to_s: float, now_s: float) -> float:
        """Largest error of any stamp taken between the two moments; `now_s` closes a spell that has not ended."""
        first = bisect_left(self._to_s, from_s)
        worst_s = 0.0
        for index in range(first, len(self._to_s)):
            if self._from_s[index] > to_s:
                break
            worst_s = max(worst_s, self._to_s[index] - self._from_s[index])
        if now_s - self._awake_s - PROBE_S > NOTICE_S and to_s >= self._awake_s:
            worst_s = max(worst_s, now_s - self._awake_s)
        return worst_s

    def doubts(self, objective: Objective, sample: Sample, now_s: float) -> bool:
        """Could this violation of an ended request come from our own lateness?"""
        if sample.failure is not None:
            return False  # a failure is reported by the backend, not stamped by us
        latency_s = sample.latency_s(objective.metric, objective.quantile)
        excess_s = (sample.duration_s if latency_s is None else latency_s) - objective.limit_s
        if objective.metric is Metric.TPOT:
            excess_s *= (sample.completion_tokens or sample.token_events or 2) - 1
        from_s, to_s = _stamped(objective.metric, sample)
        return self.explains(excess_s - sample.send_delay_s, sample.started_s, (from_s, to_s), now_s)

    def explains(self, excess_s: float, started_s: float, stamped_s: tuple[float, float], now_s: float) -> bool:
        """The same for a request in flight; `stamped_s`: the span in which its deciding stamps were taken."""
        return excess_s < self.error_s(*stamped_s, now_s) + self.error_s(started_s, started_s, now_s)


def _stamped(metric: Metric, sample: Sample) -> tuple[float, float]:
    """The span in which the stamps were taken that decide this metric."""
    last_s = sample.started_s + (sample.duration_s if sample.last_token_s is None else sample.last_token_s)
    if metric is Metric.ITL:
        return sample.started_s + (sample.ttft_s or 0.0), last_s
    if metric is Metric.E2E:
        last_s = sample.started_s + sample.duration_s
    elif metric is not Metric.TPOT:
        last_s = sample.started_s + (sample.latency_s(metric) or sample.duration_s)
    return last_s, last_s
