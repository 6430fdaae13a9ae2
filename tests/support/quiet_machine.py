"""Was the machine quiet enough to judge a test whose subject is real time?

Noise only ever makes such a test fail: it delays. So an attempt that passes has judged, whatever went on beside it. One
that fails is believed if the machine was quiet; if it was busy with other things, the attempt says nothing and is made
again, at last with the verdict that the machine was too busy. Nothing passes without an attempt that did.

    attempt ─▶ passed ──────────────────────────────▶ pass
           └─▶ failed ─▶ quiet? ── yes ─────────────▶ fail, as it is
                               └── no, tries left? ─▶ wait a little for calm, attempt
                                              └─ no ▶ fail: too busy to judge, with the last failure

Busy is: others than this process and its descendants used more than a quarter of the machine, or this process was
woken more than 20 ms late in one of a hundred times.
"""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

TRIES = 5
TEST_LIMIT_S = 3000.0  # of all attempts together
CALM_LIMIT_S = 10.0  # to wait for, between attempts
LOOK_S = 1.0
PROBE_S = 0.01
OTHERS_ALLOWED_RATIO = 0.25
LATE_ALLOWED_S = 0.02
FAILURES = (AssertionError, TimeoutError, subprocess.TimeoutExpired)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Noise:
    """What went on beside an attempt."""

    others_ratio: float = 0.0  # of all cores, used by others than this process and its descendants
    late_s: float = 0.0  # P99 of how late a thread of this process was woken

    @property
    def is_quiet(self) -> bool:
        return self.others_ratio <= OTHERS_ALLOWED_RATIO and self.late_s <= LATE_ALLOWED_S

    def __str__(self) -> str:
        return f"others used {self.others_ratio:.0%} of it, and this process was woken {self.late_s * 1e3:.0f} ms late"


def judge(attempt: Callable[[], T], *, tries: int = TRIES, luck: int = 0) -> T:
    """The first attempt's result that does not fail. `luck`: failures on a quiet machine that chance may explain."""
    noises: list[Noise] = []
    for left in reversed(range(tries)):
        with listening() as heard:
            try:
                return attempt()
            except FAILURES as failure:
                noise = heard()
                noises.append(noise)
                if sum(one.is_quiet for one in noises) > luck or (noise.is_quiet and not left):
                    raise
                print(f"attempt {len(noises)} of {tries} failed while {noise}: {failure}")
                if not left:
                    said = "; ".join(map(str, noises))
                    raise AssertionError(f"the machine was too busy to judge, {tries} times: {said}") from failure
        wait_for_calm()
    raise AssertionError("an attempt is needed to judge")


def real_time(test: Callable[P, None], *, tries: int = TRIES) -> Callable[P, None]:
    """Decorator: the whole test is one attempt, with a `tmp_path` of its own; other fixtures must bear a second one.

    `tries`: more than the usual number for what a few milliseconds of noise hide (with `functools.partial`).
    """

    @functools.wraps(test)
    def judged(*args: P.args, **kwargs: P.kwargs) -> None:
        numbers = itertools.count(1)

        def attempt() -> None:
            own, shared = dict(kwargs), kwargs.get("tmp_path")
            if isinstance(shared, Path):
                own["tmp_path"] = folder = shared / f"attempt-{next(numbers)}"
                folder.mkdir()
            test(*args, **own)  # type: ignore[arg-type] # the same keywords

        judge(attempt, tries=tries)

    return pytest.mark.timeout(TEST_LIMIT_S)(judged)


def wait_for_calm(limit_s: float = CALM_LIMIT_S) -> None:
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        with listening() as heard:
            time.sleep(LOOK_S)
            if heard().is_quiet:
                return


@contextmanager
def listening(ours: Callable[[], list[int]] | None = None) -> Iterator[Callable[[], Noise]]:
    """Yields what tells the noise so far. `ours`: the processes that are no others."""
    pids = ours or _family
    begun_s, busy_s, own_s = time.monotonic(), _busy_s(), _used_s(pids())
    late_s: list[float] = []
    ended = threading.Event()

    def probe() -> None:
        due_s = time.monotonic() + PROBE_S
        while not ended.wait(max(0.0, due_s - time.monotonic())):
            late_s.append(time.monotonic() - due_s)
            due_s = time.monotonic() + PROBE_S

    def noise() -> Noise:
        cores_s = (os.cpu_count() or 1) * max(1e-9, time.monotonic() - begun_s)
        others_s = (_busy_s() - busy_s) - (_used_s(pids()) - own_s)
        ordered = sorted(late_s)
        return Noise(max(0.0, others_s / cores_s), ordered[int(0.99 * len(ordered))] if ordered else 0.0)

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    try:
        yield noise
    finally:
        ended.set()
        thread.join()


# -------------------------------------------------------------------------------------------------------------- /proc
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def _busy_s() -> float:
    """Of all cores together, since the machine started."""
    user, nice, system, _idle, _wait, irq, soft_irq, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + soft_irq) / _TICKS_PER_S


def _used_s(pids: list[int]) -> float:
    """By these processes and by those that they have waited for."""
    return sum(sum(map(int, words[11:15])) for pid in pids if (words := _stat(pid))) / _TICKS_PER_S


def _family() -> list[int]:
    """This process and all that descend from it."""
    parents = {int(entry.name): _stat(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    found = [os.getpid()]
    for parent in found:
        found.extend(pid for pid, words in parents.items() if words and int(words[1]) == parent)
    return found


def _stat(pid: int) -> list[str]:
    """From the state on; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
