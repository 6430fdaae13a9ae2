"""Where there is no terminal, a sweep is told in lines: each change of level or verdict, and nothing twice."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console
from support.web_fakes import level

from calibrator.cli.display import plain_level
from calibrator.cli.screen import SweepScreen
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sweep import LevelReport, VerdictKind

OBJECTIVES = (parse_objective("ttft p99 <= 300ms"),)


def told(*moments: tuple[LevelReport, ...], lines: bool = True) -> list[str]:
    """The first words of every line that is printed while a sweep shows these levels, one moment after the other."""
    out = io.StringIO()
    with SweepScreen(Console(file=out, width=200), OBJECTIVES, lines=lines) as screen:
        for levels in moments:
            screen.show(None, levels)
    return [f"{line.split(':')[0]} {line.split('; ')[-1]}" for line in out.getvalue().splitlines()]


def measured(concurrency: int, n: int, kind: VerdictKind = VerdictKind.INCONCLUSIVE) -> LevelReport:
    return replace(level(concurrency, kind), n=n)


def test_a_level_is_told_when_the_sweep_comes_to_it_and_when_its_verdict_falls() -> None:
    one, two = measured(8, 50), measured(16, 50)
    more, passed = measured(16, 100), measured(16, 150, VerdictKind.WITHIN)
    back = measured(8, 90)
    assert told((), (one,), (one, two), (one, two), (one, more), (one, passed), (back, passed)) == [
        "level 8 inconclusive",
        "level 16 inconclusive",
        "level 16 within",
        "level 8 inconclusive",
    ]


def test_lines_that_nobody_wants_are_not_printed() -> None:
    assert told((measured(8, 50),), lines=False) == []


def test_a_level_without_a_counted_request_is_told_with_its_reason() -> None:
    failed = replace(level(32, VerdictKind.EXCEEDED), n=0, exceedances=0)
    assert plain_level(failed, OBJECTIVES) == "level 32: nothing counted; exceeded (enough passes)"
    assert "of 120 over the limit" in plain_level(level(8), OBJECTIVES)
