"""kill -9 right after each write to the database in turn: the next start finds a whole store, and ends where an
undisturbed one ends.

Two services are killed at a time, each with its own engine and its own file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.service_process import CALIBRATOR, Engine, Service, serving, simulated_engine, wait_for, write_config

KILLING = (sys.executable, "-m", "support.killing_serve")
CAP = 3  # of a capacity of 4, the highest level there is, less a tenth
FALLBACK = 2
KINDS_IN_CI = ("acquire", "add_recommendation", "save_sweep")
AT_ONCE = 2

pytestmark = pytest.mark.timeout(900)


def configuration(engine: Engine) -> dict[str, Any]:
    chat = {
        "url": engine.api_url,
        "model": "simulated",
        "objectives": ["ttft p90 <= 900ms"],
        "fallback_cap": FALLBACK,
        "every": "1h",
        "bounds": {"max": 4},
        "budget": {"requests": 200, "requests_per_level": 0},
        "workload": {"classes": [{"prompt_tokens": 16, "output_tokens": 2}]},
    }
    return {"load": {"selftest": False}, "backends": {"chat": chat}}


def environ(folder: Path, kill_after: int) -> dict[str, str]:
    tests = str(Path(__file__).parent.parent)
    return {"KILL_AFTER": str(kill_after), "WRITES": str(folder / "writes"), "PYTHONPATH": tests}


def calibrated(service: Service) -> dict[str, Any]:
    return service.wait_for_backend("chat", lambda seen: seen["state"] == "calibrated", "is calibrated")


def undisturbed(folder: Path) -> list[str]:
    """The writes of a service that is left alone, in order."""
    folder.mkdir()
    with simulated_engine() as engine:
        config = write_config(folder, configuration(engine))
        with serving(config, environ=environ(folder, 0), program=KILLING) as service:
            assert calibrated(service)["cap"] == CAP
            wait_for(lambda: (folder / "writes").read_text().count("save_sweep") >= 2, "the record is stored")
    return (folder / "writes").read_text().split()


def killed(folder: Path, kill_after: int) -> None:
    """Then started anew, and judged."""
    folder.mkdir()
    with simulated_engine() as engine:
        config = write_config(folder, configuration(engine))
        with suppress(AssertionError), serving(config, environ=environ(folder, kill_after), program=KILLING) as doomed:
            wait_for(lambda: doomed.process.poll() is not None, "it is killed")
        writes = (folder / "writes").read_text().split()
        assert len(writes) == kill_after
        wait_for(lambda: engine.is_idle, "no load is left behind")
        was_published = writes.count("add_recommendation") >= 2  # the fallback is the first
        with serving(config, program=CALIBRATOR) as service:
            first = service.document("/v1/backends/chat/cap")
            assert first["cap"] == (CAP if was_published else FALLBACK), "neither lost nor made up"
            assert calibrated(service)["cap"] == CAP
            sweeps = service.document("/v1/backends/chat/sweeps")["sweeps"]
            assert all(sweep["outcome"] for sweep in sweeps), "none is left without an end"


def kill_points(writes: Sequence[str], *, every: bool) -> list[int]:
    """Numbers of writes, from 1; in CI the last of each kind that matters. What follows the sweep's record comes now
    and then."""
    last = {kind: len(writes) - list(reversed(writes)).index(kind) for kind in KINDS_IN_CI}
    return list(range(1, last["save_sweep"] + 1)) if every else sorted(last.values())


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)], ids=["some", "every"])
def test_after_each_write_in_turn(tmp_path: Path, *, every: bool) -> None:
    writes = undisturbed(tmp_path / "whole")
    assert {"acquire", "add_recommendation", "save_sweep"} <= set(writes)
    points = kill_points(writes, every=every)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda point: killed(tmp_path / f"after{point}", point), points))
    print(f"\nkilled after {', '.join(f'{point} {writes[point - 1]}' for point in points)}")
