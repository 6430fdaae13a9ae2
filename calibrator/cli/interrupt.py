"""Ctrl-C: once ends cleanly, twice at once.

The first cancels the verb, which ends its probes, keeps what was measured and exits with 130. Whoever presses again
while that takes its time wants the terminal back: the second leaves without another word from the event loop. Nothing
goes on behind its back: a sweep's process holds a leash (`load.sweep_process`) and ends with us, other children are
told to.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
from collections.abc import Coroutine
from types import FrameType
from typing import Any, NoReturn

import uvloop

from calibrator.errors import ExitCode

SHOW_CURSOR = "\x1b[?25h"


def run(coroutine: Coroutine[Any, Any, int]) -> int:
    """Run a verb on uvloop; its exit code, or 130 if it was cancelled and had nothing more to say."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        loop = runner.get_loop()
        task = loop.create_task(coroutine)
        pressed = 0

        def on_interrupt(_number: int, _frame: FrameType | None) -> None:
            nonlocal pressed
            pressed += 1
            if pressed > 1:
                leave_at_once()
            loop.call_soon_threadsafe(task.cancel)

        before = signal.signal(signal.SIGINT, on_interrupt)
        try:
            return runner.run(_result(task))
        except asyncio.CancelledError:
            return int(ExitCode.INTERRUPTED)
        except KeyboardInterrupt:  # a verb that listens itself (`serve`) heard the first one
            leave_at_once()
        finally:
            signal.signal(signal.SIGINT, before)


async def _result(task: asyncio.Task[int]) -> int:
    return await task


def leave_at_once() -> NoReturn:
    """End this process here and now; the terminal gets its cursor back."""
    for child in multiprocessing.active_children():
        child.terminate()
    if sys.stderr.isatty():
        sys.stderr.write(SHOW_CURSOR)
    sys.stderr.write("\ncalibrator: left at once, as asked by the second Ctrl-C.\n")
    sys.stderr.flush()
    os._exit(int(ExitCode.INTERRUPTED))
