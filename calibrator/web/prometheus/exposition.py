"""Prometheus' text format and OpenMetrics, for series that are derived at scrape time.

    # HELP calibrator_capacity Measured capacity ...
    # TYPE calibrator_capacity gauge
    calibrator_capacity{backend="chat",bound="low"} 38.0

One format string per metric takes about a microsecond per sample; building and encoding the client library's objects
takes four. An installation of 200 backends has some 50,000 samples, and a scrape must not delay polls of gateways by a
quarter of a second. The tests parse the page with the library's parsers.

The formats require: samples of a family stand together; backslash, quote and newline are escaped in label values;
OpenMetrics names a counter's family without `_total` and ends with `# EOF`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

PREFIX = "calibrator_"
OPENMETRICS = "application/openmetrics-text"
_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


@dataclass(frozen=True, slots=True)
class Family:
    """`name` without the prefix. Counters carry their `_total`, as in the text format."""

    name: str
    kind: Literal["gauge", "counter"]
    labels: tuple[str, ...]  # `backend`, if any, first
    help: str


MetricPoint = tuple[str, tuple[str, ...], float | None]  # (metric, label values after `backend`, value or unknown)


class Lines:
    """Sample lines by metric."""

    def __init__(self, metrics: Sequence[Family]) -> None:
        self._lines: dict[str, list[str]] = {metric.name: [] for metric in metrics}
        self._forms = {metric.name: _form(metric) for metric in metrics}

    def add(self, points: Iterable[MetricPoint], backend: str | None = None) -> None:
        """Unknown values have no line."""
        first = () if backend is None else (backend.translate(_ESCAPED),)
        for name, labels, value in points:
            if value is not None:
                self._lines[name].append(self._forms[name] % (*first, *labels, float(value)))

    def add_written(self, name: str, text: str) -> None:
        self._lines[name].append(text)

    def of(self, name: str) -> str:
        return "".join(self._lines[name])


def _form(metric: Family) -> str:
    labels = ",".join(f'{label}="%s"' for label in metric.labels)
    return f"{PREFIX}{metric.name}{f'{{{labels}}}' if labels else ''} %r\n"


def written(metrics: Sequence[Family], lines: Lines, *, openmetrics: bool) -> str:
    """The whole page; a metric without samples is left out."""
    parts = []
    for metric in metrics:
        samples = lines.of(metric.name)
        if samples:
            family = PREFIX + (metric.name.removesuffix("_total") if openmetrics else metric.name)
            parts.append(f"# HELP {family} {metric.help}\n# TYPE {family} {metric.kind}\n{samples}")
    return "".join(parts) + ("# EOF\n" if openmetrics else "")


def is_openmetrics(accept: str) -> bool:
    """Prometheus prefers it, and accepts the text format as well."""
    return any(part.partition(";")[0].strip() == OPENMETRICS for part in accept.split(","))


def content_type(*, openmetrics: bool) -> str:
    return f"{OPENMETRICS}; version=1.0.0; charset=utf-8" if openmetrics else "text/plain; version=0.0.4; charset=utf-8"
