"""A sweep in its own process: its words arrive, its death is seen, and it never outlives the service."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import sweep_entries
from support.real_processes import is_alive, on_uvloop, with_the_tests

from calibrator.core.publish.snapshot import Progress
from calibrator.core.records.sweep import SweepOutcome, SweepRecord
from calibrator.errors import ConfigurationError, GeneratorError
from calibrator.load.sweep_process import ProcessSweepRunner, SweepEntry


class Listener:
    def __init__(self) -> None:
        self.levels: list[int] = []
        self.records: list[SweepRecord] = []
        self.spoke = asyncio.Event()

    def progress(self, progress: Progress) -> None:
        self.levels.append(progress.level)
        self.spoke.set()

    def partial(self, record: SweepRecord) -> None:
        self.records.append(record)


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


async def cancel_when_it_spoke(entry: SweepEntry, marker: Path) -> None:
    listener = Listener()
    task = asyncio.create_task(ProcessSweepRunner(entry).run(sweep_entries.order(str(marker)), listener))
    await asyncio.wait_for(listener.spoke.wait(), 120.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_progress_partials_and_the_record_arrive_from_another_process() -> None:
    async def scenario() -> None:
        listener = Listener()
        record = await ProcessSweepRunner(sweep_entries.succeeds).run(sweep_entries.order(), listener)
        assert record.outcome is SweepOutcome.CALIBRATED
        assert record.reason != f"pid {os.getpid()}"
        assert listener.levels == [2, 4]
        assert [partial.reason for partial in listener.records] == [record.reason] * 2

    on_uvloop(scenario)


def test_messages_larger_than_any_buffer_arrive_whole() -> None:
    """Records grow with the sweep; none may be lost or taken for the end of the process."""

    async def scenario() -> None:
        listener = Listener()
        record = await ProcessSweepRunner(sweep_entries.says_much).run(sweep_entries.order(), listener)
        assert len(record.reason) == 3_000_000
        assert [len(partial.reason) for partial in listener.records] == [3_000_000] * 5
        assert listener.levels == [1, 2, 3, 4, 5]

    on_uvloop(scenario)


def test_a_permit_that_was_renewed_while_the_child_started_is_in_force() -> None:
    first_s = time.monotonic()  # over before any process can have started
    given_s = [first_s]

    def permit() -> float:
        return given_s.pop() if given_s else first_s + 60.0

    async def scenario() -> None:
        runner = ProcessSweepRunner(sweep_entries.takes_a_moment)
        record = await runner.run(sweep_entries.order(), Listener(), permit)
        assert record.outcome is SweepOutcome.CALIBRATED

    on_uvloop(scenario)


def test_a_permit_that_ends_ends_the_sweep(tmp_path: Path) -> None:
    until_s = time.monotonic() + 3.0

    async def scenario() -> None:
        note = str(tmp_path / "note")
        with pytest.raises(asyncio.CancelledError):
            await ProcessSweepRunner(sweep_entries.runs_until_cancelled).run(
                sweep_entries.order(note), Listener(), lambda: until_s
            )
        assert time.monotonic() >= until_s

    on_uvloop(scenario)


def test_an_expected_error_arrives_with_its_class_and_remedy() -> None:
    async def scenario() -> None:
        with pytest.raises(ConfigurationError) as caught:
            await ProcessSweepRunner(sweep_entries.is_misconfigured).run(sweep_entries.order(), Listener())
        assert (caught.value.cause, caught.value.remedy) == ("The cause.", "The remedy.")

    on_uvloop(scenario)


def test_a_killed_child_is_an_error_and_not_a_verdict() -> None:
    async def scenario() -> None:
        with pytest.raises(GeneratorError, match="died"):
            await ProcessSweepRunner(sweep_entries.dies).run(sweep_entries.order(), Listener())

    on_uvloop(scenario)


def test_cancelling_lets_the_child_end_its_probes(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    on_uvloop(lambda: cancel_when_it_spoke(sweep_entries.runs_until_cancelled, marker))
    word, pid = marker.read_text().split()
    assert word == "cancelled"
    assert not is_alive(int(pid))


def test_a_child_that_ignores_cancellation_is_killed(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    on_uvloop(lambda: cancel_when_it_spoke(sweep_entries.ignores_cancellation, marker))
    assert not is_alive(int(marker.read_text().split()[1]))


PARENT = """
import asyncio, sys
from support import sweep_entries
from calibrator.load.sweep_process import ProcessSweepRunner

class Silent:
    def progress(self, progress): pass
    def partial(self, record): pass

if __name__ == "__main__":
    asyncio.run(ProcessSweepRunner(sweep_entries.runs_until_cancelled).run(sweep_entries.order(sys.argv[1]), Silent()))
"""


def test_a_killed_service_leaves_no_load_behind(tmp_path: Path) -> None:
    """kill -9 of the parent closes the pipe; the child sees that and cancels its probes."""
    marker, script = tmp_path / "marker", tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script), str(marker)], env=with_the_tests())
    try:
        wait_for(lambda: marker.exists() and re.fullmatch(r"started \d+", marker.read_text()) is not None)
        child = int(marker.read_text().split()[1])
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_for(lambda: not is_alive(child))
    assert marker.read_text() == f"cancelled {child}"
