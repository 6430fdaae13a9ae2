"""The curve in a terminal: tail and median against requests in flight, in characters.

    600 ms |                                        ^       x is log2: levels are spaced by ratios
           |                                   |  .         y is linear from 0, cut at `CUT` limits: the interesting
    300 ms |-----------------------------------*------ SLA  part is near the limit
           |                    *    .    *                 * P99, x P90 where n cannot support a P99, o P50
      0 ms +o----o----o----o----o----o----o---              | its interval where known, : that of the capacity
            1    2    4    8    16   24   32

A grid of cells is painted from back to front, then joined into lines. If the terminal does not support UTF-8,
the characters are those of the picture above.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

from rich.text import Text

from calibrator.core.records.history import Capacity
from calibrator.core.records.objective import Objective
from calibrator.core.records.sweep import LevelReport
from calibrator.core.stats.quantile import LatencySummary, QuantileEstimate

CUT = 2.0
HEADROOM = 1.05
LABEL_COLUMNS = 9
LEAST_COLUMNS = 30
RIGHT_COLUMNS = 4  # " SLA"


@dataclass(frozen=True, slots=True)
class Glyphs:
    """One character each."""

    tail: str
    weaker_tail: str
    median: str
    beyond: str
    interval: str
    path: str
    limit: str
    band: str
    axis: str
    corner: str
    floor: str


UNICODE = Glyphs("●", "◐", "○", "▲", "│", "·", "┄", "░", "│", "└", "─")
ASCII = Glyphs("*", "x", "o", "^", "|", ".", "-", ":", "|", "+", "-")
_STYLES = {
    "tail": "bold blue",
    "weaker_tail": "blue",
    "median": "green",
    "beyond": "bold red",
    "interval": "blue",
    "path": "blue",
    "limit": "red",
    "band": "dim",
}


def glyphs(encoding: str) -> Glyphs:
    """`encoding`: of the terminal."""
    return UNICODE if encoding.lower().replace("-", "").startswith("utf") else ASCII


def legend(marks: Glyphs, *, has_band: bool) -> Text:
    """One line, with the colours of the picture."""
    named = [("tail", "P99"), ("weaker_tail", "P90, too few for a P99"), ("median", "P50"), ("limit", "SLA")]
    if has_band:
        named.append(("band", "capacity"))
    text = Text()
    for name, words in named:
        text.append(f"{getattr(marks, name)} ", style=_STYLES[name]).append(f"{words}   ", style="dim")
    return text


def curve_plot(
    levels: Sequence[LevelReport],
    objective: Objective,
    capacity: Capacity | None,
    size: tuple[int, int],
    marks: Glyphs,
) -> list[Text]:
    """`size`: columns and rows of all of it, axes included. Empty where there are not two levels to draw."""
    columns, rows = size[0] - LABEL_COLUMNS - RIGHT_COLUMNS, size[1] - 2
    limit_s, found = objective.limit_s, [(level.concurrency, _summary(level, objective)) for level in levels]
    points = [(level, summary) for level, summary in found if summary.p50 is not None]
    if len(points) < 2 or columns < LEAST_COLUMNS or rows < 3:
        return []
    canvas = _Canvas(columns, rows, points[0][0], points[-1][0], _ceiling(points, limit_s), marks)
    if capacity is not None and capacity.low >= 1:
        canvas.band(capacity.low, capacity.high)
    canvas.level_line(limit_s)
    canvas.path([(level, tail.value_s) for level, summary in points if (tail := _tail(summary)) is not None])
    for level, summary in points:
        if summary.p99 is not None and summary.p99.high_s is not None:
            canvas.interval(level, summary.p99.low_s, summary.p99.high_s)
    for level, summary in points:
        if summary.p50 is not None:
            canvas.mark(level, summary.p50.value_s, "median")
        tail = _tail(summary)
        if tail is not None:
            canvas.mark(level, tail.value_s, "tail" if summary.p99 is not None else "weaker_tail")
    return canvas.lines(limit_s, [level for level, _ in points])


def _summary(level: LevelReport, objective: Objective) -> LatencySummary:
    summary: LatencySummary = getattr(level, objective.metric.value)
    return summary


def _tail(summary: LatencySummary) -> QuantileEstimate | None:
    found = summary.p99 or summary.p90
    return found if found is not None and math.isfinite(found.value_s) else None


def _ceiling(points: Sequence[tuple[int, LatencySummary]], limit_s: float) -> float:
    tails = [tail.value_s for _, summary in points if (tail := _tail(summary)) is not None]
    return HEADROOM * min(CUT * limit_s, max([*tails, 1.3 * limit_s]))


@dataclass(slots=True)
class _Canvas:
    """Cells by row from the top; each holds a character and the name of its style."""

    columns: int
    rows: int
    first: int  # levels at both ends
    last: int
    ceiling_s: float
    marks: Glyphs
    _cells: list[list[tuple[str, str]]] = field(init=False)

    def __post_init__(self) -> None:
        self._cells = [[(" ", "")] * self.columns for _ in range(self.rows)]

    def column(self, level: float) -> int:
        share = math.log(level / self.first) / math.log(self.last / self.first)
        return round(min(1.0, max(0.0, share)) * (self.columns - 1))

    def row(self, value_s: float) -> int:
        share = min(1.0, value_s / self.ceiling_s)
        return self.rows - 1 - round(share * (self.rows - 1))

    def put(self, row: int, column: int, name: str) -> None:
        self._cells[row][column] = (getattr(self.marks, name), _STYLES[name])

    def band(self, low: int, high: int) -> None:
        for column in range(self.column(low), self.column(high) + 1):
            for row in range(self.rows):
                self.put(row, column, "band")

    def level_line(self, value_s: float) -> None:
        for column in range(self.columns):
            self.put(self.row(value_s), column, "limit")

    def path(self, points: Sequence[tuple[int, float]]) -> None:
        for (level, value_s), (next_level, next_s) in pairwise(points):
            start, end = self.column(level), self.column(next_level)
            for column in range(start + 1, end):
                share = (column - start) / (end - start)
                between_s = min(value_s, self.ceiling_s) * (1 - share) + min(next_s, self.ceiling_s) * share
                self.put(self.row(between_s), column, "path")

    def interval(self, level: int, low_s: float, high_s: float) -> None:
        for row in range(self.row(high_s), self.row(low_s) + 1):
            self.put(row, self.column(level), "interval")

    def mark(self, level: int, value_s: float, name: str) -> None:
        self.put(self.row(value_s), self.column(level), "beyond" if value_s > self.ceiling_s else name)

    def lines(self, limit_s: float, levels: Sequence[int]) -> list[Text]:
        labels = {self.rows - 1: 0.0, self.row(limit_s): limit_s, 0: self.ceiling_s}
        if self.row(limit_s) <= 1:
            del labels[0]
            labels[self.row(limit_s)] = limit_s
        found = []
        for row, cells in enumerate(self._cells):
            label = f"{labels[row] * 1e3:.0f} ms" if row in labels else ""
            line = Text().append(f"{label:>{LABEL_COLUMNS - 2}} {self.marks.axis}", style="dim")
            for style, run in groupby(cells, key=lambda cell: cell[1]):
                line.append("".join(character for character, _ in run), style=style)
            if row == self.row(limit_s):
                line.append(" SLA", style="red")
            found.append(line)
        floor = " " * (LABEL_COLUMNS - 1) + self.marks.corner + self.marks.floor * self.columns
        return [*found, Text(floor, style="dim"), Text(self._level_labels(levels), style="dim")]

    def _level_labels(self, levels: Sequence[int]) -> str:
        """As many as fit; the ends first."""
        line = [" "] * (self.columns + LABEL_COLUMNS + RIGHT_COLUMNS)
        ends = [levels[0], levels[-1]]
        for level in (*ends, *(one for one in levels if one not in ends)):
            text = str(level)
            start = LABEL_COLUMNS + self.column(level) - len(text) // 2
            if all(cell == " " for cell in line[max(0, start - 1) : start + len(text) + 1]):
                line[start : start + len(text)] = text
        return "".join(line).rstrip()
