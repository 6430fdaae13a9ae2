"""`/metrics`: the snapshot as series, projected at scrape time.

`METRICS` is the whole contract: names, types, labels, help. What is not in it cannot be exported, and the reference in
the documentation is printed from it. Rules:

- what is not known has no sample, never 0;
- of an enumeration every value is present, so that rates and sums miss no series;
- label values come from the configuration and from enumerations; the curve's `concurrency` is the exception, bounded
  by one sweep and replaced by the next;
- moments are exported rather than ages, and both parts of a ratio.

Series are projected rather than kept in Counter and Gauge objects: those would be a second state beside the snapshot.
`exposition` writes them as text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from enum import StrEnum

from starlette.requests import Request
from starlette.responses import Response

from calibrator.core.admission.admission import DeferralReason
from calibrator.core.publish.snapshot import BackendView, Health, Snapshot, State, SweepSummary
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sweep import Grade, LevelReport
from calibrator.core.report.documents import LATENCIES, QUANTILES
from calibrator.ports.clock import Clock
from calibrator.web.prometheus.exposition import PREFIX, Lines, Metric, Point, content_type, is_openmetrics, written

_B = ("backend",)
METRICS: tuple[Metric, ...] = (
    Metric("recommended_concurrency", "gauge", _B, "Published cap: in-flight requests of the whole backend."),
    Metric("recommended_replica_concurrency", "gauge", _B, "Published cap of one replica."),
    Metric("recommended_requests_per_second", "gauge", _B, "Request rate that the cap means at the measured mix."),
    Metric("recommended_tokens_per_minute", "gauge", (*_B, "kind"), "Token rate that the cap means, prompt or output."),
    Metric("recommendation_state", "gauge", (*_B, "state"), "1 for the state of the published cap, else 0."),
    Metric("recommendation_grade", "gauge", (*_B, "grade"), "1 for the grade of the measurement; all 0: none yet."),
    Metric("recommendation_timestamp_seconds", "gauge", _B, "When the cap was published."),
    Metric("recommendation_valid_until_timestamp_seconds", "gauge", _B, "When the cap becomes stale."),
    Metric("capacity", "gauge", (*_B, "bound"), "Measured capacity of one replica: estimate, low and high (95 %)."),
    Metric("in_flight_requests", "gauge", (*_B, "kind"), "Requests in flight: organic, and our own probes."),
    Metric("in_flight_peak_requests", "gauge", _B, "Most organic requests in flight in the last 60 seconds."),
    Metric("headroom", "gauge", _B, "Cap minus organic requests in flight."),
    Metric("headroom_ratio", "gauge", _B, "Headroom divided by the cap."),
    Metric("headroom_min_ratio", "gauge", _B, "Least headroom ratio of the last 60 seconds."),
    Metric("ready_replicas", "gauge", _B, "Replicas of the backend that are ready."),
    Metric(
        "curve_latency_seconds",
        "gauge",
        (*_B, "metric", "percentile", "concurrency"),
        "Latency by concurrency, from the last sweep's own schedule and not from this scrape.",
    ),
    Metric(
        "objective_limit_seconds",
        "gauge",
        (*_B, "metric", "percentile", "max_prompt_tokens"),
        "Limit of an objective of the SLA; max_prompt_tokens is empty where every request counts.",
    ),
    Metric("sweeps_total", "counter", (*_B, "outcome"), "Sweeps ended since the start of this process."),
    Metric("sweep_duration_seconds", "gauge", _B, "Duration of the last ended sweep."),
    Metric("sweep_active", "gauge", _B, "1 while a sweep puts load on the backend: autoscalers may look away."),
    Metric("last_sweep_timestamp_seconds", "gauge", (*_B, "outcome"), "End of the last sweep with this outcome."),
    Metric("probe_requests_total", "counter", (*_B, "outcome"), "Probe requests ended."),
    Metric("probe_tokens_total", "counter", (*_B, "kind"), "Tokens that probes cost, prompt or output."),
    Metric("probe_overload_seconds_total", "counter", _B, "Seconds in which probes pushed the backend over its SLA."),
    Metric(
        "guard_trips_total",
        "counter",
        (*_B, "reason"),
        "Alarms of the watch over live users; all but breach_not_concurrency lowered the cap.",
    ),
    Metric("guard_breach", "gauge", _B, "1 while live users miss the SLA and a lower cap would not help, else 0."),
    Metric("sweep_aborts_total", "counter", (*_B, "reason"), "Sweeps that ended at once to spare live users."),
    Metric("live_exceedances_total", "counter", _B, "Live requests over an objective while a sweep ran."),
    Metric("sweep_deferred", "gauge", (*_B, "reason"), "1 for what keeps a due sweep from starting; all 0: nothing."),
    Metric("gateway_concurrency", "gauge", _B, "What gateways are told: the fallback in the shadow, less probes."),
    Metric("backend_up", "gauge", _B, "1 if the engine answers, 0 if not; absent before it was asked."),
    Metric("backend_health", "gauge", (*_B, "health"), "1 for the health of measuring this backend, else 0."),
    Metric("gateway_clients", "gauge", _B, "Gateways among which the cap is divided."),
    Metric("gateway_clients_over_cap", "gauge", _B, "Gateways beyond the cap: all have 1, together more than the cap."),
    Metric("gateway_polls_total", "counter", _B, "Polls for the cap."),
    Metric("generator_lag_seconds", "gauge", (), "Event-loop lag of the load generator."),
    Metric(
        "inconclusive_levels",
        "gauge",
        (*_B, "cause"),
        "Levels of the last sweep that could not be judged; cause generator: it was too slow; unmeasured: an objective "
        "that the answers do not show.",
    ),
    Metric(
        "generator_events_per_second",
        "gauge",
        (),
        "Token events this machine can measure (self-test of the start).",
    ),
    Metric("lease_held", "gauge", _B, "1 if this instance measures the backend and publishes its cap, else 0."),
    Metric("store_up", "gauge", (), "1 while the database works; 0: what is served may be out of date."),
    Metric("asyncio_tasks", "gauge", (), "Tasks of this process, one for each open request and each watch."),
    Metric("build_info", "gauge", ("version",), "1, labelled with the version of this software."),
)


def reference_markdown() -> str:
    """The metric table of the documentation."""
    rows = [
        f"| `{PREFIX}{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} "
        f"| {metric.help} |"
        for metric in METRICS
    ]
    return "\n".join(["| metric | type | labels | meaning |", "|---|---|---|---|", *rows]) + "\n"


class MetricsPage:
    """One scrape = one snapshot.

    The curves are most of a page and change with each sweep, not with each scrape: their lines are kept.
    """

    def __init__(self, snapshot: Callable[[], Snapshot], clock: Clock, software_version: str) -> None:
        self._snapshot = snapshot
        self._clock = clock
        self._version = software_version
        self._curves: dict[str, tuple[SweepSummary, str]] = {}  # by backend

    def text(self, *, openmetrics: bool = False) -> str:
        snapshot, now = self._snapshot(), self._clock.wall()
        lines = Lines(METRICS)
        lines.add(_of_process(snapshot, self._version))
        for view in snapshot.backends.values():
            for points in (_published(view, now), _live(view), _measured(view), _counted(view)):
                lines.add(points, view.name)
            if view.last_sweep is not None:
                lines.add_written("curve_latency_seconds", self._curve(view.name, view.last_sweep))
        return written(METRICS, lines, openmetrics=openmetrics)

    def _curve(self, backend: str, sweep: SweepSummary) -> str:
        known = self._curves.get(backend)
        if known is None or known[0] is not sweep:
            lines = Lines(METRICS)
            lines.add((point for level in sweep.levels for point in _curve(level)), backend)
            known = self._curves[backend] = sweep, lines.of("curve_latency_seconds")
        return known[1]

    def response(self, request: Request) -> Response:
        """Text or OpenMetrics, as the scraper asks."""
        openmetrics = is_openmetrics(request.headers.get("accept", ""))
        headers = {"Content-Type": content_type(openmetrics=openmetrics), "Cache-Control": "no-store"}
        return Response(self.text(openmetrics=openmetrics), headers=headers)


def _of_process(snapshot: Snapshot, software_version: str) -> Iterator[Point]:
    yield "generator_lag_seconds", (), snapshot.generator_lag_s
    yield "generator_events_per_second", (), snapshot.generator_events_per_s
    yield "store_up", (), not snapshot.store_problem
    yield "asyncio_tasks", (), _tasks()
    yield "build_info", (software_version,), 1.0


def _tasks() -> int | None:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:  # asked outside the service's event loop
        return None


def _published(view: BackendView, now: float) -> Iterator[Point]:
    published = view.recommendation
    yield "recommended_concurrency", (), published.cap
    yield "recommended_replica_concurrency", (), published.replica_cap
    if published.rates is not None:
        yield "recommended_requests_per_second", (), published.rates.requests_per_second
        yield "recommended_tokens_per_minute", ("prompt",), published.rates.prompt_tokens_per_minute
        yield "recommended_tokens_per_minute", ("output",), published.rates.output_tokens_per_minute
    yield from _one_hot("recommendation_state", State, view.state_at(now))
    yield from _one_hot("recommendation_grade", Grade, published.grade)
    yield "recommendation_timestamp_seconds", (), published.published_at
    yield "recommendation_valid_until_timestamp_seconds", (), published.valid_until
    if published.capacity is not None:
        yield "capacity", ("estimate",), published.capacity.estimate
        yield "capacity", ("low",), published.capacity.low
        yield "capacity", ("high",), published.capacity.high


def _live(view: BackendView) -> Iterator[Point]:
    yield "in_flight_requests", ("organic",), view.organic_in_flight
    yield "in_flight_requests", ("probe",), view.probe_in_flight
    yield "in_flight_peak_requests", (), view.in_flight_peak
    yield "headroom_min_ratio", (), view.headroom_min_ratio
    if view.headroom is not None:
        yield "headroom", (), view.headroom
        yield "headroom_ratio", (), view.headroom / view.recommendation.cap
    yield "ready_replicas", (), view.ready_replicas
    yield "backend_up", (), view.up
    yield from _one_hot("backend_health", Health, view.health)
    yield "sweep_active", (), view.progress is not None
    yield from _one_hot("sweep_deferred", DeferralReason, None if view.deferred is None else view.deferred.reason)
    yield "gateway_concurrency", (), view.served_cap
    yield "lease_held", (), view.lease_held


def _measured(view: BackendView) -> Iterator[Point]:
    yield from _limits(view)
    if view.last_sweep is not None:
        levels = view.last_sweep.levels
        yield "inconclusive_levels", ("generator",), sum(bool(level.audit.reasons) for level in levels)
        yield "inconclusive_levels", ("unmeasured",), sum(level.verdict.is_unmeasured for level in levels)
        yield "sweep_duration_seconds", (), view.last_sweep.duration_s
    for outcome, ended_at in view.last_sweep_at.items():
        yield "last_sweep_timestamp_seconds", (outcome,), ended_at


def _limits(view: BackendView) -> Iterator[Point]:
    strictest: dict[tuple[str, str, str], float] = {}  # an SLA may name a quantile twice, a scrape may not
    for objective in map(parse_objective, view.objectives):
        scope = "" if objective.max_prompt_tokens is None else str(objective.max_prompt_tokens)
        labels = (objective.metric.value, _percentile(objective.quantile), scope)
        strictest[labels] = min(objective.limit_s, strictest.get(labels, objective.limit_s))
    for labels, limit_s in strictest.items():
        yield "objective_limit_seconds", labels, limit_s


def _percentile(quantile: float) -> str:
    """`99`: the label `quantile` is reserved for summaries."""
    return f"{100.0 * quantile:g}"


_PERCENTILES = tuple((name, _percentile(quantile)) for name, quantile in QUANTILES)


def _curve(level: LevelReport) -> Iterator[Point]:
    concurrency = str(level.concurrency)
    for metric in LATENCIES:
        summary = getattr(level, metric)
        for name, percentile in _PERCENTILES:
            estimate = getattr(summary, name)
            if estimate is not None:
                yield "curve_latency_seconds", (metric, percentile, concurrency), estimate.value_s


def _counted(view: BackendView) -> Iterator[Point]:
    counters = view.counters
    for outcome, count in counters.sweeps.items():
        yield "sweeps_total", (outcome,), count
    for outcome, count in counters.probe_requests.items():
        yield "probe_requests_total", (outcome,), count
    for kind, count in counters.probe_tokens.items():
        yield "probe_tokens_total", (kind,), count
    yield "probe_overload_seconds_total", (), counters.probe_overload_s
    for reason, count in counters.sweep_aborts.items():
        yield "sweep_aborts_total", (reason,), count
    yield "live_exceedances_total", (), counters.live_exceedances
    if view.guard is not None:
        for reason, count in view.guard.trips.items():
            yield "guard_trips_total", (reason,), count
        yield "guard_breach", (), view.guard.breach_reason is not None
    yield "gateway_clients", (), view.gateway_clients
    yield "gateway_clients_over_cap", (), view.gateway_clients_over_cap
    yield "gateway_polls_total", (), counters.gateway_polls


def _one_hot(name: str, values: type[StrEnum], current: StrEnum | None) -> Iterator[Point]:
    for value in values:
        yield name, (value.value,), value is current
