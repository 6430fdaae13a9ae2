"""What a person sees in a terminal: the running sweep, the curve, the result in words.

Colours carry nothing that the words do not say; rich honours NO_COLOR and leaves them out where there is no terminal.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from calibrator.core.curve import read_curve
from calibrator.core.objective import format_duration, parse_objective
from calibrator.core.snapshot import Progress
from calibrator.core.sweep_record import (
    Grade,
    LatencySummary,
    LevelReport,
    QuantileEstimate,
    SweepRecord,
    VerdictKind,
)

_STYLE = {VerdictKind.WITHIN: "green", VerdictKind.EXCEEDED: "red", VerdictKind.INCONCLUSIVE: "yellow"}
_GRADE_WORDS = {
    Grade.CERTIFIED: "certified: the published level itself passed its test",
    Grade.PROVISIONAL: "provisional: a budget ended before the test was over",
    Grade.INFEASIBLE: "infeasible: even the lowest level breaks the SLA",
    Grade.AT_MAX: "at max: the SLA holds at the highest level allowed",
}


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.1f} ms"


def estimate(value: QuantileEstimate | None) -> str:
    return "-" if value is None else milliseconds(value.value_s)


def metrics_of(objectives: Sequence[str]) -> list[str]:
    """Metrics to show, in the SLA's order, each once."""
    return list(dict.fromkeys(parse_objective(text).metric.value for text in objectives))


def latencies(level: LevelReport, metric: str) -> LatencySummary:
    summary: LatencySummary = getattr(level, metric)
    return summary


def curve_table(levels: Sequence[LevelReport], objectives: Sequence[str]) -> Table:
    """Fits 80 columns with one objective."""
    table = Table(title="Latency against concurrency", title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    metrics = metrics_of(objectives)
    for heading in ("level", "n", *(f"{metric} {q}" for metric in metrics for q in ("p50", "p99"))):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("over", "req/s", "good/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for level in levels:
        cells = [str(level.concurrency), str(level.n)]
        for metric in metrics:
            summary = latencies(level, metric)
            cells += [estimate(summary.p50), estimate(summary.p99)]
        cells.append(f"{level.exceedances / level.n:.1%}" if level.n else "-")
        cells += [f"{level.requests_per_second:.1f}", f"{level.goodput_per_second:.1f}"]
        table.add_row(*cells, Text(level.verdict.kind.value, style=_STYLE[level.verdict.kind]))
    return table


def plain_level(level: LevelReport, objectives: Sequence[str]) -> str:
    """One line a level, for logs and pipes."""
    parts = []
    for metric in metrics_of(objectives):
        summary = latencies(level, metric)
        parts.append(f"{metric} p50 {estimate(summary.p50)} p99 {estimate(summary.p99)}")
    return (
        f"level {level.concurrency}: {'; '.join(parts)}; {level.exceedances} of {level.n} over the limit; "
        f"{level.verdict.kind.value}"
    )


def running(progress: Progress | None, levels: Sequence[LevelReport], objectives: Sequence[str]) -> RenderableType:
    """The live view of a sweep."""
    if progress is None:
        return Text("waiting for the sweep to start ...")
    if progress.phase == "preflight":
        return Text("looking at the backend: credentials, model, tokens per word ...")
    now = Table.grid(padding=(0, 2))
    now.add_row(
        Text(f"level {progress.level}", style="bold"),
        f"{progress.phase}, {progress.in_flight} in flight",
        f"n {progress.n}, {progress.exceedances} over the limit",
        f"p50 {milliseconds(progress.p50_s)}, p99 so far {milliseconds(progress.p99_s)}",
        f"so far: {progress.verdict or 'no verdict'}",
    )
    left = max(0, progress.requests_budget - progress.requests)
    budget = (
        f"{progress.requests} requests sent, {left} left in the budget; {progress.elapsed_s:.0f} s of at most "
        f"{format_duration(progress.duration_budget_s)}"
    )
    shown: list[RenderableType] = [curve_table(levels, objectives)] if levels else []
    return Group(*shown, now, Text(budget, style="dim"))


def result(console: Console, record: SweepRecord, cap: int | None) -> None:
    """The curve, then the result in words."""
    if record.levels:
        console.print(curve_table(record.levels, record.provenance.objectives))
    for warning in record.warnings:
        _say(console, f"Warning: {warning}", style="yellow")
    for level in record.levels:
        for reason in level.audit.reasons:
            _say(console, f"Level {level.concurrency} was not judged: {reason}.", style="yellow")
    _say(console, f"{record.requests} requests in {record.duration_s:.1f} s, {record.overload_s:.1f} s above the SLA.")
    insight = read_curve(record.levels, record.history.objectives, record.capacity)
    for words in () if insight is None else insight.words:
        _say(console, words)
    if record.burst is not None:
        burst, steady = record.burst, record.burst.steady
        beside = "" if steady is None else f"; steady p50 {estimate(steady.p50)}, p99 {estimate(steady.p99)}"
        _say(
            console,
            f"A burst of {burst.concurrency} after idle: {burst.metric} p50 {estimate(burst.burst.p50)}, "
            f"p99 {estimate(burst.burst.p99)}, {burst.exceedances} of {burst.n} over the limit{beside}.",
        )
    if record.mode == "search":
        _conclusion(console, record, cap)


def _conclusion(console: Console, record: SweepRecord, cap: int | None) -> None:
    if record.capacity is not None:
        capacity = record.capacity
        _say(
            console,
            f"Capacity [bold]{capacity.estimate}[/bold] requests in flight "
            f"(interval {capacity.low} to {capacity.high}) for {' and '.join(record.provenance.objectives)}",
        )
    if record.grade is not None:
        _say(console, f"{_GRADE_WORDS[record.grade].capitalize()}.")
    if cap is not None:
        _say(console, f"Cap [bold]{cap}[/bold] (capacity less the safety margin)")
    if record.outcome is not None:
        _say(console, f"Outcome: {record.outcome.value}; {record.reason}.")


def _say(console: Console, text: str, style: str = "") -> None:
    """A sentence; the terminal wraps it, not we."""
    console.print(text, style=style, soft_wrap=True)
