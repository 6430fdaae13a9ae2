"""An exposition page (Prometheus text format) as one ServerLoad.

Only lines whose name is in the table reach the exposition parser, which takes some 10 us for each: a page of vLLM has
over a thousand, and a page may be anything. So the page is fed in parts, as they arrive; what is not wanted is dropped
at once, and memory is bounded whatever the page does.

One page may show several engines, ranks and parts of a whole: what is added up, and what would count twice, the
table's row says (`repeats`, `totals`). It may show several models: where one carries our name only its samples count;
where none does (an alias, an adapter) all count, because they share the engine.

Values that cannot be (negative, infinite, not a number) are absent, as if the engine did not show them; so is the load
where one of its two gauges is. A histogram whose counts fall with the bound is left out. Of a page that no row knows, a
few names that look like an engine's are kept, for whoever has to find out. Pure; called by `telemetry.scrape`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from calibrator.core.records.server_load import HISTOGRAMS, Histogram, ServerLoad
from calibrator.telemetry.engines import (
    ENGINES,
    PROCESS_START_METRIC,
    SPELLINGS,
    Column,
    EngineMetrics,
)

MAX_PAGE_BYTES = 4 * 1024 * 1024
MAX_LINES = 100_000  # a hundred engines
MAX_WANTED = 10_000  # of them: the costly ones
MAX_LINE_BYTES = 16 * 1024
START_BYTES = 64
SIMILAR_BYTES = 256 * 1024  # from the start: where names of unknown engines are looked for

_TABLE_NAMES = {name for row in ENGINES for name in row.names} | {PROCESS_START_METRIC}
_SPELT = {  # as a page writes it -> as the table does
    **{name: name for name in _TABLE_NAMES},
    **{
        written + name.removeprefix(prefix): name
        for written, prefix, _ in SPELLINGS
        for name in _TABLE_NAMES
        if name.startswith(prefix)
    },
}
_WANTED = re.compile(rb"^(?:" + "|".join(sorted(_SPELT)).encode() + rb")[{ \t][^\n]*", re.MULTILINE)
_SIMILAR = re.compile(
    rb"^(\w[\w:]*(?:num_req|requests_running|running_req|waiting_req|queue_req|queue_size|inflight_req|in_flight|kv_cache"
    rb"|cache_usage|first_token|generat\w*_tokens|output_tokens)[\w:]*)[{ \t]",
    re.MULTILINE | re.IGNORECASE,
)
_SUFFIXES = re.compile(r"_(?:bucket|sum|count|created)$")
SIMILAR_NAMES = 3


Labels = frozenset[tuple[str, str]]


class PageError(ValueError):
    """The page cannot be used; its text says why."""


@dataclass(slots=True)
class PageReader:
    """Takes a page in parts. Raises PageError when it becomes too large."""

    lines: list[bytes] = field(default_factory=list)
    seen: int = 0  # lines
    size_bytes: int = 0
    similar: list[str] = field(default_factory=list)  # names that no row has, but an engine might
    start: bytes = b""  # of the page
    _rest: bytes = b""

    def feed(self, part: bytes) -> None:
        self.size_bytes += len(part)
        self.start = self.start or part[:START_BYTES]
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

    @property
    def is_web_page(self) -> bool:
        return self.start.lstrip().lower().startswith((b"<!doctype html", b"<html"))

    def _take(self, lines: bytes) -> None:
        self.lines += _WANTED.findall(lines)
        is_early = self.size_bytes <= SIMILAR_BYTES
        if is_early and not self.lines and len(self.similar) < SIMILAR_NAMES:
            names = (_SUFFIXES.sub("", name.decode()) for name in _SIMILAR.findall(lines))
            self.similar = list(dict.fromkeys((*self.similar, *names)))[:SIMILAR_NAMES]
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
    ours = {name: _counted_once(row, samples) for name, samples in _ours(page, row, model).items()}
    values = {part: _column(part, column, ours) for part, column in row.columns()}
    started = page.get(PROCESS_START_METRIC)
    load = ServerLoad(
        engine=row.engine,
        process_start=repr(started[0].value) if started else header,
        model=_model(ours, row),
        **values,  # type: ignore[arg-type] # `columns` are fields of ServerLoad, histograms are HISTOGRAMS: tested
    )
    return replace(load, running_requests=_running(row, page, load))


def _running(row: EngineMetrics, page: Mapping[str, Sequence[Sample]], load: ServerLoad) -> float | None:
    """None where the queue has a gauge, but the gauge no value: nobody knows then how many are in flight."""
    running, waiting = load.running_requests, load.waiting_requests
    if waiting is None:
        is_hidden = any(name in page for name in _series_names(row.waiting_requests))
        return None if is_hidden else running
    return max(0.0, running - waiting) if row.running_holds_waiting and running is not None else running


def _series_names(column: Column) -> set[str]:
    return {series.name for alternative in column for series in alternative}


def _samples(text: str) -> Mapping[str, Sequence[Sample]]:
    """By the name in the table; those whose value cannot be are left out, but not their name."""
    page: dict[str, list[Sample]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                known = page.setdefault(_SPELT.get(sample.name, sample.name), [])
                if math.isfinite(sample.value) and sample.value >= 0.0:
                    known.append(sample)
    except (ValueError, LookupError, TypeError) as error:  # whatever the parser stumbles over
        raise PageError(f"is broken ({str(error)[:80]!r})") from None
    return page


def _counted_once(row: EngineMetrics, samples: Sequence[Sample]) -> Sequence[Sample]:
    """Of ranks with the same work the lowest; of a total and its parts the total."""
    if not samples or not (row.repeats or row.totals):
        return samples
    lowest: dict[Labels, Sample] = {}
    for sample in sorted(samples, key=lambda one: [_rank(one, label) for label in row.repeats]):
        lowest.setdefault(_labels(sample, without=row.repeats), sample)
    kept = list(lowest.values())
    for label, total in row.totals:
        others = (*row.repeats, label)
        whole = {_labels(one, without=others) for one in kept if one.labels.get(label, total) == total}
        kept = [
            one for one in kept if one.labels.get(label, total) == total or _labels(one, without=others) not in whole
        ]
    return kept


def _labels(sample: Sample, *, without: Sequence[str]) -> Labels:
    return frozenset((name, value) for name, value in sample.labels.items() if name not in without)


def _rank(sample: Sample, label: str) -> tuple[int, str]:
    value = sample.labels.get(label, "")
    return (int(value) if value.isdecimal() else -1, value)


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
