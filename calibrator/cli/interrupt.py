"""Ctrl-C: the first ends cleanly, the second immediately.

The first cancels the command, which ends its probes, keeps what was measured and exits with 130. Someone who presses it
again meanwhile wants the terminal back: the second exits without waiting for the event loop. Nothing keeps running: the
process of a sweep ends with ours (`load.sweep_process`), other children are terminated.
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
    """Run a command on uvloop; its exit code, or 130 if it was cancelled without one."""
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
        except KeyboardInterrupt:  # a command with a handler of its own (`serve`) got the first one
            leave_at_once()
        finally:
            signal.signal(signal.SIGINT, before)


async def _result(task: asyncio.Task[int]) -> int:
    return await task


def leave_at_once() -> NoReturn:
    """Exit immediately; the terminal gets its cursor back."""
    for child in multiprocessing.active_children():
        child.terminate()
    if sys.stderr.isatty():
        sys.stderr.write(SHOW_CURSOR)
    sys.stderr.write("\ncalibrator: exited immediately after the second Ctrl-C.\n")
    sys.stderr.flush()
    os._exit(int(ExitCode.INTERRUPTED))
