"""Folding a stage's events into evidence, and all stages of a level into one point of the curve.

Order matters (DESIGN section 2): bits are read in the order in which requests *started*, up to the first undecided one;
latencies likewise, up to the first request that has not ended. Whatever comes later in that order is not used, however
early it finished: using it would favour the fast requests.

Beside live traffic the total may be off the level (`core.live.organic_load`). A sample that started then is in no
order; one whose start came into doubt afterwards is taken back, whatever became of it.

    events ──▶ LevelAccumulator.add ──▶ evidence()  bits of the running stage          (verdict, search)
                             ├─▶ cut()       the next stage at this level starts here
                             └─▶ report()    all stages of the level together    (curve)

Failed requests have latency infinity; a quantile that falls among them is shown as None, the errors say why.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from calibrator.core.records.history import Audit, Evidence, RampCount
from calibrator.core.records.objective import Objective, decide_final
from calibrator.core.records.sample import Label, Phase, RequestOutcome, Sample
from calibrator.core.records.server_load import ServerLoadPeak
from calibrator.core.records.sweep import LevelReport, Verdict
from calibrator.core.records.unmeasured import NO_HOLES, Missing, counted, why_undecided
from calibrator.core.stats.autocorrelation import CorrelationTime, correlation_time
from calibrator.core.stats.quantile import LatencySummary, summarise

METRICS = ("ttft", "ttfc", "itl", "tpot", "e2e")


@dataclass(slots=True)
class _Bit:
    violated: bool | None
    at_s: float
    missing: Missing | None = None


@dataclass(slots=True)
class _ObjectiveBits:
    """Decided bits by request, and how far the start order has been read."""

    by_request: dict[int, _Bit] = field(default_factory=dict)
    read: int = 0  # position in the start order
    bits: list[str] = field(default_factory=list)
    violations: list[int] = field(default_factory=list)  # request ids, one per '1'
    missing: list[tuple[int, Missing]] = field(default_factory=list)  # (bits before it, what it lacks)

    def position(self, order: Sequence[int], count: int) -> int:
        """Where in the start order the first `count` bits end."""
        for index, request_id in enumerate(order):
            if count == 0:
                return index
            bit = self.by_request.get(request_id)
            count -= bit is not None and bit.violated is not None
        return len(order)


@dataclass(slots=True)
class _Totals:
    """What passed while the level was held (counted phase), whoever started it."""

    held_s: float = 0.0
    in_flight_s: float = 0.0  # integral of the in-flight count, ours
    organic_s: float = 0.0  # likewise, of live requests
    completed: int = 0
    good: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class _Latencies:
    """One metric's, in start order, and when their requests started."""

    values: array[float] = field(default_factory=lambda: array("d"))
    starts_s: array[float] = field(default_factory=lambda: array("d"))

    def add(self, started_s: float, value: float) -> None:
        self.starts_s.append(started_s)
        self.values.append(value)

    def take_back(self, since_s: float) -> None:
        keep = bisect_left(self.starts_s, since_s)
        del self.values[keep:], self.starts_s[keep:]


class LevelAccumulator:
    """Accumulates one level; `stage` numbers separate its stages from other levels' requests."""

    def __init__(self, level: int, objectives: Sequence[Objective]) -> None:
        self.level = level
        self._objectives = tuple(objectives)
        self._stage = -1
        self._order: list[int] = []  # counted requests, start order
        self._starts_s: list[float] = []  # theirs
        self._ended: dict[int, Sample] = {}
        self._ended_read = 0
        self._bits = [_ObjectiveBits() for _ in objectives]
        self._cut = [0 for _ in objectives]  # bits already given to earlier stages
        self._missing_cut = [0 for _ in objectives]  # likewise, of requests without a bit
        self._ramp_ids: dict[int, float] = {}  # and their starts
        self._ramp_bits: list[dict[int, bool]] = [{} for _ in objectives]
        self._ramp_from_s = math.inf
        self._durations = array("d")  # of this stage's ended requests
        self._latencies = {metric: _Latencies() for metric in METRICS}
        self._failures: Counter[str] = Counter()
        self._totals = _Totals()
        self.requests = 0  # started, all phases, all stages
        self.stage_requests = 0
        self.outcomes: Counter[RequestOutcome] = Counter()

    # ------------------------------------------------------------------------------------------------ events
    def begin(self, stage: int) -> None:
        """A stage with a warm-up: earlier requests of this level that never got decided are left behind."""
        self._stage = stage
        self._order, self._starts_s, self._ended, self._ended_read = [], [], {}, 0
        self._bits = [_ObjectiveBits() for _ in self._objectives]
        self._cut = [0 for _ in self._objectives]
        self._missing_cut = [0 for _ in self._objectives]
        self._ramp_ids, self._ramp_bits = {}, [{} for _ in self._objectives]
        self._ramp_from_s = math.inf
        self._durations = array("d")
        self.stage_requests = 0

    def ramp_complete(self, at_s: float) -> None:
        """The last user was added at `at_s`: what starts later is watched."""
        self._ramp_from_s = min(self._ramp_from_s, at_s)

    def started(self, request_id: int, label: Label, started_s: float, *, on_level: bool = True) -> None:
        self.requests += 1
        self.stage_requests += 1
        if label.stage != self._stage or not on_level:
            return
        if label.phase is Phase.COUNTED:
            self._order.append(request_id)
            self._starts_s.append(started_s)
        elif started_s >= self._ramp_from_s:
            self._ramp_ids[request_id] = started_s

    def take_back(self, since_s: float) -> None:
        """Nobody knows at which level the samples started that started since then.

        What earlier stages were given stays theirs: whoever keeps them voids them. Their latencies go, whatever stage
        they were shown in: the load that came and went unseen makes long slow spells, which are not the level's own.
        """
        for latencies in self._latencies.values():
            latencies.take_back(since_s)
        keep = bisect_left(self._starts_s, since_s)
        for state, cut in zip(self._bits, self._cut, strict=True):
            keep = max(keep, state.position(self._order, cut))
        self._order, self._starts_s = self._order[:keep], self._starts_s[:keep]
        self._ended_read = min(self._ended_read, keep)
        for state in self._bits:
            if state.read > keep:
                state.read, state.bits, state.violations, state.missing = 0, [], [], []
        for request_id in [one for one, started_s in self._ramp_ids.items() if started_s >= since_s]:
            del self._ramp_ids[request_id]
            for bits in self._ramp_bits:
                bits.pop(request_id, None)

    def decided(
        self, request_id: int, objective: int, *, violated: bool | None, at_s: float, missing: Missing | None = None
    ) -> None:
        if request_id in self._ramp_ids:
            if violated is not None:
                self._ramp_bits[objective][request_id] = violated
            return
        known = self._bits[objective].by_request.get(request_id)
        if known is None:
            self._bits[objective].by_request[request_id] = _Bit(violated, at_s, missing)
        else:  # the same bit, with the time of its first token
            known.at_s = at_s

    def ended(self, sample: Sample) -> None:
        if sample.label.stage == self._stage:
            self._durations.append(sample.duration_s)
            if sample.label.phase is Phase.COUNTED:
                self._ended[sample.request_id] = sample

    def held(self, seconds: float, in_flight: int, ended: Sequence[Sample], organic: float = 0.0) -> None:
        """One poll's worth of the counted phase: throughput counts what ended in it, whoever started it."""
        totals = self._totals
        totals.held_s += seconds
        totals.in_flight_s += seconds * in_flight
        totals.organic_s += seconds * organic
        for sample in ended:
            if sample.completed:
                totals.completed += 1
                totals.good += outcome_of(sample, self._objectives) is RequestOutcome.OK
                totals.prompt_tokens += sample.prompt_tokens or 0
                totals.output_tokens += sample.completion_tokens or 0

    # ---------------------------------------------------------------------------------------------- readings
    def evidence(self, origin_s: float, limit: int | None = None) -> tuple[Evidence, ...]:
        """Bits since the last cut, at most `limit` of them. `origin_s`: the sweep's zero on the client's clock."""
        return tuple(self._read(index, origin_s, limit) for index in range(len(self._objectives)))

    def _read(self, index: int, origin_s: float, limit: int | None) -> Evidence:
        state = self._bits[index]
        while state.read < len(self._order):
            bit = state.by_request.get(self._order[state.read])
            if bit is None:
                break
            if bit.missing is not None:
                state.missing.append((len(state.bits), bit.missing))
            if bit.violated is not None:
                state.bits.append("1" if bit.violated else "0")
                if bit.violated:
                    state.violations.append(self._order[state.read])
            state.read += 1
        first = self._cut[index]
        last = len(state.bits) if limit is None else min(len(state.bits), first + limit)
        bits = "".join(state.bits[first:last])
        skipped = state.bits[:first].count("1")
        ids = state.violations[skipped : skipped + bits.count("1")]
        missing = state.missing[self._missing_cut[index] :]
        return Evidence(
            bits,
            tuple(state.by_request[request_id].at_s - origin_s for request_id in ids),
            counted(code for before, code in missing if before <= last),
        )

    def cut(self) -> None:
        """What has been read belongs to the stage that ends here; the next one goes on without a warm-up."""
        self._cut = [len(state.bits) for state in self._bits]
        self._missing_cut = [len(state.missing) for state in self._bits]
        self._durations = array("d")
        self.stage_requests = 0

    def ended_in_order(self, limit: int | None = None) -> int:
        """Counted requests of this stay that ended, in start order, up to the first that has not (or `limit`)."""
        self._absorb(limit)
        return self._ended_read

    def _absorb(self, limit: int | None) -> None:
        while self._ended_read < len(self._order) and (limit is None or self._ended_read < limit):
            sample = self._ended.pop(self._order[self._ended_read], None)
            if sample is None:
                return
            self._ended_read += 1
            self._take(sample)

    def _take(self, sample: Sample) -> None:
        if sample.cancelled or sample.is_invalid:
            return
        if sample.failure is not None:
            self._failures[sample.failure.kind.value] += 1
        for metric in METRICS if sample.stream else ("e2e",):
            value = sample.latency_s(metric)
            if value is not None:
                self._latencies[metric].add(sample.started_s, value)
            elif sample.failure is not None:
                self._latencies[metric].add(sample.started_s, math.inf)

    def ramp(self) -> tuple[RampCount, ...]:
        """Watched warm-up: per objective, what is decided of the requests that started after the last user was
        added."""
        return tuple(RampCount(len(bits), sum(bits.values())) for bits in self._ramp_bits)

    def residence_s(self) -> float:
        return float(np.median(self._durations)) if self._durations else 0.0

    def residence_p90_s(self) -> float:
        return float(np.quantile(self._durations, 0.9)) if self._durations else 0.0

    def tail_ratio(self) -> tuple[float | None, ...]:
        return tuple(upper_quantile(self._latencies[o.metric].values, o.limit_s) for o in self._objectives)

    def correlation(self) -> tuple[CorrelationTime | None, ...]:
        return tuple(correlation_time(self._latencies[objective.metric].values) for objective in self._objectives)

    def quick_quantile(self, metric: str, quantile: float) -> float | None:
        """For progress displays only: no interval, no support rule."""
        finite = [value for value in self._latencies[metric].values if math.isfinite(value)]
        return float(np.quantile(finite, quantile)) if finite else None

    @property
    def achieved_concurrency(self) -> float:
        totals = self._totals
        return (totals.in_flight_s + totals.organic_s) / totals.held_s if totals.held_s > 0 else 0.0

    def report(
        self,
        verdict: Verdict,
        counts: tuple[int, int],
        audit: Audit,
        server: ServerLoadPeak,
        organic: float | None = None,
    ) -> LevelReport:
        """`counts`: (n, exceedances) of the level as its verdict saw them. Rates: ours, scaled to the whole level."""
        totals, held_s = self._totals, self._totals.held_s
        everybody = 1.0 + totals.organic_s / totals.in_flight_s if totals.in_flight_s > 0 else 1.0

        def rate(count: int) -> float:
            return everybody * count / held_s if held_s > 0 else 0.0

        return LevelReport(
            concurrency=self.level,
            achieved_concurrency=self.achieved_concurrency,
            n=counts[0],
            exceedances=counts[1],
            requests=self.requests,
            verdict=verdict,
            ttft=self._summary("ttft"),
            ttfc=self._summary("ttfc"),
            itl=self._summary("itl"),
            tpot=self._summary("tpot"),
            e2e=self._summary("e2e"),
            requests_per_second=rate(totals.completed),
            prompt_tokens_per_second=rate(totals.prompt_tokens),
            output_tokens_per_second=rate(totals.output_tokens),
            goodput_per_second=rate(totals.good),
            errors=tuple(self._failures.most_common()),
            audit=audit,
            server=server,
            organic_in_flight=organic,
        )

    def _summary(self, metric: str) -> LatencySummary:
        return summarise(self._latencies[metric].values)


def outcome_of(sample: Sample, objectives: Sequence[Objective]) -> RequestOutcome:
    """Contract word of one ended request."""
    if sample.is_invalid:
        return RequestOutcome.INVALID
    if sample.failure is not None:
        return RequestOutcome.FAILED
    if sample.cancelled:
        return RequestOutcome.CANCELLED
    ours = [objective for objective in objectives if objective.applies_to(sample.wanted_prompt_tokens)]
    if any(decide_final(objective, sample) for objective in ours):
        return RequestOutcome.VIOLATION
    codes = {why_undecided(objective, sample) for objective in ours}
    return RequestOutcome.UNMEASURED if codes - {None, *NO_HOLES} else RequestOutcome.OK


def upper_quantile(values: Sequence[float], limit_s: float) -> float | None:
    """Cheap tail / limit, to aim the next step: P99 of many, else P95 stretched by the P95/P75 spread."""
    finite = np.minimum(np.asarray(values, dtype=float), 10.0 * limit_s)
    if finite.size < 8:
        return None
    if finite.size >= 300:
        return float(np.quantile(finite, 0.99)) / limit_s
    q75, q95 = (float(q) for q in np.quantile(finite, [0.75, 0.95]))
    return float(q95 * (q95 / max(q75, 1e-9)) ** 0.7 / limit_s)
