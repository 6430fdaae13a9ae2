"""The engine's state under vLLM's metric names (checked against vLLM 0.32), from a registry of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from calibrator.backends.simulated.driver import Driver, Request

LABELS = ("model_name", "engine")
FINISHED_REASONS = ("stop", "length", "abort", "error")
TTFT_BUCKETS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0, 2560.0,
)  # fmt: skip
E2E_BUCKETS_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
)  # fmt: skip
TOKEN_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


class EngineMetrics:
    """Histograms are fed by `observe`; gauges and counters are read when the page is asked for."""

    def __init__(self, driver: Driver, model: str, started_at: float) -> None:
        self.started_at = started_at
        self.registry = CollectorRegistry()
        self._finished = dict.fromkeys(FINISHED_REASONS, 0)
        values = (model, "0")
        self.registry.register(_State(driver, values, started_at, self._finished))

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            family = Histogram(f"vllm:{name}", text, LABELS, registry=self.registry, buckets=buckets)
            return family.labels(*values)

        self._ttft = histogram("time_to_first_token_seconds", "Arrival to first token.", TTFT_BUCKETS_S)
        self._e2e = histogram("e2e_request_latency_seconds", "Arrival to last token.", E2E_BUCKETS_S)
        self._prompt = histogram("request_prompt_tokens", "Prompt tokens of finished requests.", TOKEN_BUCKETS)
        self._output = histogram("request_generation_tokens", "Output tokens of finished requests.", TOKEN_BUCKETS)

    def observe(self, request: Request) -> None:
        self._finished[request.finish_reason] += 1
        self._ttft.observe(request.first_token_s - request.arrived_s)
        self._e2e.observe(request.ended_s - request.arrived_s)
        self._prompt.observe(request.prompt_tokens)
        self._output.observe(request.made_tokens)

    def page(self) -> bytes:
        return generate_latest(self.registry)


@dataclass(frozen=True, slots=True, eq=False)
class _State(Collector):
    driver: Driver
    values: tuple[str, str]
    started_at: float
    finished: dict[str, int]

    def collect(self) -> Iterator[Metric]:
        engine = self.driver.engine
        yield self._gauge("num_requests_running", "Requests in the batch.", engine.running)
        yield self._gauge("num_requests_waiting", "Requests in the queue.", engine.waiting)
        yield self._gauge("kv_cache_usage_perc", "KV memory in use, 1 is all.", engine.kv_usage_ratio)
        yield self._counter("num_preemptions", "Preempted requests.", engine.counters.preemptions)
        yield self._counter("prompt_tokens", "Prompt tokens computed.", engine.counters.prompt_tokens)
        yield self._counter("generation_tokens", "Tokens made.", engine.counters.generated_tokens)
        yield self._counter("prefix_cache_queries", "Tokens looked up.", engine.cache.queries)
        yield self._counter("prefix_cache_hits", "Tokens found.", engine.cache.hits)
        rejections = CounterMetricFamily("vllm:admission_rejections", "Refused requests.", labels=(*LABELS, "reason"))
        rejections.add_metric((*self.values, "queue_full"), engine.counters.refused)
        yield rejections
        success = CounterMetricFamily("vllm:request_success", "Finished requests.", labels=(*LABELS, "finished_reason"))
        for reason, count in self.finished.items():
            success.add_metric((*self.values, reason), count)
        yield success
        yield GaugeMetricFamily("process_start_time_seconds", "Start of the process.", value=self.started_at)

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"vllm:{name}", text, labels=LABELS)
        family.add_metric(self.values, value)
        return family

    def _counter(self, name: str, text: str, value: float) -> CounterMetricFamily:
        family = CounterMetricFamily(f"vllm:{name}", text, labels=LABELS)
        family.add_metric(self.values, value)
        return family
