"""What a person sees in a terminal: the running sweep, the curve, the result in words.

Colours add nothing to the words; rich honours NO_COLOR and omits them if there is no terminal.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from calibrator.cli import plot
from calibrator.core.publish.snapshot import Progress
from calibrator.core.records.history import Capacity
from calibrator.core.records.objective import Objective, format_duration
from calibrator.core.records.sweep import BurstReport, Grade, LevelReport, SweepRecord, VerdictKind
from calibrator.core.report.curve import read_curve
from calibrator.core.stats.quantile import LatencySummary, QuantileEstimate

STATUS_ROWS = 6  # of the live view: level, evidence, three budgets, and the cursor's
PLOT_ROWS, RESULT_PLOT_ROWS = 11, 16
TABLE_FRAME_ROWS, LEAST_TABLE_ROWS = 5, 7  # title, head, rule, blank lines; one row more than that and the next

_STYLE: Mapping[str, str] = {
    VerdictKind.WITHIN: "green",
    VerdictKind.EXCEEDED: "red",
    VerdictKind.INCONCLUSIVE: "yellow",
}
_PHASE_WORDS = {
    "ramp": "warming up",
    "screen": "screening",
    "verdict": "testing",
    "sentinel": "testing whether it still holds",
    "fixed": "measuring",
}
_GRADE_WORDS = {
    Grade.CERTIFIED: "certified: the published level itself passed its test",
    Grade.PROVISIONAL: "provisional: the sweep ended before its test did",
    Grade.INFEASIBLE: "infeasible: even the lowest level misses the SLA",
    Grade.AT_MAX: "at max: the SLA holds at the highest level allowed",
}


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.1f} ms"


def estimate(value: QuantileEstimate | None) -> str:
    return "-" if value is None else milliseconds(value.value_s)


def metrics_of(objectives: Sequence[Objective]) -> list[str]:
    """Metrics to show, in the order of the SLA, each once."""
    return list(dict.fromkeys(objective.metric.value for objective in objectives))


def latencies(level: LevelReport, metric: str) -> LatencySummary:
    summary: LatencySummary = getattr(level, metric)
    return summary


def curve_table(levels: Sequence[LevelReport], objectives: Sequence[Objective]) -> Table:
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


def plain_level(level: LevelReport, objectives: Sequence[Objective]) -> str:
    """One line per level, for logs and pipes."""
    if not level.n:  # it failed in its warm-up, or its samples are invalid
        why = f" ({'; '.join(level.verdict.reasons)})" if level.verdict.reasons else ""
        return f"level {level.concurrency}: nothing counted; {level.verdict.kind.value}{why}"
    parts = []
    for metric in metrics_of(objectives):
        summary = latencies(level, metric)
        parts.append(f"{metric} p50 {estimate(summary.p50)} p99 {estimate(summary.p99)}")
    return (
        f"level {level.concurrency}: {'; '.join(parts)}; {level.exceedances} of {level.n} over the limit; "
        f"{level.verdict.kind.value}"
    )


def running(
    progress: Progress | None, levels: Sequence[LevelReport], objectives: Sequence[Objective], size: tuple[int, int]
) -> RenderableType:
    """The live view of a sweep. `size`: columns and rows of the terminal; what does not fit is omitted."""
    if progress is None:
        return Text("waiting for the sweep to start ...")
    if progress.phase == "preflight":
        return Text("checking the backend: credentials, model, tokens per word ...")
    parts: list[RenderableType] = [_now(progress), _budgets(progress, min(30, size[0] // 3))]
    left = size[1] - STATUS_ROWS
    if levels and left >= LEAST_TABLE_ROWS:
        if left - PLOT_ROWS >= LEAST_TABLE_ROWS:
            drawn = _plot(levels, objectives, None, (size[0], max(PLOT_ROWS, min(RESULT_PLOT_ROWS, left // 2))))
            parts += drawn
            left -= len(drawn)
        parts.append(curve_table(_nearest(levels, progress.level, left - TABLE_FRAME_ROWS), objectives))
    return Group(*parts)


def _now(progress: Progress) -> Text:
    live = f" beside {progress.organic:.0f} live" if progress.organic and progress.organic >= 1 else ""
    text = Text().append(f"Level {progress.level}", style="bold")
    text.append(f": {_PHASE_WORDS.get(progress.phase, progress.phase)}, {progress.in_flight} in flight{live}\n")
    if not progress.n:
        return text.append("nothing judged yet", style="dim")
    share = f"{progress.exceedances} over the limit ({progress.exceedances / progress.n:.1%})"
    text.append(f"{progress.n} requests judged, {share}; ")
    text.append(f"p50 {milliseconds(progress.p50_s)}, p99 so far {milliseconds(progress.p99_s)}; ")
    verdict = progress.verdict or "no verdict"
    return text.append(verdict, style=_STYLE.get(verdict, "")).append(" so far", style=_STYLE.get(verdict, ""))


def _budgets(progress: Progress, columns: int) -> Table:
    """How much of each budget is spent; the first to run out ends the sweep."""
    table = Table.grid(padding=(0, 2))
    time_s, overload_s = progress.duration_budget_s, progress.overload_budget_s
    rows = (
        ("requests", progress.requests, progress.requests_budget, f"{progress.requests}", progress.requests_budget),
        ("time", progress.elapsed_s, time_s, f"{progress.elapsed_s:.0f} s", format_duration(time_s)),
        ("overload", progress.overload_s, overload_s, f"{progress.overload_s:.1f} s", format_duration(overload_s)),
    )
    for name, spent, budget, spent_words, budget_words in rows:
        bar = ProgressBar(total=budget or 1.0, completed=min(spent, budget), width=columns)
        table.add_row(Text(name, style="dim"), bar, Text(f"{spent_words} of {budget_words}", style="dim"))
    return table


def _nearest(levels: Sequence[LevelReport], level: int, count: int) -> Sequence[LevelReport]:
    """In the order of the curve; if there is no room for all, those around the current level."""
    close = sorted(levels, key=lambda one: abs(math.log(one.concurrency / max(1, level))))[:count]
    return [one for one in levels if one in close]


def _terminal_encoding() -> str:
    """Of the real stream: the one that a live view puts in front has none."""
    return getattr(sys.__stdout__, "encoding", None) or "ascii"


def _plot(
    levels: Sequence[LevelReport], objectives: Sequence[Objective], capacity: Capacity | None, size: tuple[int, int]
) -> list[Text]:
    """For the first objective; empty if there is too little to draw."""
    first, marks = objectives[0], plot.glyphs(_terminal_encoding())
    drawn = plot.curve_plot(levels, first, capacity, (size[0], size[1] - 2), marks)
    if not drawn:
        return []
    title = Text(f"{first.metric.value} against requests in flight", style="bold")
    return [title, *drawn, plot.legend(marks, has_band=capacity is not None)]


def result(console: Console, record: SweepRecord, cap: int | None) -> None:
    """The curve, drawn only on a terminal, then the result in words."""
    objectives = record.history.objectives
    if record.levels:
        if console.is_terminal:
            for line in _plot(record.levels, objectives, record.capacity, (console.width, RESULT_PLOT_ROWS)):
                console.print(line, no_wrap=True, overflow="crop")
            console.print()
        console.print(curve_table(record.levels, objectives))
    for warning in record.warnings:
        _say(console, f"Warning: {warning}", style="yellow")
    for level in record.levels:
        for reason in (one for one in level.audit.reasons if one not in record.reason):  # those come at the end
            _say(console, f"Level {level.concurrency} is inconclusive: {reason}.", style="yellow")
    _say(console, f"{record.requests} requests in {record.duration_s:.1f} s, {record.overload_s:.1f} s above the SLA.")
    insight = read_curve(record.levels, record.history.objectives, record.capacity)
    for message in () if insight is None else insight.messages:
        _say(console, message)
    if record.burst is not None:
        _say(console, _burst(record.burst))
    if record.mode == "search":
        _conclusion(console, record, cap)


def _burst(seen: BurstReport) -> str:
    burst, steady = seen.burst, seen.steady
    beside = "" if steady is None else f"; steady p50 {estimate(steady.p50)}, p99 {estimate(steady.p99)}"
    return (
        f"A burst of {seen.concurrency} after idle: {seen.metric} p50 {estimate(burst.p50)}, "
        f"p99 {estimate(burst.p99)}, {seen.exceedances} of {seen.n} over the limit{beside}."
    )


def _conclusion(console: Console, record: SweepRecord, cap: int | None) -> None:
    if record.capacity is not None:
        capacity = record.capacity
        _say(
            console,
            f"Capacity [bold]{capacity.estimate}[/bold] requests in flight "
            f"(interval {capacity.low} to {capacity.high}) for {' and '.join(map(str, record.history.objectives))}",
        )
    if record.grade is not None:
        _say(console, f"{_GRADE_WORDS[record.grade].capitalize()}.")
    if cap is not None:
        _say(console, f"Cap [bold]{cap}[/bold] (capacity minus the safety margin)")
    if record.outcome is not None:
        _say(console, f"Outcome: {record.outcome.value}; {record.reason}.")


def _say(console: Console, text: str, style: str = "") -> None:
    """A sentence, wrapped on a terminal but not in a file."""
    console.print(text, style=style, soft_wrap=not console.is_terminal)
