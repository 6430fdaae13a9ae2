"""The curve in characters: right is more concurrency, up is more latency, SLA and capacity stand where they belong."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.web_fakes import level

from calibrator.cli.plot import ASCII, CUT, LABEL_COLUMNS, UNICODE, curve_plot, glyphs, legend
from calibrator.core.records.history import Capacity
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sweep import LevelReport
from calibrator.core.stats.quantile import LatencySummary, QuantileEstimate

SLA = parse_objective("ttft p99 <= 300ms")
SIZE = (80, 14)


def measured(concurrency: int, p50_s: float, p99_s: float, *, few: bool = False) -> LevelReport:
    tail = QuantileEstimate(p99_s, p99_s * 0.9, p99_s * 1.1)
    summary = LatencySummary(100, QuantileEstimate(p50_s, p50_s, p50_s), tail, None if few else tail)
    return replace(level(concurrency), ttft=summary)


CURVE = (measured(1, 0.01, 0.04, few=True), measured(8, 0.02, 0.09), measured(32, 0.15, 0.26), measured(64, 0.35, 0.5))


def drawn(levels: tuple[LevelReport, ...] = CURVE, capacity: Capacity | None = None) -> list[str]:
    return [line.plain for line in curve_plot(levels, SLA, capacity, SIZE, ASCII)]


def places(lines: list[str], mark: str) -> list[tuple[int, int]]:
    """(column, row from the top) inside the axes, by column."""
    return sorted((line.index(mark, start), row) for row, line in enumerate(lines[:-2]) for start in starts(line, mark))


def starts(line: str, mark: str) -> list[int]:
    return [place for place, letter in enumerate(line) if letter == mark and place >= LABEL_COLUMNS]


def test_more_concurrency_is_right_and_more_latency_is_up() -> None:
    tails = places(drawn(), ASCII.tail)
    assert len(tails) == 3, "the first level has too few requests for a P99"
    assert [row for _, row in tails] == sorted((row for _, row in tails), reverse=True)
    assert len(places(drawn(), ASCII.weaker_tail)) == 1
    columns = [column for column, _ in tails]
    assert columns[2] - columns[1] == pytest.approx((columns[1] - columns[0]) / 2, abs=1), "equal ratios, equal steps"


def test_the_sla_is_a_line_with_its_limit_between_what_passed_and_what_failed() -> None:
    lines = drawn()
    row, sla = next((row, line) for row, line in enumerate(lines) if line.endswith(" SLA"))
    assert "300 ms" in sla
    passed, failed = places(lines, ASCII.tail)[1], places(lines, ASCII.tail)[2]
    assert failed[1] < row <= passed[1] + 1


def test_what_is_far_beyond_the_limit_does_not_squeeze_the_rest() -> None:
    lines = drawn((*CURVE, measured(128, 9.0, 30.0)))
    assert places(lines, ASCII.beyond)[0][1] == 0
    row = next(row for row, line in enumerate(lines) if line.endswith(" SLA"))
    assert row / (len(lines) - 3) == pytest.approx(1 - 1 / CUT, abs=0.1)


def test_the_capacity_stands_where_its_levels_are() -> None:
    lines = drawn(capacity=Capacity(36, 32, 40))
    band = {column for column, _ in places(lines, ASCII.band)}
    at_32 = next(column for column, _ in places(drawn(), ASCII.tail)[1:])
    assert at_32 in band
    assert max(band) < places(drawn(), ASCII.tail)[2][0]


def test_levels_are_named_under_the_axis() -> None:
    assert drawn()[-1].split() == ["1", "8", "32", "64"]
    crowded = tuple(measured(one, 0.01, 0.04) for one in range(100, 140))
    labels = drawn(crowded)[-1].split()
    assert (labels[0], labels[-1]) == ("100", "139"), "the ends come first"
    assert len(labels) < len(crowded)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_it_keeps_to_its_size(columns: int) -> None:
    lines = curve_plot(CURVE, SLA, Capacity(36, 32, 40), (columns, 20), UNICODE)
    assert len(lines) == 20
    assert max(line.cell_len for line in lines) <= columns


def test_too_little_to_draw_is_no_picture() -> None:
    assert drawn(()) == []
    assert drawn(CURVE[:1]) == []
    assert curve_plot(CURVE, SLA, None, (30, 14), ASCII) == []


def test_a_terminal_without_unicode_gets_letters_that_it_has() -> None:
    assert glyphs("UTF-8") is UNICODE
    assert glyphs("ANSI_X3.4-1968") is ASCII
    assert legend(ASCII, has_band=True).plain.isascii()
    assert all(line.isascii() for line in drawn(capacity=Capacity(36, 32, 40)))
