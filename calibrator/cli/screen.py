"""A running sweep on the screen: a live view on a terminal, one plain line a level elsewhere.

`sweep` is told of progress, `demo` looks for it; both show it here. A dumb terminal cannot move its cursor, so it gets
lines, like a file or a pipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from rich.console import Console
from rich.live import Live

from calibrator.cli import display
from calibrator.core.snapshot import Progress
from calibrator.core.sweep_record import LevelReport

REFRESHES_PER_SECOND = 4


class SweepScreen:
    """`with SweepScreen(console, objectives) as screen: screen.show(progress, levels)`."""

    def __init__(self, console: Console, objectives: Sequence[str], *, lines: bool = True) -> None:
        """`lines`: may plain lines be printed where there is no terminal?"""
        self._console = console
        self._objectives = objectives
        self._lines = lines
        self._shown: set[tuple[int, int]] = set()
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
        for level in levels:
            if (level.concurrency, level.n) not in self._shown:
                self._shown.add((level.concurrency, level.n))
                self._console.print(display.plain_level(level, self._objectives), markup=False, soft_wrap=True)
