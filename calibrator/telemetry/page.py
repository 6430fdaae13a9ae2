"""An exposition page (Prometheus text format) as one ServerLoad.

Only lines whose name is in the table reach the exposition parser, which takes some 10 us for each: a page of vLLM has
over a thousand, and a page may be anything. So the page is fed in parts, as they arrive; what is not wanted is dropped
at once, and memory is bounded whatever the page does.

One page may show several engines (data-parallel ranks, label `engine`): requests, counters and histograms are added up
over them, KV use is the fullest one's. It may show several models: where one carries our name only its samples count;
where none does (an alias, an adapter) all count, because they share the engine.

Values that cannot be (negative, infinite, not a number) are left out, as if the engine did not show them; a histogram
whose counts fall with the bound is left out too. Pure; called by `telemetry.scrape`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from calibrator.core.records.server_load import Histogram, ServerLoad
from calibrator.telemetry.engines import (
    ENGINES,
    HISTOGRAMS,
    PROCESS_START_METRIC,
    SAME_WORK_LABELS,
    Column,
    EngineMetrics,
)

MAX_PAGE_BYTES = 4 * 1024 * 1024
MAX_LINES = 100_000  # a hundred engines
MAX_WANTED = 10_000  # of them: the costly ones
MAX_LINE_BYTES = 16 * 1024

_NAMES = sorted({name for row in ENGINES for name in row.names} | {PROCESS_START_METRIC})
_WANTED = re.compile(rb"^(?:" + "|".join(_NAMES).encode() + rb")[{ \t][^\n]*", re.MULTILINE)


class PageError(ValueError):
    """The page cannot be used; its text says why."""


@dataclass(slots=True)
class PageReader:
    """Takes a page in parts. Raises PageError when it becomes too large."""

    lines: list[bytes] = field(default_factory=list)
    seen: int = 0  # lines
    size_bytes: int = 0
    _rest: bytes = b""

    def feed(self, part: bytes) -> None:
        self.size_bytes += len(part)
        if self.size_bytes > MAX_PAGE_BYTES:
            raise PageError(f"is larger than {MAX_PAGE_BYTES // 1024**2} MiB")
        self.seen += part.count(b"\n")
        if self.seen > MAX_LINES:
            raise PageError(f"has more than {MAX_LINES} lines")
        lines, _, self._rest = (self._rest + part).rpartition(b"\n")
        self._take(lines)
        if len(self._rest) > MAX_LINE_BYTES:
            raise PageError(f"has a line longer than {MAX_LINE_BYTES // 1024} KiB")

    def text(self) -> str:
        """The wanted lines; ends the reading."""
        self._take(self._rest)
        self._rest = b""
        return b"\n".join((*self.lines, b"")).decode("utf-8", "replace")

    def _take(self, lines: bytes) -> None:
        self.lines += _WANTED.findall(lines)
        if len(self.lines) > MAX_WANTED:
            raise PageError(f"shows more than {MAX_WANTED} values of engines")


def server_load(text: str, model: str, header: str | None = None) -> ServerLoad | None:
    """`text`: what a `PageReader` left; `header`: the value of `Process-Start-Time-Unix`. Raises PageError.

    None: no engine that we know.
    """
    page = _samples(text)
    row = next((row for row in ENGINES if any(name in page for name in row.gauges)), None)
    if row is None:
        return None
    ours = _ours(page, row, model)
    values = {part: _column(part, column, ours) for part, column in row.columns()}
    started = page.get(PROCESS_START_METRIC)
    return ServerLoad(
        engine=row.engine,
        process_start=repr(started[0].value) if started else header,
        model=_model(ours, row),
        **values,  # type: ignore[arg-type] # `columns` are fields of ServerLoad, histograms are HISTOGRAMS: tested
    )


def _samples(text: str) -> Mapping[str, Sequence[Sample]]:
    """By the name in the page."""
    page: dict[str, list[Sample]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if math.isfinite(sample.value) and sample.value >= 0.0 and _is_first_rank(sample):
                    page.setdefault(sample.name, []).append(sample)
    except (ValueError, LookupError, TypeError) as error:  # whatever the parser stumbles over
        raise PageError(f"is broken ({str(error)[:80]!r})") from None
    return page


def _is_first_rank(sample: Sample) -> bool:
    return all(sample.labels.get(label, "0") == "0" for label in SAME_WORK_LABELS)


def _ours(page: Mapping[str, Sequence[Sample]], row: EngineMetrics, model: str) -> Mapping[str, Sequence[Sample]]:
    """The gauges say whether the page knows our model; if so, what is labelled with another one is left out."""
    label = row.model_label
    if not any(sample.labels.get(label) == model for name in row.gauges for sample in page.get(name, ())):
        return page
    return {
        name: [sample for sample in samples if sample.labels.get(label, model) == model]
        for name, samples in page.items()
    }


def _model(page: Mapping[str, Sequence[Sample]], row: EngineMetrics) -> str | None:
    """As the page names it; None where it names several or none."""
    named = {sample.labels.get(row.model_label) for name in row.gauges for sample in page.get(name, ())}
    return named.pop() if len(named) == 1 else None


def _column(part: str, column: Column, page: Mapping[str, Sequence[Sample]]) -> float | Histogram | None:
    if part in HISTOGRAMS:
        histograms = (page.get(f"{series.name}_bucket", ()) for alternative in column for series in alternative)
        return next((_histogram(samples) for samples in histograms if samples), None)
    for alternative in column:
        values = [
            sample.value
            for series in alternative
            for sample in page.get(series.name, ())
            if not series.label or sample.labels.get(series.label) in series.values
        ]
        if values:
            return max(values) if part == "kv_usage_ratio" else math.fsum(values)
    return None


def _histogram(samples: Sequence[Sample]) -> Histogram | None:
    """Added up by bound; None if engines have different bounds, or it is none."""
    counts: dict[float, float] = {}
    parts: dict[float, int] = {}
    for sample in samples:
        try:
            bound = float(sample.labels["le"])
        except (LookupError, ValueError):
            return None
        counts[bound] = counts.get(bound, 0.0) + sample.value
        parts[bound] = parts.get(bound, 0) + 1
    bounds = tuple(sorted(counts))
    ascending = tuple(counts[bound] for bound in bounds)
    is_whole = bounds[-1] == math.inf and len(set(parts.values())) == 1
    is_cumulative = all(low <= high for low, high in pairwise(ascending))
    return Histogram(bounds, ascending) if is_whole and is_cumulative else None
