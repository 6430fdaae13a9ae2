"""What engines call their gauges: one literal table, one row an engine.

Names differ by engine and by version, and any series may be absent, so each column lists the names it went by, the
current one first; the first that is present counts. Sources: vLLM 0.32 and llama.cpp (xllamacpp 2026.10) read live,
older vLLM names by its documentation.

A new engine is a new row, with the page of a running one as its test.
"""

from __future__ import annotations

from dataclasses import dataclass

# A client library's convention (Prometheus): seconds since the epoch; a new value means a new process.
PROCESS_START_METRIC = "process_start_time_seconds"
# llama.cpp: an opaque id, constant during a run (its value is not Unix time).
PROCESS_START_HEADER = "Process-Start-Time-Unix"


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """Names of one engine; an empty tuple: it has no such metric."""

    engine: str
    running: tuple[str, ...]
    waiting: tuple[str, ...]
    kv_usage_ratio: tuple[str, ...] = ()
    preemptions_total: tuple[str, ...] = ()
    model_label: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return self.running + self.waiting + self.kv_usage_ratio + self.preemptions_total


ENGINES = (
    EngineMetrics(
        engine="vllm",
        running=("vllm:num_requests_running",),
        waiting=("vllm:num_requests_waiting",),
        kv_usage_ratio=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),  # both 0..1 despite the name
        preemptions_total=("vllm:num_preemptions_total", "vllm:num_preemptions"),
        model_label="model_name",
    ),
    EngineMetrics(
        engine="llama.cpp",
        running=("llamacpp:requests_processing",),
        waiting=("llamacpp:requests_deferred",),
        kv_usage_ratio=("llamacpp:kv_cache_usage_ratio",),  # older builds only
    ),
)
