"""A sweep in a process of its own, so that serving polls and measuring latencies do not disturb each other.

The child is spawned (no inherited sockets, locks or threads) and gets a picklable order and the picklable coroutine
function that carries it out; it sends its progress, partial records and the final record through a pipe. The pipe also
ties their lifetimes together: when its other end closes, because the service ended for whatever reason, the child
cancels its probes and exits. So a killed service never leaves load behind. A service that is paused or hangs closes
nothing; therefore the child also holds a permit with an end in time. It may probe until the end of the last permit it
received; both processes share one monotonic clock.

    parent                              child
    run(order) ── spawn(entry, order) ─▶ entry(order, listener, permit)
               ── permit ──▶             cancels the coroutine when it has ended
               ◀─ Progress, SweepRecord (partial), _Ended ──
    cancel     ── SIGTERM ─▶ cancels the coroutine; SIGKILL after `CANCEL_GRACE_S`

Both ends wait for the pipe in a thread. An event loop would make it non-blocking, and a record larger than the socket's
buffer would then be split.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import multiprocessing
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Any

import uvloop

from calibrator.core.publish.snapshot import Progress
from calibrator.core.records.sweep import SweepRecord
from calibrator.errors import CalibratorError, GeneratorError
from calibrator.ports.sweeps import Permit, SweepListener, SweepOrder, forever

CANCEL_GRACE_S = 1.5  # DESIGN: a level is cancelled within one second; then the process is killed
PERMIT_S = 0.1  # between two checks

SweepEntry = Callable[[SweepOrder, SweepListener, Permit], Awaitable[SweepRecord]]


@dataclass(frozen=True, slots=True)
class _Ended:
    record: SweepRecord | None
    error: CalibratorError | None


class ProcessSweepRunner:
    """Port `SweepRunner`: each sweep in a fresh process."""

    def __init__(self, entry: SweepEntry) -> None:
        self._entry = entry  # a module-level coroutine function: it is pickled by name

    async def run(self, order: SweepOrder, listener: SweepListener, permit: Permit = forever) -> SweepRecord:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=True)
        until_s = permit()
        process = context.Process(
            target=_child_main, args=(self._entry, order, theirs, until_s), name=f"sweep-{order.backend}", daemon=True
        )
        await asyncio.get_running_loop().run_in_executor(None, process.start)
        theirs.close()
        lengthening = asyncio.create_task(_lengthen(ours, permit, until_s))
        try:
            return await _follow(ours, listener)
        except EOFError:
            if time.monotonic() >= permit():
                raise asyncio.CancelledError from None
            await asyncio.get_running_loop().run_in_executor(None, process.join, CANCEL_GRACE_S)
            raise GeneratorError(
                f"The process that ran the sweep died (exit code {process.exitcode}).",
                "Check for an out-of-memory kill, and for its traceback in the log; the next sweep starts over.",
            ) from None
        finally:
            lengthening.cancel()
            # Shielded: a second cancellation must not leave the child behind.
            await asyncio.shield(_end_process(process, ours))


async def _follow(pipe: Pipe, listener: SweepListener) -> SweepRecord:
    """Forward what the child sends until it has ended. Raises EOFError if it dies without a message."""
    loop = asyncio.get_running_loop()
    messages: asyncio.Queue[Any] = asyncio.Queue()

    def read() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing reads any more
            try:
                while True:
                    loop.call_soon_threadsafe(messages.put_nowait, pipe.recv())
            except (EOFError, OSError):
                loop.call_soon_threadsafe(messages.put_nowait, None)

    threading.Thread(target=read, name="sweep-pipe", daemon=True).start()
    while True:
        message = await messages.get()
        if isinstance(message, Progress):
            listener.progress(message)
        elif isinstance(message, SweepRecord):
            listener.partial(message)
        elif isinstance(message, _Ended) and message.record is not None:
            return message.record
        elif isinstance(message, _Ended) and message.error is not None:
            raise message.error
        else:
            raise EOFError


async def _lengthen(pipe: Pipe, permit: Permit, told_s: float) -> None:
    """Send the child each renewal."""
    while told_s < math.inf:
        await asyncio.sleep(PERMIT_S)
        if (until_s := permit()) > told_s:
            told_s = until_s
            with contextlib.suppress(OSError):  # it has ended
                pipe.send(until_s)


async def _end_process(process: multiprocessing.process.BaseProcess, pipe: Pipe) -> None:
    def end() -> None:
        if process.is_alive():
            process.terminate()
            process.join(CANCEL_GRACE_S)
        if process.is_alive():
            process.kill()
        process.join()
        process.close()
        pipe.close()

    await asyncio.get_running_loop().run_in_executor(None, end)


class _PipeListener:
    """Sends the child's messages to its parent; `_Leash` handles a parent that is gone."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def send(self, message: Progress | SweepRecord | _Ended) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(message)

    def progress(self, progress: Progress) -> None:
        self.send(progress)

    def partial(self, record: SweepRecord) -> None:
        self.send(record)


class _Leash:
    """The permit on the child's side. The service is the other end of the pipe."""

    def __init__(self, pipe: Pipe, until_s: float) -> None:
        self._pipe = pipe
        self._until_s = until_s

    def __call__(self) -> float:
        return self._until_s

    def catch_up(self) -> None:
        """Reads what arrived while this process started, which on a busy machine can take longer than a permit."""
        with contextlib.suppress(EOFError, OSError):  # `hold` notices it too
            while self._pipe.poll():
                self._until_s = self._pipe.recv()

    def hold(self) -> None:
        """In a thread of its own; returns when the service is gone."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._until_s = self._pipe.recv()

    async def run_out(self) -> None:
        while (left_s := self._until_s - time.monotonic()) > 0.0:  # noqa: ASYNC110 - it is a clock that is waited for
            await asyncio.sleep(min(left_s, PERMIT_S))


def _child_main(entry: SweepEntry, order: SweepOrder, pipe: Pipe, until_s: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    gc.freeze()  # what was imported stays: later collections scan only what the sweep makes
    listener = _PipeListener(pipe)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            record = runner.run(_leashed(entry, order, listener, _Leash(pipe, until_s)))
        listener.send(_Ended(record, None))
    except CalibratorError as error:
        listener.send(_Ended(None, error))
    except asyncio.CancelledError:
        pass  # the parent asked, or is gone


async def _leashed(entry: SweepEntry, order: SweepOrder, listener: SweepListener, leash: _Leash) -> SweepRecord:
    loop = asyncio.get_running_loop()
    leash.catch_up()
    work = asyncio.ensure_future(entry(order, listener, leash))
    end_of_permit = asyncio.create_task(leash.run_out())
    end_of_permit.add_done_callback(lambda _: work.cancel())

    def hold_leash() -> None:
        leash.hold()
        with contextlib.suppress(RuntimeError):  # the loop is closed: the sweep has ended
            loop.call_soon_threadsafe(work.cancel)

    threading.Thread(target=hold_leash, name="leash", daemon=True).start()
    loop.add_signal_handler(signal.SIGTERM, work.cancel)
    try:
        return await work
    finally:
        end_of_permit.cancel()
        loop.remove_signal_handler(signal.SIGTERM)
