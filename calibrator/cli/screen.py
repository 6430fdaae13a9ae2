"""A running sweep on the screen: a live view on a terminal, one plain line per level elsewhere.

`sweep` receives progress, `demo` polls it; both show it here. A dumb terminal cannot move its cursor, so it gets lines,
like a file or a pipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from rich.console import Console
from rich.live import Live

from calibrator.cli import display
from calibrator.core.publish.snapshot import Progress
from calibrator.core.records.objective import Objective
from calibrator.core.records.sweep import LevelReport

REFRESHES_PER_SECOND = 4


class SweepScreen:
    """`with SweepScreen(console, objectives) as screen: screen.show(progress, levels)`."""

    def __init__(self, console: Console, objectives: Sequence[Objective], *, lines: bool = True) -> None:
        """`lines`: print plain lines if there is no terminal."""
        self._console = console
        self._objectives = objectives
        self._lines = lines
        self._printed: dict[int, str] = {}  # level -> verdict
        self._counted: dict[int, int] = {}  # level -> n
        self._last: int | None = None
        is_live = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(console=console, refresh_per_second=REFRESHES_PER_SECOND, transient=True) if is_live else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, progress: Progress | None, levels: Sequence[LevelReport]) -> None:
        if self._live is not None:
            size = self._console.size
            self._live.update(display.running(progress, levels, self._objectives, (size.width, size.height)))
        elif self._lines:
            self._print_new(levels)

    def _print_new(self, levels: Sequence[LevelReport]) -> None:
        """A level measured again with the same verdict is not repeated."""
        seen = {level.concurrency: level.n for level in levels}
        grown = [level for level in levels if seen[level.concurrency] != self._counted.get(level.concurrency)]
        self._counted = seen
        for level in grown:
            verdict = level.verdict.kind.value
            if level.concurrency != self._last or verdict != self._printed.get(level.concurrency):
                self._printed[level.concurrency], self._last = verdict, level.concurrency
                self._console.print(display.plain_level(level, self._objectives), markup=False, soft_wrap=True)
