"""The individual requests of a sweep as they are kept for export: one packed row each.

The format is zlib-compressed JSON: column names once, then one array per row, durations rounded to a microsecond. That
is about 40 bytes per request, so the default budget (1,800 requests and 4 more per level) stays below 200 KB. A sweep
keeps the first `MOST_SAMPLES` and counts the rest. Prompts and answers are never kept; of a failure only kind and
status are.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import starmap

from calibrator.core.records.level_accumulator import outcome_of
from calibrator.core.records.objective import Objective
from calibrator.core.records.sample import Sample
from calibrator.errors import ConfigurationError

MOST_SAMPLES = 20_000
_VERSION = 1
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One ended request; None: never reached, or not reported by the server."""

    request_id: int
    level: int | None  # None: of a burst, or of a stage that was cut off
    phase: str  # core.records.sample.Phase
    class_name: str
    outcome: str  # core.records.sample.RequestOutcome
    stream: bool
    started_at: float  # Unix seconds
    duration_s: float
    ttft_s: float | None
    ttfc_s: float | None
    tpot_s: float | None
    token_events: int
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    wanted_prompt_tokens: int
    wanted_output_tokens: int | None
    connect_s: float
    send_delay_s: float
    failure: str | None  # core.records.sample.FailureKind
    status: int | None


@dataclass(frozen=True, slots=True)
class SampleLog:
    """In the order in which the requests ended."""

    rows: tuple[SampleRow, ...]
    left_out: int = 0


_COLUMNS = tuple(field.name for field in fields(SampleRow))


def sample_row(sample: Sample, level: int | None, objectives: Sequence[Objective], clock_offset_s: float) -> SampleRow:
    """`clock_offset_s`: from the monotonic clock that stamped the sample to Unix time."""
    return SampleRow(
        request_id=sample.request_id,
        level=level,
        phase=sample.label.phase.value,
        class_name=sample.class_name,
        outcome=outcome_of(sample, objectives).value,
        stream=sample.stream,
        started_at=round(sample.started_s + clock_offset_s, _DIGITS),
        duration_s=round(sample.duration_s, _DIGITS),
        ttft_s=_rounded(sample.ttft_s),
        ttfc_s=_rounded(sample.ttfc_s),
        tpot_s=_rounded(sample.tpot_s),
        token_events=sample.token_events,
        prompt_tokens=sample.prompt_tokens,
        completion_tokens=sample.completion_tokens,
        cached_tokens=sample.cached_tokens,
        wanted_prompt_tokens=sample.wanted_prompt_tokens,
        wanted_output_tokens=sample.wanted_output_tokens,
        connect_s=round(sample.connect_s, _DIGITS),
        send_delay_s=round(sample.send_delay_s, _DIGITS),
        failure=None if sample.failure is None else sample.failure.kind.value,
        status=None if sample.failure is None else sample.failure.status,
    )


def pack(
    samples: Sequence[Sample],
    levels: Mapping[int, int],
    objectives: Sequence[Objective],
    clock_offset_s: float,
    left_out: int = 0,
) -> bytes:
    """`levels`: by stage number."""
    rows = (sample_row(one, levels.get(one.label.stage), objectives, clock_offset_s) for one in samples)
    document = {
        "version": _VERSION,
        "left_out": left_out,
        "columns": _COLUMNS,
        "rows": [[getattr(row, name) for name in _COLUMNS] for row in rows],
    }
    return zlib.compress(json.dumps(document, separators=(",", ":")).encode())


def unpack(packed: bytes) -> SampleLog:
    """Raises ConfigurationError for a log written by an incompatible release."""
    document = json.loads(zlib.decompress(packed))
    if document["version"] != _VERSION or tuple(document["columns"]) != _COLUMNS:
        raise ConfigurationError("The samples were written by another release.", "Export them with that release.")
    return SampleLog(tuple(starmap(SampleRow, document["rows"])), document["left_out"])


def _rounded(value_s: float | None) -> float | None:
    return None if value_s is None else round(value_s, _DIGITS)
