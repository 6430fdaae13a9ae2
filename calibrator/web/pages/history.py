"""Caps over time: a sparkline for the overview, a step chart with numbered marks for the page of a backend.

The x axis is linear in time, from the first point to now. As in `web.report.chart`, marks have classes and no colours.
The chart repeats a table: the number at a mark is that of its row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from html import escape

from calibrator.core.publish.snapshot import State
from calibrator.web.wire.backends import BackendDocument
from calibrator.web.wire.events import OverrideEntry, RecommendationDocument
from calibrator.web.wire.sweeps import SweepSummaryDocument

SPARK_WIDTH, SPARK_HEIGHT, SPARK_EDGE = 132.0, 34.0, 3.0
WIDTH, HEIGHT = 720.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 14.0, 22.0, 28.0
INSET = 10.0  # of the first point from the axis
X_TICKS = 4
MAX_MARKS = 24  # the table has all of them
MARK_GAP = 16.0

Scale = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One row of the history: what was published or measured at a time, and why."""

    at: str
    kind: str  # sweep | drift | guard | replicas | fallback | override
    message: str
    cap: int | None = None
    was: int | None = None
    sweep_id: str | None = None
    number: int = 0  # 1 is the oldest


def changes(
    published: Sequence[RecommendationDocument],
    sweeps: Sequence[SweepSummaryDocument],
    overrides: Sequence[OverrideEntry],
    now: str,
) -> list[HistoryRow]:
    """Newest first, as the arguments are. A sweep that changed the cap appears as what it published."""
    rows = [*_published(published, {one.sweep_id: one.trigger for one in sweeps}), *_overridden(overrides, now)]
    shown = {one.sweep_id for one in published}
    for sweep in sweeps:
        if sweep.ended_at is not None and sweep.sweep_id not in shown:
            message = f"{sweep.outcome}, cap unchanged: {sweep.reason}{_trigger_note(sweep.trigger)}"
            rows.append(HistoryRow(sweep.ended_at, _sweep_kind(sweep.trigger), message, sweep_id=sweep.sweep_id))
    rows.sort(key=lambda row: row.at)
    return [replace(row, number=number) for number, row in enumerate(rows, start=1)][::-1]


def _published(published: Sequence[RecommendationDocument], triggers: Mapping[str, str]) -> Iterator[HistoryRow]:
    for now, before in zip(published, [*published[1:], None], strict=False):
        is_new = before is None or now.sweep_id != before.sweep_id
        trigger = triggers.get(now.sweep_id or "", "") if is_new else ""
        kind, message = _what(now, before, trigger)
        was = None if before is None else before.cap
        yield HistoryRow(now.published_at, kind, message, now.cap, was, sweep_id=now.sweep_id if is_new else None)


def _what(now: RecommendationDocument, before: RecommendationDocument | None, trigger: str) -> tuple[str, str]:
    if before is not None and now.replicas != before.replicas:
        return "replicas", f"{before.replicas} to {now.replicas} replicas"
    if now.state is State.GUARDED or (before is not None and before.state is State.GUARDED and not trigger):
        return "guard", now.reason
    if now.state is State.FALLBACK:
        return "fallback", now.reason
    return _sweep_kind(trigger), f"{now.reason}{_trigger_note(trigger)}"


def _overridden(overrides: Sequence[OverrideEntry], now: str) -> Iterator[HistoryRow]:
    for override in overrides:
        yield HistoryRow(override.set_at, "override", f"by {override.author}: {override.reason}", override.cap)
        if override.ends_at <= now:
            yield HistoryRow(override.ends_at, "override", f"override by {override.author} ended")


def _sweep_kind(trigger: str) -> str:
    return "drift" if "drift" in trigger.partition(":")[0] else "sweep"


def _trigger_note(trigger: str) -> str:
    return "" if trigger in {"", "schedule"} else f" (trigger: {trigger})"


def sparkline(backend: BackendDocument, now: float) -> str:
    """Recent caps as a small step line; empty without any."""
    points = [(seconds(point.at), point.cap) for point in backend.trend]
    if not points:
        return ""
    first, lowest, highest = points[0][0], min(cap for _, cap in points), max(cap for _, cap in points)
    span_s = max(1.0, now - first)
    spread = max(1, highest - lowest)

    def place(at: float, cap: int) -> tuple[float, float]:
        x = SPARK_EDGE + (SPARK_WIDTH - 2 * SPARK_EDGE) * min(1.0, max(0.0, (at - first) / span_s))
        part = 0.5 if highest == lowest else (cap - lowest) / spread
        return x, SPARK_HEIGHT - SPARK_EDGE - (SPARK_HEIGHT - 2 * SPARK_EDGE) * part

    path = _steps([place(at, cap) for at, cap in points], SPARK_WIDTH - SPARK_EDGE)
    x, y = SPARK_WIDTH - SPARK_EDGE, place(now, points[-1][1])[1]
    label = f"recent caps: from {points[0][1]} to {points[-1][1]}, minimum {lowest}, maximum {highest}"
    return (
        f'<svg class="spark" viewBox="0 0 {SPARK_WIDTH:.0f} {SPARK_HEIGHT:.0f}" role="img" aria-label="{label}">'
        f'<path class="line" d="{path}"/><circle class="end" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/></svg>'
    )


def history_svg(rows: Sequence[HistoryRow], now: float) -> str:
    """The caps of `changes` as a step chart with numbered marks; empty without a cap."""
    shown = [row for row in reversed(rows) if row.cap is not None and row.kind != "override"]
    if not shown:
        return ""
    first = seconds(shown[0].at)
    span_s, highest = max(1.0, now - first), max(row.cap or 0 for row in rows) * 1.12

    def x_of(at: float) -> float:
        return LEFT + INSET + (WIDTH - LEFT - INSET - RIGHT) * min(1.0, max(0.0, (at - first) / span_s))

    def y_of(cap: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * cap / highest

    points = [(x_of(seconds(row.at)), y_of(row.cap or 0)) for row in shown]
    box = f"0 0 {WIDTH:.0f} {HEIGHT:.0f}"
    parts = [
        f'<svg class="chart history" viewBox="{box}" role="img" aria-label="{escape(_label(shown), quote=True)}">',
        *_grid(highest, span_s, y_of),
        f'<path class="line cap" d="{_steps(points, WIDTH - RIGHT)}"/>',
        *_marks(rows, x_of, y_of),
        "</svg>",
    ]
    return "".join(parts)


def _label(shown: Sequence[HistoryRow]) -> str:
    first, last = shown[0], shown[-1]
    return f"Published cap since {first.at}: {first.cap} at first, {last.cap} now; see the table below for each change"


def _grid(highest: float, span_s: float, y_of: Scale) -> Iterator[str]:
    for part in (0.0, 0.5, 1.0):
        value = highest / 1.12 * part
        y = y_of(value)
        yield f'<path class="grid" d="M{LEFT:.0f} {y:.1f}H{WIDTH - RIGHT:.0f}"/>'
        yield f'<text class="tick" x="{LEFT - 6:.0f}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>'
    for step in range(X_TICKS + 1):
        x = LEFT + INSET + (WIDTH - LEFT - INSET - RIGHT) * step / X_TICKS
        anchor = "start" if step == 0 else "end" if step == X_TICKS else "middle"
        label = "now" if step == X_TICKS else f"{span(span_s * (1 - step / X_TICKS))} ago"
        yield f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8:.0f}" text-anchor="{anchor}">{label}</text>'


def _marks(rows: Sequence[HistoryRow], x_of: Scale, y_of: Scale) -> Iterator[str]:
    """A row without a cap is drawn at the cap that was in force."""
    caps, cap = [], 0
    for row in reversed(rows):
        cap = cap if row.cap is None else row.cap
        caps.append(cap)
    taken: list[float] = []
    newest = list(zip(rows, reversed(caps), strict=True))[:MAX_MARKS]
    for row, cap in newest:  # where marks crowd, only the newest have numbers
        x, y = x_of(seconds(row.at)), y_of(cap)
        yield f'<circle class="dot {row.kind}" cx="{x:.1f}" cy="{y:.1f}" r="4">'
        yield f"<title>{escape(row.message)}</title></circle>"
        if all(abs(x - other) >= MARK_GAP for other in taken):
            taken.append(x)
            yield f'<text class="mark-number" x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle">{row.number}</text>'


def _steps(points: Sequence[tuple[float, float]], right: float) -> str:
    (x, y), *rest = points
    return f"M{x:.1f} {y:.1f}" + "".join(f"H{px:.1f}V{py:.1f}" for px, py in rest) + f"H{right:.1f}"


def seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60))  # shown in the largest unit of which there are two


def span(duration_s: float) -> str:
    unit, unit_s = next((unit for unit in _UNITS if duration_s >= 2 * unit[1]), ("s", 1))
    return f"{duration_s / unit_s:.0f} {unit}"
