"""The report of a sweep: one self-contained file that states the conditions, so that others can verify the number.

A projection of the sweep's document, the one that `GET .../sweeps/{id}` serves and `calibrator sweep --output json`
prints. HTML needs no network and no script; Markdown is for a ticket; two sweeps can stand side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from calibrator.core.objective import Metric, Objective, parse_objective
from calibrator.web.chart import Chart, Line, Point, svg
from calibrator.web.headers import self_contained_policy
from calibrator.web.sweep_models import LatencyDocument, LevelDocument, SweepDocument

REPORT_TYPES = {"html": "text/html", "md": "text/markdown", "json": "application/json"}
FORMATS = tuple(REPORT_TYPES)
_STYLE = (files("calibrator.web") / "static" / "report.css").read_text("utf-8")
_POLICY = self_contained_policy(_STYLE)
REPORT_HEADERS = {"Content-Security-Policy": f"{_POLICY}; frame-ancestors 'none'"}
UNKNOWN = "\u2013"
SHOWN_METRICS = (Metric.TTFT, Metric.ITL, Metric.E2E)


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that two sweeps do not have in common."""

    name: str
    ours: str
    theirs: str


def report(sweep: SweepDocument, kind: str, other: SweepDocument | None = None) -> str:
    """`kind`: one of `FORMATS`. `other`: an earlier sweep to stand beside it; json has no place for one."""
    if kind == "json":
        return sweep.model_dump_json(indent=2) + "\n"
    template = _environment(escape=kind == "html").get_template(f"report.{kind}.jinja")
    return template.render(
        sweep=sweep,
        other=other,
        levels=_by_level(sweep),
        charts=[(chart.title, Markup(svg(chart))) for chart in charts(sweep)],  # noqa: S704 - `svg` escapes its texts
        style=Markup(_STYLE),  # noqa: S704 - our file
        policy=_POLICY,
        differences=[] if other is None else differences(sweep, other),
        pairs=[] if other is None else paired(sweep, other),
        objectives=[(text, parse_objective(text)) for text in sweep.provenance.objectives],
        failures=[level for level in _by_level(sweep) if level.errors],
    )


def charts(sweep: SweepDocument) -> list[Chart]:
    """One for each metric that the SLA names, and throughput against goodput."""
    levels = _by_level(sweep)
    capacity = sweep.capacity
    band = None if capacity is None or capacity.low < 1 else (float(capacity.low), float(capacity.high))
    mark = None if capacity is None or capacity.estimate < 1 else float(capacity.estimate)
    found = []
    for objective in (parse_objective(text) for text in sweep.provenance.objectives):
        lines = [Line(name.upper(), name, _points(levels, objective, name)) for name in ("p50", "p90", "p99")]
        title = f"{objective.metric.value.upper()} against requests in flight; the SLA is {objective}"
        found.append(Chart(title, "seconds", lines, objective.limit_s, band, mark))
    rates = [
        Line("throughput", "throughput", _rates(levels, lambda level: level.requests_per_second)),
        Line("goodput", "goodput", _rates(levels, lambda level: level.goodput_per_second)),
    ]
    title = "Requests per second against requests in flight: completed, and completed within the SLA"
    return [*found, Chart(title, "requests per second", rates, None, band, mark)]


def _points(levels: list[LevelDocument], objective: Objective, quantile: str) -> list[Point]:
    points = []
    for level in levels:
        summary = latency(level, objective.metric)
        value, interval = getattr(summary, quantile), getattr(summary, f"{quantile}_interval")
        if value is not None:
            low, high = interval or (None, None)
            points.append(Point(float(level.concurrency), value, low, high))
    return points


def _rates(levels: list[LevelDocument], of: Callable[[LevelDocument], float | None]) -> list[Point]:
    values = ((level, of(level)) for level in levels if level.n)
    return [Point(float(level.concurrency), value) for level, value in values if value is not None]


def latency(level: LevelDocument, metric: Metric) -> LatencyDocument:
    summary: LatencyDocument = getattr(level, f"{metric.value}_s")
    return summary


def differences(ours: SweepDocument, theirs: SweepDocument) -> list[Difference]:
    """Conditions under which two sweeps cannot be compared without a thought."""
    names: Mapping[str, Callable[[SweepDocument], str]] = {
        "URL": lambda one: one.provenance.url,
        "model": lambda one: one.provenance.model,
        "engine": lambda one: one.provenance.engine or "unknown",
        "objectives": lambda one: ", ".join(one.provenance.objectives),
        "workload": lambda one: one.provenance.workload,
        "calibrator": lambda one: one.provenance.software,
    }
    both = ((name, of(ours), of(theirs)) for name, of in names.items())
    return [Difference(name, mine, other) for name, mine, other in both if mine != other]


def paired(ours: SweepDocument, theirs: SweepDocument) -> list[tuple[int, LevelDocument | None, LevelDocument | None]]:
    """Levels of both, ascending."""
    mine = {level.concurrency: level for level in ours.levels}
    other = {level.concurrency: level for level in theirs.levels}
    return [(level, mine.get(level), other.get(level)) for level in sorted({*mine, *other})]


def _by_level(sweep: SweepDocument) -> list[LevelDocument]:
    return sorted(sweep.levels, key=lambda level: level.concurrency)


def _environment(*, escape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("calibrator.web", "templates"),
        autoescape=select_autoescape(["html.jinja"]) if escape else False,  # noqa: S701 - Markdown, read as text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"ms": _milliseconds, "number": _number, "percent": _percent, "cell": _cell}
    environment.globals |= {"shown_metrics": SHOWN_METRICS, "latency": latency}
    return environment


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    return f"{seconds * 1e3:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2%}"


def _cell(text: object) -> str:
    """Text for a cell of a Markdown table: one line, no bars, no markup of its own."""
    flat = " ".join(str(text).split())
    return "".join(f"\\{letter}" if letter in "\\|`*_<>[]" else letter for letter in flat)
