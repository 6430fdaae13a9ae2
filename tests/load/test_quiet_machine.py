"""Who judges real time says when it cannot, and never passes what no attempt has passed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import quiet_machine
from support.quiet_machine import Noise, judge, listening, real_time

QUIET, BUSY = Noise(0.05, 0.002), Noise(0.9, 0.002)


@pytest.fixture
def noises(monkeypatch: pytest.MonkeyPatch) -> list[Noise]:
    """What the attempts to come will hear."""
    to_come: list[Noise] = []

    @contextmanager
    def heard() -> Iterator[Callable[[], Noise]]:
        yield lambda: to_come.pop(0)

    monkeypatch.setattr(quiet_machine, "listening", heard)
    monkeypatch.setattr(quiet_machine, "wait_for_calm", lambda: None)
    return to_come


class Attempts:
    """Fails so many times."""

    def __init__(self, failures: int, error: type[Exception] = AssertionError) -> None:
        self.made, self._failures, self._error = 0, failures, error

    def __call__(self) -> str:
        self.made += 1
        if self.made <= self._failures:
            raise self._error(f"attempt {self.made}")
        return f"attempt {self.made}"


@pytest.mark.parametrize(
    ("heard", "failures", "luck", "says"),
    [
        ([], 0, 0, "attempt 1"),
        ([BUSY], 1, 0, "attempt 2"),
        ([BUSY, BUSY], 2, 0, "attempt 3"),
        ([Noise(0.0, 0.5)], 1, 0, "attempt 2"),
        ([QUIET], 1, 1, "attempt 2"),
        ([BUSY, QUIET], 2, 1, "attempt 3"),
    ],
)
def test_an_attempt_that_passes_has_judged(
    noises: list[Noise], heard: list[Noise], failures: int, luck: int, says: str
) -> None:
    noises += heard
    assert judge(Attempts(failures), tries=3, luck=luck) == says


@pytest.mark.parametrize(
    ("heard", "luck", "made"),
    [([QUIET], 0, 1), ([BUSY, QUIET], 0, 2), ([QUIET, QUIET], 1, 2), ([QUIET, BUSY, QUIET], 1, 3)],
)
def test_a_failure_on_a_quiet_machine_is_believed(
    noises: list[Noise], heard: list[Noise], luck: int, made: int
) -> None:
    noises += heard
    attempts = Attempts(9)
    with pytest.raises(AssertionError, match=f"^attempt {made}"):
        judge(attempts, tries=5, luck=luck)
    assert attempts.made == made


def test_a_machine_that_stays_busy_fails_and_is_named(noises: list[Noise]) -> None:
    noises += [BUSY] * 3
    with pytest.raises(AssertionError, match="too busy to judge, 3 times: others used 90%") as failed:
        judge(Attempts(9), tries=3)
    assert str(failed.value.__cause__) == "attempt 3"


def test_what_no_noise_can_explain_is_not_tried_again(noises: list[Noise]) -> None:
    attempts = Attempts(1, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        judge(attempts)
    assert attempts.made == 1


def test_a_decorated_test_keeps_its_fixtures_and_gets_a_folder_for_each_attempt(
    noises: list[Noise], tmp_path: Path
) -> None:
    noises += [BUSY]
    attempts = Attempts(1)

    @real_time
    def test(fixture: int, tmp_path: Path) -> None:
        (tmp_path / "new").mkdir()
        assert (fixture, attempts()) == (7, "attempt 2")

    test(fixture=7, tmp_path=tmp_path)
    assert [folder.name for folder in sorted(tmp_path.iterdir())] == ["attempt-1", "attempt-2"]
    assert test.__wrapped__.__code__.co_varnames[:1] == ("fixture",)  # type: ignore[attr-defined] # pytest reads it


def test_a_busy_process_is_noise_unless_it_is_ours() -> None:
    busy = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
    try:
        with listening() as all_ours, listening(lambda: [os.getpid()]) as me_alone:
            before_s = time.process_time()
            while _used_s(busy.pid) < 0.5:
                time.sleep(0.05)
            ours, alone = all_ours().others_ratio, me_alone().others_ratio
    finally:
        busy.kill()
        busy.wait()
    assert alone > ours
    assert time.process_time() - before_s < 0.5, "to listen costs little"


def _used_s(pid: int) -> float:
    return quiet_machine._used_s([pid])
