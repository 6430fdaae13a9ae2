"""What engines call their metrics: one literal table, one row an engine.

Names differ by engine and by version, and any series may be absent. So each column lists alternatives, the current name
first, and the first alternative that is present counts; an alternative is one series, or several that add up. What an
engine has no series for is an empty column, and None in the `ServerLoad`.

Each row says in which release its names were seen, and how (`seen`, `basis`); `SPELLINGS` are prefixes by which the
same names come where something else exports them. The table as documentation: deploy/docs/engines.md.

**Labels.** A series may come many times. Whatever a label tells apart is added up (data-parallel ranks, replicas,
finish reasons, a label that the next release adds), with two exceptions that each row names:

- `repeats`: ranks that compute the same requests together. Within what the other labels tell apart, the lowest counts.
- `totals`: a label by which the total stands beside its parts, and the value that the total has. Where it is there, the
  parts are not added to it.

KV use is that of the fullest. A gauge that is not a number is absent, and a load with an absent queue is unknown.

Names that look right and are not, left out on purpose:
- `time_per_output_token_seconds` of older vLLM, of SGLang, NIM and LMDeploy counts each gap between two tokens, whereas
  `tpot` is one value a request;
- `sglang:num_retracted_reqs` is the last batch's gauge, not a counter;
- hit *rates* (`sglang:cache_hit_rate`, `vllm:gpu_prefix_cache_hit_rate`) are gauges over a span that nobody knows;
- Triton's `active` requests are the scheduled and the waiting ones together;
- `dynamo_frontend_queued_requests` are all that wait for their first token, those that run included;
- `sglang:num_running_reqs_by_priority` and the like are parts of what is counted already;
- MAX's histograms are in milliseconds.

A new engine is a new row, with the page of a running one as its test.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from calibrator.core.records.server_load import COUNTERS, HISTOGRAMS

# A client library's convention (Prometheus): seconds since the epoch; a new value means a new process.
PROCESS_START_METRIC = "process_start_time_seconds"
# llama.cpp: an opaque id, constant during a run (its value is not Unix time).
PROCESS_START_HEADER = "Process-Start-Time-Unix"
# As a page may write a prefix, as the table does, and where that was seen.
SPELLINGS = (
    ("ray_vllm:", "vllm:", "Ray Serve, its dashboards before 2.48"),
    ("ray_vllm_", "vllm:", "Ray Serve 2.48 and later: `:` is no character of its metrics"),
    ("vllm_", "vllm:", "OpenTelemetry collectors, which rewrite `:` likewise"),
    ("ray_sglang_", "sglang:", "SGLang 0.5 under Ray Serve (its `ray_wrappers`)"),
    ("sglang_", "sglang:", "SGLang 0.5, as its deployments and their readers show it"),
    ("lmdeploy_", "lmdeploy:", "OpenTelemetry collectors"),
)


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


def _counters(*names: str) -> Column:
    """Likewise; some exporters (Ray) write a counter without its suffix, or both with and without."""
    return _named(*(f"{name}{suffix}" for name in names for suffix in ("_total", "")))


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """One row. Columns are named as the fields of `ServerLoad` that they fill."""

    engine: str
    seen: str  # release
    basis: str  # live | source | documentation | readers (other projects that read such pages)
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
    partition: tuple[str, ...] = field(default=(), kw_only=True)  # known ones; what no column below names is added up
    repeats: tuple[str, ...] = field(default=(), kw_only=True)
    totals: tuple[tuple[str, str], ...] = field(default=(), kw_only=True)
    running_holds_waiting: bool = field(default=False, kw_only=True)  # the gauge of running ones counts them too
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


COLUMNS = ("running_requests", "waiting_requests", "kv_usage_ratio", *COUNTERS, *HISTOGRAMS)


def _names(column: Column) -> frozenset[str]:
    return frozenset(series.name for alternative in column for series in alternative)


ENGINES = (
    EngineMetrics(
        "vllm",
        "0.32; names before 0.6 and 0.10 by its documentation",
        "live",
        running_requests=_named("vllm:num_requests_running"),
        # Up to 0.10 preempted requests could wait in the CPU's memory.
        waiting_requests=((Series("vllm:num_requests_waiting"), Series("vllm:num_requests_swapped")),),
        kv_usage_ratio=_named("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),  # 0..1 despite the name
        preemptions_total=_counters("vllm:num_preemptions"),
        finished_total=tuple(
            (Series(name, "finished_reason", ("stop", "length", "repetition")),)
            for name in ("vllm:request_success_total", "vllm:request_success")
        ),
        refused_total=tuple(
            (
                Series(f"vllm:admission_rejections{suffix}"),
                Series(f"vllm:request_success{suffix}", "finished_reason", ("error",)),
            )
            for suffix in ("_total", "")
        ),
        prompt_tokens_total=_counters("vllm:prompt_tokens"),
        output_tokens_total=_counters("vllm:generation_tokens"),
        prefix_queried_tokens_total=_counters("vllm:prefix_cache_queries", "vllm:gpu_prefix_cache_queries"),
        prefix_hit_tokens_total=_counters("vllm:prefix_cache_hits", "vllm:gpu_prefix_cache_hits"),
        ttft_s=_named("vllm:time_to_first_token_seconds"),
        e2e_s=_named("vllm:e2e_request_latency_seconds"),
        tpot_s=_named("vllm:request_time_per_output_token_seconds"),
        prompt_tokens=_named("vllm:request_prompt_tokens"),
        output_tokens=_named("vllm:request_generation_tokens"),
        model_label="model_name",
        partition=("engine", "ReplicaId", "WorkerId", "finished_reason", "reason"),
        version_path="/version",
    ),
    EngineMetrics(
        "sglang",
        "0.5.23",
        "source",
        running_requests=_named("sglang:num_running_reqs"),
        waiting_requests=_named("sglang:num_queue_reqs"),
        kv_usage_ratio=_named("sglang:token_usage", "sglang:full_token_usage"),
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
        # With DP attention each data-parallel rank has a scheduler of its own, and `tp_rank` numbers them once more.
        partition=("dp_rank", "engine_type", "is_streaming", "cache_source", "ReplicaId", "WorkerId"),
        repeats=("tp_rank", "pp_rank", "moe_ep_rank"),  # all of them with --enable-metrics-for-all-schedulers
        totals=(("priority", ""),),  # with --enable-priority-scheduling
    ),
    EngineMetrics(
        "tgi",
        "3.3",
        "documentation",
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
        "1.x",
        "source",
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
        "2.71",
        "documentation",
        running_requests=((Series("nv_trt_llm_request_metrics", "request_type", ("scheduled",)),),),
        waiting_requests=((Series("nv_trt_llm_request_metrics", "request_type", ("waiting",)),),),
        kv_usage_ratio=((Series("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type", ("fraction",)),),),
        model_label="model",  # on a port of its own, 8002: needs `metrics_url`
    ),
    EngineMetrics(
        "nim",
        "1.x",
        "documentation",
        running_requests=_named("num_requests_running"),
        waiting_requests=_named("num_requests_waiting"),
        kv_usage_ratio=_named("gpu_cache_usage_perc", "kv_cache_usage_perc"),
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
        "0.18",
        "source",
        running_requests=_named("lmdeploy:num_requests_running"),
        waiting_requests=_named("lmdeploy:num_requests_waiting"),
        kv_usage_ratio=_named("lmdeploy:gpu_cache_usage_perc", "lmdeploy:kv_cache_usage_perc"),
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
        "xllamacpp 2026.10",
        "live",
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
    EngineMetrics(
        "max",
        "26.x",
        "source",
        running_requests=_named("maxserve_num_requests_running"),  # from the arrival to the last byte
        waiting_requests=_named("maxserve_num_requests_queued"),
        preemptions_total=_counters("maxserve_cache_preemption_count"),
        prompt_tokens_total=_counters("maxserve_num_input_tokens"),
        output_tokens_total=_counters("maxserve_num_output_tokens"),
        prefix_queried_tokens_total=(
            (Series("maxserve_cache_hits_tokens_total"), Series("maxserve_cache_misses_tokens_total")),
        ),
        prefix_hit_tokens_total=_counters("maxserve_cache_hits_tokens"),
        partition=("tier",),
        running_holds_waiting=True,  # on a port of its own, 8001: needs `metrics_url`
    ),
    EngineMetrics(  # in front of several workers, whose own pages have their engines' names
        "dynamo",
        "1.6.1",
        "documentation",
        # The first counts from the arrival at the frontend, the second what was handed on.
        running_requests=_named("dynamo_frontend_active_requests", "dynamo_frontend_inflight_requests"),
        waiting_requests=(),
        finished_total=((Series("dynamo_frontend_requests_total", "status", ("success",)),),),
        refused_total=_counters("dynamo_frontend_model_rejection"),
        output_tokens_total=_counters("dynamo_frontend_output_tokens"),
        ttft_s=_named("dynamo_frontend_time_to_first_token_seconds"),
        e2e_s=_named("dynamo_frontend_request_duration_seconds"),
        prompt_tokens=_named("dynamo_frontend_input_sequence_tokens"),
        output_tokens=_named("dynamo_frontend_output_sequence_tokens"),
        model_label="model",
        partition=("endpoint", "request_type", "status"),
    ),
)
