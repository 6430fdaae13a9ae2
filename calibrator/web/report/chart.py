"""A curve as SVG: latency or throughput by concurrency. Static, so that it prints and needs no JavaScript.

x is log2(concurrency), because levels are spaced by ratios; y is linear from 0. The confidence band of a line is drawn
where both bounds are known at two adjacent levels; a single level has a bar. Marks have CSS classes and no colours:
style sheets define them for light and dark schemes and for print, and a standalone chart includes the style of the
report. Screen readers get the table beside the chart; the chart itself has its title as a label.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 14.0, 40.0, 42.0
Y_TICKS = 5  # at most
NAMES_APART = 80.0  # closer names above the frame would overlap
NICE = (1.0, 2.0, 2.5, 5.0, 10.0)
HEADROOM = 1.08  # above the highest mark
CUT = 3.0  # points above this multiple of the limit are drawn at the upper edge: the interesting part is near the limit


@dataclass(frozen=True, slots=True)
class Point:
    x: float  # requests in flight
    y: float
    low: float | None = None  # interval; None: y alone
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """`css`: one of p50, p90, p99, goodput, throughput."""

    name: str
    css: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    unit: str  # of y
    lines: Sequence[Line]
    limit: float | None = None  # the SLA, a horizontal line
    band: tuple[float, float] | None = None  # of the capacity, on the x axis
    mark: float | None = None  # the cap or capacity, a vertical line
    knee: float | None = None  # onset of batch interference, a dotted vertical line


def standalone(chart: Chart, style: str) -> str:
    """A complete SVG file. `style`: that of the report."""
    picture = svg(chart).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    head, separator, body = picture.partition(">")
    return f'{head}{separator}<style>{style}</style><rect class="ground" width="100%" height="100%"/>{body}\n'


def svg(chart: Chart) -> str:
    """Empty if there is nothing to draw."""
    points = [point for line in chart.lines for point in line.points if math.isfinite(point.y)]
    if not points:
        return ""
    frame = _frame(chart, points)
    box, label = f"0 0 {WIDTH:.0f} {HEIGHT:.0f}", escape(chart.title, quote=True)
    parts = [
        f'<svg class="chart" viewBox="{box}" role="img" aria-label="{label}">',
        *_band(chart, frame),
        *_axes(chart, frame),
        *(part for line in chart.lines for part in _area(line, frame)),
        *_limit(chart, frame),
        *(part for line in chart.lines for part in _line(line, frame)),
        *_legend(chart),
        "</svg>",
    ]
    return "".join(parts)


@dataclass(frozen=True, slots=True)
class _Frame:
    """Maps data to coordinates."""

    x_min: float
    x_max: float
    y_max: float

    def x(self, value: float) -> float:
        span = math.log2(self.x_max / self.x_min)
        inside = min(max(value, self.x_min), self.x_max)
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log2(inside / self.x_min) / span

    def y(self, value: float) -> float:
        bottom = HEIGHT - BOTTOM
        return bottom - (bottom - TOP) * min(max(value, 0.0), self.y_max) / self.y_max


def _frame(chart: Chart, points: Sequence[Point]) -> _Frame:
    xs = [point.x for point in points]
    highest = max((max(point.y, point.high or 0.0) for point in points), default=1.0)
    if chart.limit is not None:
        highest = max(chart.limit, min(highest, CUT * chart.limit))
    low, high = min(xs), max(xs)
    return _Frame(low / 1.15, max(high, low * 1.5) * 1.15, highest * HEADROOM or 1.0)


def _axes(chart: Chart, frame: _Frame) -> Iterable[str]:
    bottom = HEIGHT - BOTTOM
    for value in _y_ticks(frame.y_max):
        y = frame.y(value)
        yield f'<path class="grid" d="M{LEFT:.1f} {y:.1f}H{WIDTH - RIGHT:.1f}"/>'
        yield f'<text class="tick" x="{LEFT - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>'
    for level in _x_ticks(frame):
        x = frame.x(level)
        yield f'<path class="grid" d="M{x:.1f} {bottom:.1f}v5"/>'
        yield f'<text class="tick" x="{x:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{level}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text class="axis" x="{middle:.1f}" y="{HEIGHT - 6:.1f}" text-anchor="middle">requests in flight</text>'
    yield f'<text class="axis" transform="translate(14 {(TOP + bottom) / 2:.1f}) rotate(-90)" text-anchor="middle">'
    yield f"{escape(chart.unit)}</text>"


def _y_ticks(highest: float) -> list[float]:
    """From 0, in round steps."""
    power = 10.0 ** math.floor(math.log10(highest / Y_TICKS))
    step = next(factor * power for factor in NICE if highest / (factor * power) <= Y_TICKS)
    return [step * count for count in range(int(highest / step) + 1)]


def _x_ticks(frame: _Frame) -> list[int]:
    first, last = math.ceil(math.log2(frame.x_min)), math.floor(math.log2(frame.x_max))
    return [2**power for power in range(max(0, first), last + 1)]


def _band(chart: Chart, frame: _Frame) -> Iterable[str]:
    top, height = TOP, HEIGHT - BOTTOM - TOP
    if chart.band is not None:
        low, high = (frame.x(value) for value in chart.band)
        yield f'<rect class="band" x="{low:.1f}" y="{top:.1f}" width="{max(2.0, high - low):.1f}" '
        yield f'height="{height:.1f}"/>'
    marks = (("knee", chart.knee), ("capacity", chart.mark))
    places = sorted(
        (frame.x(value), name, value) for name, value in marks if value and frame.x_min <= value <= frame.x_max
    )
    are_close = len(places) > 1 and places[1][0] - places[0][0] < NAMES_APART
    for (x, name, value), anchor in zip(places, ("end", "start") if are_close else ("middle", "middle"), strict=False):
        yield f'<path class="{"mark" if name == "capacity" else name}" d="M{x:.1f} {top:.1f}v{height:.1f}"/>'
        yield f'<text class="tick" x="{x:.1f}" y="{top - 5:.1f}" text-anchor="{anchor}">{name} {value:.0f}</text>'


def _limit(chart: Chart, frame: _Frame) -> Iterable[str]:
    if chart.limit is not None:
        y = frame.y(chart.limit)
        yield f'<path class="limit" d="M{LEFT:.1f} {y:.1f}H{WIDTH - RIGHT:.1f}"/>'
        yield f'<text class="limit-name" x="{LEFT + 6:.1f}" y="{y - 5:.1f}">SLA {_number(chart.limit)}</text>'


def _legend(chart: Chart) -> Iterable[str]:
    """Names of the lines, above the frame from the left."""
    for place, line in enumerate(line for line in chart.lines if line.points):
        x = LEFT + place * 110.0
        yield f'<path class="line {line.css}" d="M{x:.1f} 12h18"/>'
        yield f'<text class="tick" x="{x + 24:.1f}" y="16">{escape(line.name)}</text>'


def _area(line: Line, frame: _Frame) -> Iterable[str]:
    """The confidence band, over each run of adjacent levels with bounded intervals."""
    run: list[Point] = []
    for point in (*sorted(line.points, key=lambda point: point.x), None):
        if point is not None and point.low is not None and point.high is not None:
            run.append(point)
            continue
        if len(run) > 1:
            upper = "L".join(f"{frame.x(one.x):.1f} {frame.y(one.high or 0.0):.1f}" for one in run)
            lower = "L".join(f"{frame.x(one.x):.1f} {frame.y(one.low or 0.0):.1f}" for one in reversed(run))
            yield f'<path class="area {line.css}" d="M{upper}L{lower}Z"/>'
        run = []


def _line(line: Line, frame: _Frame) -> Iterable[str]:
    points = sorted((point for point in line.points if math.isfinite(point.y)), key=lambda point: point.x)
    if not points:
        return
    path = "L".join(f"{frame.x(point.x):.1f} {frame.y(point.y):.1f}" for point in points)
    yield f'<path class="line {line.css}" d="M{path}"/>'
    for point in points:
        x = frame.x(point.x)
        if point.low is not None and point.high is not None:
            yield f'<path class="interval {line.css}" d="M{x:.1f} {frame.y(point.low):.1f}V{frame.y(point.high):.1f}"/>'
        yield f'<circle class="dot {line.css}" cx="{x:.1f}" cy="{frame.y(point.y):.1f}" r="3">'
        yield f"<title>{escape(line.name)} at {point.x:g}: {_number(point.y)}</title></circle>"


def _number(value: float) -> str:
    return f"{value:.3g}"
