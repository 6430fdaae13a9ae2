"""The page at `/`: every backend at a glance, rendered on the server, without scripts.

Names, reasons and warnings come from configuration files and from foreign servers: every text passes through `_text`
(class names come from enumerations only), and the Content-Security-Policy forbids whatever might slip through.
"""

from __future__ import annotations

from html import escape

from calibrator.core.render import timestamp
from calibrator.core.snapshot import BackendView, Progress, Snapshot, SweepSummary
from calibrator.core.sweep_record import LatencySummary, LevelReport

CSS_PATH = "/static/page.css"
UNKNOWN = "unknown"
NOTHING = "&ndash;"  # in cells of a table
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60))  # an age is shown in the largest unit that it has two of
IDLE_REFRESH_S, SWEEP_REFRESH_S = 30, 3


def page(snapshot: Snapshot, now: float, software_version: str) -> str:
    """The whole document; it reloads itself, faster while a sweep runs."""
    active = any(view.progress is not None for view in snapshot.backends.values())
    cards = "".join(_card(view, now) for view in snapshot.backends.values())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="{SWEEP_REFRESH_S if active else IDLE_REFRESH_S}">
<title>calibrator</title>
<link rel="stylesheet" href="{CSS_PATH}">
</head>
<body>
<header><h1>calibrator</h1>
<p>How many requests each backend may have in flight before its SLA breaks. Version {_text(software_version)},
{_text(timestamp(now))}.</p></header>
<main>{cards or "<p>No backend is configured.</p>"}</main>
</body>
</html>
"""


def _card(view: BackendView, now: float) -> str:
    published, state = view.recommendation, view.state_at(now)
    health = _marked(view.health.value) + (f": {_text(view.health_reason)}" if view.health_reason else "")
    facts = [
        ("cap (requests in flight)", f"{published.cap}", "cap"),
        ("state", _marked(state.value), ""),
        ("health", health, ""),
        ("per replica", f"{published.replica_cap}", ""),
        ("grade", _text(published.grade), ""),
        ("capacity of a replica", _capacity(view), ""),
        ("in flight", _in_flight(view), ""),
        ("headroom", _headroom(view), ""),
        ("measured", _ago(published.measured_at, now), ""),
        ("valid until", _text(timestamp(published.valid_until)), ""),
        ("next sweep", _text(timestamp(view.next_sweep_at)), ""),
        ("replicas ready", _text(view.ready_replicas), ""),
        ("engine", _text(view.engine), ""),
        ("objectives", _text(", ".join(view.objectives)), ""),
        ("why this cap", _text(published.reason), ""),
    ]
    items = "".join(f'<div><dt>{name}</dt><dd class="{css}">{value}</dd></div>' for name, value, css in facts)
    running = "" if view.progress is None else _running(view.progress)
    curve = "" if view.last_sweep is None else _curve(view.last_sweep, now)
    return (
        f'<article><h2>{_text(view.name)} <span class="quiet">{_text(view.model)}</span></h2>'
        f"<dl>{items}</dl>{running}{curve}</article>"
    )


def _running(progress: Progress) -> str:
    return (
        f"<p>A sweep is running: level {progress.level}, {_text(progress.phase)}, "
        f"{progress.exceedances} of {progress.n} requests over the limit, {_text(progress.verdict)} so far; "
        f"P50 {_seconds(progress.p50_s)}, P99 {_seconds(progress.p99_s)}; "
        f"{progress.requests} of {progress.requests_budget} requests, "
        f"{progress.elapsed_s:.0f} of {progress.duration_budget_s:.0f} s.</p>"
    )


def _curve(sweep: SweepSummary, now: float) -> str:
    rows = "".join(_row(level) for level in sorted(sweep.levels, key=lambda level: level.concurrency))
    caption = (
        f"Last sweep: {_text(sweep.outcome)}, {_ago(sweep.ended_at, now)}, {sweep.requests} requests in "
        f"{sweep.duration_s:.0f} s. {_text(sweep.reason)}"
    )
    if not rows:
        return f'<p class="quiet">{caption}</p>'
    names = (
        "in flight",
        "n",
        "over limit",
        "TTFT P50",
        "TTFT P99",
        "ITL P99",
        "E2E P99",
        "req/s",
        "tokens/s",
        "verdict",
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        f'<div class="scroll"><table><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(level: LevelReport) -> str:
    cells = (
        f"{level.concurrency}",
        f"{level.n}",
        f"{level.exceedances}",
        _quantile(level.ttft, "p50"),
        _quantile(level.ttft, "p99"),
        _quantile(level.itl, "p99"),
        _quantile(level.e2e, "p99"),
        f"{level.requests_per_second:.4g}",
        f"{level.output_tokens_per_second:.4g}",
        f"{_marked(level.verdict.kind.value)} {_text('; '.join(level.verdict.reasons), '')}",
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _quantile(summary: LatencySummary, name: str) -> str:
    estimate = getattr(summary, name)
    return NOTHING if estimate is None else _seconds(estimate.value_s)


def _seconds(value_s: float | None) -> str:
    if value_s is None:
        return NOTHING
    return f"{value_s * 1e3:.3g} ms" if value_s < 0.9995 else f"{value_s:.3g} s"


def _capacity(view: BackendView) -> str:
    found = view.recommendation.capacity
    return UNKNOWN if found is None else f"{found.estimate} ({found.low} to {found.high})"


def _in_flight(view: BackendView) -> str:
    organic = UNKNOWN if view.organic_in_flight is None else f"{view.organic_in_flight:g}"
    return f"{organic} organic, {view.probe_in_flight} probes"


def _headroom(view: BackendView) -> str:
    if view.headroom is None:
        return UNKNOWN
    return f"{view.headroom:g} ({view.headroom / view.recommendation.cap:.0%} of the cap)"


def _ago(moment: float | None, now: float) -> str:
    if moment is None:
        return "never"
    age_s = max(0.0, now - moment)
    unit, unit_s = next((unit for unit in _UNITS if age_s >= 2 * unit[1]), ("s", 1))
    return f"{age_s / unit_s:.0f} {unit} ago"


def _marked(word: str) -> str:
    """An enumeration's word, coloured by its class."""
    return f'<span class="{word}">{word}</span>'


def _text(value: object, unknown: str = UNKNOWN) -> str:
    return unknown if value is None or value == "" else escape(str(value))
