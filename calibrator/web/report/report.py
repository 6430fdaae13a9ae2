"""The report of a sweep: one self-contained file that states the conditions, so that others can verify the number.

It is rendered from the document of the sweep, which `GET .../sweeps/{id}` serves and `calibrator sweep --output json`
prints. HTML needs neither network nor JavaScript; Markdown is for tickets. A report can compare two sweeps.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from calibrator.core.records.objective import Metric, Objective
from calibrator.web.http.headers import self_contained_policy
from calibrator.web.report.chart import Chart, Line, Point, svg
from calibrator.web.report.comparison import Change, compare, latency
from calibrator.web.wire.sweeps import LatencyDocument, LevelDocument, SweepDocument

REPORT_TYPES = {"html": "text/html", "md": "text/markdown", "json": "application/json"}
FORMATS = tuple(REPORT_TYPES)
STYLE = (files("calibrator.web.report") / "static" / "report.css").read_text("utf-8")
_POLICY = self_contained_policy(STYLE)
REPORT_HEADERS = {"Content-Security-Policy": f"{_POLICY}; frame-ancestors 'none'"}
UNKNOWN = "\u2013"
COMMAND_LINE = "command-line"  # the backend name in `calibrator sweep`
MS = 1e3
SHOWN_METRICS = (Metric.TTFT, Metric.ITL, Metric.E2E)


def report(sweep: SweepDocument, kind: str, other: SweepDocument | None = None) -> str:
    """`kind`: one of `FORMATS`. `other`: an earlier sweep to compare with; ignored for json."""
    if kind == "json":
        return sweep.model_dump_json(indent=2) + "\n"
    template = _environment(escape=kind == "html").get_template(f"report.{kind}.jinja")
    return template.render(
        sweep=sweep,
        name=sweep.provenance.model if sweep.backend == COMMAND_LINE else sweep.backend,
        comparison=None if other is None else compare(sweep, other),
        levels=_by_level(sweep),
        charts=[(chart.title, Markup(svg(chart))) for chart in charts(sweep)],  # noqa: S704 - `svg` escapes its texts
        style=Markup(STYLE),  # noqa: S704 - our file
        policy=_POLICY,
        objectives=sweep.provenance.objectives,
        shown_metrics=_shown_metrics(sweep),
        failures=[level for level in _by_level(sweep) if level.errors],
    )


def charts(sweep: SweepDocument) -> list[Chart]:
    """One per objective, and one with throughput and goodput."""
    levels = _by_level(sweep)
    capacity = sweep.capacity if sweep.capacity is not None and sweep.capacity.low >= 1 else None
    band = None if capacity is None else (float(capacity.low), float(capacity.high))
    mark = None if capacity is None else float(capacity.estimate)
    knee = None if sweep.insight is None else sweep.insight.knee_concurrency
    found = [
        Chart(
            f"{objective.metric.value.upper()} by requests in flight; SLA: {objective}",
            "milliseconds",
            [Line(name.upper(), name, _points(levels, objective, name)) for name in ("p50", "p90", "p99")],
            objective.limit_s * MS,
            band,
            mark,
            knee,
        )
        for objective in sweep.provenance.objectives
    ]
    rates = [
        Line("throughput", "throughput", _rates(levels, lambda level: level.requests_per_second)),
        Line("goodput", "goodput", _rates(levels, lambda level: level.goodput_per_second)),
    ]
    title = "Requests per second by requests in flight: completed, and completed within the SLA"
    return [*found, Chart(title, "requests per second", rates, None, band, mark, knee)]


def _points(levels: list[LevelDocument], objective: Objective, quantile: str) -> list[Point]:
    points = []
    for level in levels:
        summary = latency(level, objective)
        value, interval = getattr(summary, quantile), getattr(summary, f"{quantile}_interval")
        if value is not None:
            low, high = (None if bound is None else bound * MS for bound in interval or (None, None))
            points.append(Point(float(level.concurrency), value * MS, low, high))
    return points


def _rates(levels: list[LevelDocument], of: Callable[[LevelDocument], float | None]) -> list[Point]:
    values = ((level, of(level)) for level in levels if level.n)
    return [Point(float(level.concurrency), value) for level, value in values if value is not None]


def verification(sweep: SweepDocument) -> str:
    """The shell command that measures the same levels again, without the options of the workload."""
    measured = sweep.provenance
    arguments = ["calibrator", "sweep", "--url", measured.url, "--model", measured.model]
    for objective in measured.objectives:
        arguments += ["--objective", str(objective)]
    levels = [level for level in _by_level(sweep) if level.n]
    if levels:
        arguments += ["--levels", ",".join(str(level.concurrency) for level in levels)]
        arguments += ["--requests", str(max(level.n for level in levels))]
    return shlex.join([*arguments, "--seed", str(measured.seed)])


def _shown_metrics(sweep: SweepDocument) -> list[Metric]:
    """Those of the SLA first."""
    judged = [objective.metric for objective in sweep.provenance.objectives]
    return list(dict.fromkeys([*judged, *SHOWN_METRICS]))


def _by_level(sweep: SweepDocument) -> list[LevelDocument]:
    return sorted(sweep.levels, key=lambda level: level.concurrency)


def _environment(*, escape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("calibrator.web.report", "templates"),
        autoescape=select_autoescape(["html.jinja"]) if escape else False,  # noqa: S701 - Markdown, read as text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"ms": _milliseconds, "number": _number, "percent": _percent, "cell": _cell}
    environment.filters["count"] = "{:,}".format
    environment.globals |= {"summary_of": _summary_of, "latency": latency}
    environment.globals |= {"verification": verification, "Change": Change}
    return environment


def _summary_of(level: LevelDocument, metric: Metric) -> LatencyDocument:
    summary: LatencyDocument = getattr(level, f"{metric.value}_s")
    return summary


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    return f"{seconds * 1e3:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2%}"


def _cell(text: object) -> str:
    """Text for a cell of a Markdown table: one line, with bars and markup escaped."""
    flat = " ".join(str(text).split())
    return "".join(f"\\{letter}" if letter in "\\|`*_<>[]" else letter for letter in flat)
