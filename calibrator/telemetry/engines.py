"""What engines call their metrics: one literal table, one row an engine.

Names differ by engine and by version, and any series may be absent. So each column lists alternatives, the current name
first, and the first alternative that is present counts; an alternative is one series, or several that add up. What an
engine has no series for is an empty column, and None in the `ServerLoad`.

| engine | basis |
|---|---|
| vLLM 0.32, llama.cpp (xllamacpp 2026.10) | read live; older vLLM names by its documentation (0.6 to 0.10) |
| SGLang 0.5, trtllm-serve, LMDeploy 0.18 | their source |
| TGI, Triton with the TensorRT-LLM backend, NIM | their documentation |

Names that look right and are not, left out on purpose:
- `time_per_output_token_seconds` of older vLLM, of SGLang, NIM and LMDeploy counts each gap between two tokens, whereas
  `tpot` is one value a request;
- `sglang:num_retracted_reqs` is the last batch's gauge, not a counter;
- hit *rates* (`sglang:cache_hit_rate`, `vllm:gpu_prefix_cache_hit_rate`) are gauges over a span that nobody knows;
- Triton's `active` requests are the scheduled and the waiting ones together.

A new engine is a new row, with the page of a running one as its test.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

# A client library's convention (Prometheus): seconds since the epoch; a new value means a new process.
PROCESS_START_METRIC = "process_start_time_seconds"
# llama.cpp: an opaque id, constant during a run (its value is not Unix time).
PROCESS_START_HEADER = "Process-Start-Time-Unix"
# Ranks that compute the same requests together: those after the first would count them again.
SAME_WORK_LABELS = ("tp_rank", "pp_rank")


@dataclass(frozen=True, slots=True)
class Series:
    """One series of a page; `label` and `values` choose among its samples."""

    name: str
    label: str = ""
    values: tuple[str, ...] = ()


Column = tuple[tuple[Series, ...], ...]  # alternatives, each a sum


def _named(*names: str) -> Column:
    """Alternatives of one series each."""
    return tuple((Series(name),) for name in names)


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """One row. Columns are named as the fields of `ServerLoad` that they fill."""

    engine: str
    running_requests: Column
    waiting_requests: Column
    kv_usage_ratio: Column = ()
    preemptions_total: Column = ()
    finished_total: Column = ()
    refused_total: Column = ()
    prompt_tokens_total: Column = ()
    output_tokens_total: Column = ()
    prefix_queried_tokens_total: Column = ()
    prefix_hit_tokens_total: Column = ()
    # Histograms: the name without `_bucket`.
    ttft_s: Column = ()
    e2e_s: Column = ()
    tpot_s: Column = ()
    prompt_tokens: Column = ()
    output_tokens: Column = ()
    model_label: str = field(default="", kw_only=True)
    path: str = field(default="/metrics", kw_only=True)  # next to the API's base
    version_path: str = field(default="", kw_only=True)  # answers {"version": "..."}

    @property
    def gauges(self) -> frozenset[str]:
        """Names by which the engine is recognised."""
        return _names(self.running_requests)

    @property
    def names(self) -> frozenset[str]:
        """Of every sample that is read, as it stands in the page."""
        return frozenset().union(
            *(
                {f"{name}_bucket" for name in _names(column)} if part in HISTOGRAMS else _names(column)
                for part, column in self.columns()
            )
        )

    def columns(self) -> tuple[tuple[str, Column], ...]:
        return tuple((part.name, getattr(self, part.name)) for part in fields(self) if part.name in COLUMNS)


HISTOGRAMS = ("ttft_s", "e2e_s", "tpot_s", "prompt_tokens", "output_tokens")
COLUMNS = (
    "running_requests",
    "waiting_requests",
    "kv_usage_ratio",
    "preemptions_total",
    "finished_total",
    "refused_total",
    "prompt_tokens_total",
    "output_tokens_total",
    "prefix_queried_tokens_total",
    "prefix_hit_tokens_total",
    *HISTOGRAMS,
)


def _names(column: Column) -> frozenset[str]:
    return frozenset(series.name for alternative in column for series in alternative)


ENGINES = (
    EngineMetrics(
        "vllm",
        running_requests=_named("vllm:num_requests_running"),
        # Up to 0.10 preempted requests could wait in the CPU's memory.
        waiting_requests=((Series("vllm:num_requests_waiting"), Series("vllm:num_requests_swapped")),),
        kv_usage_ratio=_named("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),  # 0..1 despite the name
        preemptions_total=_named("vllm:num_preemptions_total", "vllm:num_preemptions"),
        finished_total=((Series("vllm:request_success_total", "finished_reason", ("stop", "length", "repetition")),),),
        refused_total=(
            (
                Series("vllm:admission_rejections_total"),
                Series("vllm:request_success_total", "finished_reason", ("error",)),
            ),
        ),
        prompt_tokens_total=_named("vllm:prompt_tokens_total"),
        output_tokens_total=_named("vllm:generation_tokens_total"),
        prefix_queried_tokens_total=_named("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
        prefix_hit_tokens_total=_named("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
        ttft_s=_named("vllm:time_to_first_token_seconds"),
        e2e_s=_named("vllm:e2e_request_latency_seconds"),
        tpot_s=_named("vllm:request_time_per_output_token_seconds"),
        prompt_tokens=_named("vllm:request_prompt_tokens"),
        output_tokens=_named("vllm:request_generation_tokens"),
        model_label="model_name",
        version_path="/version",
    ),
    EngineMetrics(
        "sglang",
        running_requests=_named("sglang:num_running_reqs"),
        waiting_requests=_named("sglang:num_queue_reqs"),
        kv_usage_ratio=_named("sglang:token_usage"),
        preemptions_total=_named("sglang:num_retracted_requests_total"),
        finished_total=_named("sglang:num_requests_total"),
        refused_total=_named("sglang:num_aborted_requests_total"),
        prompt_tokens_total=_named("sglang:prompt_tokens_total"),
        output_tokens_total=_named("sglang:generation_tokens_total"),
        prefix_queried_tokens_total=_named("sglang:prompt_tokens_total"),
        prefix_hit_tokens_total=_named("sglang:cached_tokens_total"),
        ttft_s=_named("sglang:time_to_first_token_seconds"),
        e2e_s=_named("sglang:e2e_request_latency_seconds"),
        prompt_tokens=_named("sglang:prompt_tokens_histogram"),
        output_tokens=_named("sglang:generation_tokens_histogram"),
        model_label="model_name",
    ),
    EngineMetrics(
        "tgi",
        running_requests=_named("tgi_batch_current_size"),
        waiting_requests=_named("tgi_queue_size"),
        finished_total=_named("tgi_request_success"),
        e2e_s=_named("tgi_request_duration"),
        tpot_s=_named("tgi_request_mean_time_per_token_duration"),
        prompt_tokens=_named("tgi_request_input_length"),
        output_tokens=_named("tgi_request_generated_tokens"),
    ),
    EngineMetrics(
        "trtllm-serve",
        running_requests=_named("trtllm_num_requests_running"),
        waiting_requests=_named("trtllm_num_requests_waiting"),
        kv_usage_ratio=_named("trtllm_kv_cache_utilization"),
        finished_total=_named("trtllm_request_success_total"),
        refused_total=_named("trtllm_request_error_total"),
        prompt_tokens_total=_named("trtllm_prompt_tokens_total"),
        output_tokens_total=_named("trtllm_generation_tokens_total"),
        prefix_queried_tokens_total=_named("trtllm_prompt_tokens_total"),
        prefix_hit_tokens_total=_named("trtllm_prompt_cached_tokens_total"),
        ttft_s=_named("trtllm_time_to_first_token_seconds"),
        e2e_s=_named("trtllm_e2e_request_latency_seconds"),
        tpot_s=_named("trtllm_time_per_output_token_seconds"),
        model_label="model_name",
        path="/prometheus/metrics",  # with `return_perf_metrics: true`; its /metrics is something else, in JSON
        version_path="/version",
    ),
    EngineMetrics(
        "triton-trtllm",
        running_requests=((Series("nv_trt_llm_request_metrics", "request_type", ("scheduled",)),),),
        waiting_requests=((Series("nv_trt_llm_request_metrics", "request_type", ("waiting",)),),),
        kv_usage_ratio=((Series("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type", ("fraction",)),),),
        model_label="model",  # on a port of its own, 8002: needs `metrics_url`
    ),
    EngineMetrics(
        "nim",
        running_requests=_named("num_requests_running"),
        waiting_requests=_named("num_requests_waiting"),
        kv_usage_ratio=_named("gpu_cache_usage_perc"),
        finished_total=_named("request_success_total"),
        refused_total=_named("request_failure_total"),
        prompt_tokens_total=_named("prompt_tokens_total"),
        output_tokens_total=_named("generation_tokens_total"),
        ttft_s=_named("time_to_first_token_seconds"),
        e2e_s=_named("e2e_request_latency_seconds"),
        prompt_tokens=_named("request_prompt_tokens"),
        output_tokens=_named("request_generation_tokens"),
        model_label="model_name",
        path="/v1/metrics",
    ),
    EngineMetrics(
        "lmdeploy",
        running_requests=_named("lmdeploy:num_requests_running"),
        waiting_requests=_named("lmdeploy:num_requests_waiting"),
        kv_usage_ratio=_named("lmdeploy:gpu_cache_usage_perc"),
        prompt_tokens_total=_named("lmdeploy:prompt_tokens_total"),
        output_tokens_total=_named("lmdeploy:generation_tokens_total"),
        ttft_s=_named("lmdeploy:time_to_first_token_seconds"),
        e2e_s=_named("lmdeploy:e2e_request_latency_seconds"),
        prompt_tokens=_named("lmdeploy:request_prompt_tokens"),
        output_tokens=_named("lmdeploy:request_generation_tokens"),
        model_label="model_name",
    ),
    EngineMetrics(
        "llama.cpp",
        running_requests=_named("llamacpp:requests_processing"),
        waiting_requests=_named("llamacpp:requests_deferred"),
        kv_usage_ratio=_named("llamacpp:kv_cache_usage_ratio"),  # older builds only
        prompt_tokens_total=_named("llamacpp:prompt_tokens_total"),  # computed ones: cached tokens are not in it
        output_tokens_total=_named("llamacpp:tokens_predicted_total"),
        prefix_queried_tokens_total=(
            (Series("llamacpp:prompt_tokens_total"), Series("llamacpp:prompt_tokens_cached_total")),
        ),
        prefix_hit_tokens_total=_named("llamacpp:prompt_tokens_cached_total"),
    ),
)
