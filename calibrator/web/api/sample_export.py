"""Individual requests of a sweep as text: JSON Lines in the format of AIPerf's `profile_export.jsonl`, or CSV.

Fields that AIPerf has carry its names and units (milliseconds, nanoseconds since 1970), so tools that read its files
read ours. All others are under `calibrator` (JSON Lines) or in columns with our own names, in seconds.

| AIPerf | here |
|---|---|
| `request_latency` | start to end of a completed request |
| `time_to_first_token` | first generated token of any kind |
| `time_to_first_output_token` | first token of the answer itself, after any reasoning |
| `inter_token_latency` | (last - first token) / (tokens - 1); AIPerf counts to the end of the stream |
| `input_sequence_length`, `output_sequence_length` | as counted by the server |
| `benchmark_phase` | `warmup` for requests of the ramp to a level, else `profiling` |
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from calibrator.core.records.sample import Phase, RequestOutcome
from calibrator.core.records.sample_log import SampleLog, SampleRow

TYPES = {"jsonl": "application/jsonl", "csv": "text/csv"}
_PER_USER = "tokens/sec/user"
_COMPLETE = {RequestOutcome.OK.value, RequestOutcome.VIOLATION.value}


def export_samples(log: SampleLog, sweep_id: str, kind: str) -> str:
    """`kind`: a key of `TYPES`."""
    return _csv(log, sweep_id) if kind == "csv" else _json_lines(log, sweep_id)


def _json_lines(log: SampleLog, sweep_id: str) -> str:
    return "".join(f"{json.dumps(_record(row, sweep_id), separators=(',', ':'))}\n" for row in log.rows)


def _record(row: SampleRow, sweep_id: str) -> dict[str, Any]:
    metrics = {name: {"value": value, "unit": unit} for name, value, unit in _metrics(row) if value is not None}
    if row.outcome not in _COMPLETE and "input_sequence_length" in metrics:
        metrics["error_isl"] = metrics.pop("input_sequence_length")
    return {
        "metadata": {**_metadata(row, sweep_id), "worker_id": "calibrator", "record_processor_id": "calibrator"},
        "metrics": metrics,
        "error": _error(row),
        "calibrator": _ours(row),
    }


def _metadata(row: SampleRow, sweep_id: str) -> dict[str, Any]:
    ended_ns = _ns(row.started_at + row.duration_s)
    was_cancelled = row.outcome == RequestOutcome.CANCELLED.value
    return {
        "session_num": row.request_id,
        "x_request_id": f"calibrator-{sweep_id}-{row.request_id}",
        "turn_index": 0,
        "request_start_ns": _ns(row.started_at),
        "request_end_ns": ended_ns,
        "benchmark_phase": "warmup" if row.phase == Phase.RAMP.value else "profiling",
        "was_cancelled": was_cancelled,
        "cancellation_time_ns": ended_ns if was_cancelled else None,
    }


def _metrics(row: SampleRow) -> Iterator[tuple[str, float | None, str]]:
    """AIPerf keeps latencies of complete responses only."""
    is_complete = row.outcome in _COMPLETE
    yield "input_sequence_length", row.prompt_tokens, "tokens"
    yield "output_sequence_length", (row.completion_tokens if is_complete else None), "tokens"
    yield "request_latency", (_ms(row.duration_s) if is_complete else None), "ms"
    yield "time_to_first_token", (_ms(row.ttft_s) if is_complete else None), "ms"
    yield "time_to_first_output_token", (_ms(row.ttfc_s) if is_complete else None), "ms"
    yield "inter_token_latency", (_ms(row.tpot_s) if is_complete else None), "ms"
    throughput = round(1.0 / row.tpot_s, 3) if is_complete and row.tpot_s else None
    yield "output_token_throughput_per_user", throughput, _PER_USER


def _error(row: SampleRow) -> dict[str, Any] | None:
    if row.outcome == RequestOutcome.CANCELLED.value:
        return {"code": 499, "type": "RequestCancellationError", "message": "cancelled by calibrator"}
    if row.failure is None:
        return None
    return {"code": row.status, "type": row.failure, "message": row.failure.replace("_", " ")}


def _ours(row: SampleRow) -> dict[str, Any]:
    """Fields that AIPerf does not have."""
    names = ("level", "outcome", "class_name", "stream", "token_events", "cached_tokens", "connect_s", "send_delay_s")
    return {name: getattr(row, name) for name in names}


def _csv(log: SampleLog, sweep_id: str) -> str:
    file = io.StringIO()
    lines = [_line(row, sweep_id) for row in log.rows]
    if lines:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return file.getvalue()


def _line(row: SampleRow, sweep_id: str) -> dict[str, Any]:
    error = _error(row) or {}
    return {
        **_metadata(row, sweep_id),
        **{name: value for name, value, _unit in _metrics(row)},
        "error_code": error.get("code"),
        "error_type": error.get("type"),
        **_ours(row),
    }


def _ns(at: float) -> int:
    return round(at * 1e6) * 1000  # a float of Unix seconds resolves microseconds


def _ms(value_s: float | None) -> float | None:
    return None if value_s is None else round(1000.0 * value_s, 3)
