"""The engine's state under vLLM's metric names, labels and bucket bounds (those of a running vLLM 0.32).

As there, the time to first token counts when that token is made, everything else of a request when it ends.
"""

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
    1920.0, 7680.0,
)  # fmt: skip
TPOT_BUCKETS_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip


def token_buckets(max_context_tokens: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50, ... up to the context's length."""
    decades = range(len(str(max_context_tokens)))
    steps = (float(digit * 10**decade) for decade in decades for digit in (1, 2, 5))
    return tuple(step for step in steps if step <= max_context_tokens)


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
        self._tpot = histogram("request_time_per_output_token_seconds", "Of each request.", TPOT_BUCKETS_S)
        tokens = token_buckets(driver.parameters.max_context_tokens)
        self._prompt = histogram("request_prompt_tokens", "Prompt tokens of finished requests.", tokens)
        self._output = histogram("request_generation_tokens", "Output tokens of finished requests.", tokens)

    def observe_first_token(self, request: Request) -> None:
        self._ttft.observe(request.first_token_s - request.arrived_s)

    def observe_end(self, request: Request) -> None:
        self._finished[request.finish_reason] += 1
        if request.made_tokens > 1:
            self._tpot.observe((request.ended_s - request.first_token_s) / (request.made_tokens - 1))
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
        rejections = CounterMetricFamily(
            "vllm:admission_rejections", "Refused requests.", labels=("model_name", "reason")
        )
        rejections.add_metric((self.values[0], "max_num_queued_reqs"), engine.counters.refused)
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
