"""kill -9 right after each write to the database in turn: the next start finds a whole store, and ends where an
undisturbed one ends.

Two services are killed at a time, each with its own engine and its own database. On PostgreSQL the one that starts
anew waits until the lease of the killed one has lapsed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.postgres_process import PostgresProcess
from support.real_processes import with_the_tests
from support.service_process import CALIBRATOR, Engine, Service, serving, simulated_engine, wait_for, write_config

KILLING = (sys.executable, "-m", "support.killing_serve")
CAP = 3  # of a capacity of 4, the highest level there is, less a tenth
FALLBACK = 2
PUBLISHED, STORED = "publish_calibrated", "save_ended_sweep"
IN_CI = {"sqlite": ("acquire", PUBLISHED, STORED), "postgresql": (PUBLISHED,)}
AT_ONCE = 2
LEASE_S = 4.0

pytestmark = pytest.mark.timeout(900)


@dataclass(frozen=True)
class Storage:
    """Where a service keeps its state."""

    settings: dict[str, Any]
    environ: dict[str, str]


def storage(server: PostgresProcess | None) -> Storage:
    """A new one."""
    if server is None:
        return Storage({}, {})
    settings = {"store": {"postgresql": {"env": "DATABASE_URL"}, "lease": f"{LEASE_S:g}s"}}
    return Storage(settings, {"DATABASE_URL": server.url(server.new_database())})


def configuration(engine: Engine, kept: Storage) -> dict[str, Any]:
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
    return {"load": {"selftest": False}, "backends": {"chat": chat}, **kept.settings}


def environ(folder: Path, kill_after: str, kept: Storage) -> dict[str, str]:
    return {**with_the_tests(), "KILL_AFTER": kill_after, "WRITES": str(folder / "writes"), **kept.environ}


def have_ended(service: Service) -> bool:
    return all(sweep["outcome"] for sweep in service.document("/v1/backends/chat/sweeps")["sweeps"])


def calibrated(service: Service) -> dict[str, Any]:
    return service.wait_for_backend("chat", lambda seen: seen["state"] == "calibrated", "is calibrated")


def undisturbed(folder: Path, kept: Storage) -> list[str]:
    """The writes of a service that is left alone, in order."""
    folder.mkdir()
    with simulated_engine() as engine:
        config = write_config(folder, configuration(engine, kept))
        with serving(config, environ=environ(folder, "never", kept), program=KILLING) as service:
            assert calibrated(service)["cap"] == CAP
            wait_for(lambda: STORED in (folder / "writes").read_text(), "the record is stored")
    return (folder / "writes").read_text().split()


def killed(folder: Path, kept: Storage, kill_after: str) -> list[str]:
    """Then started anew, and judged. The writes that it lived for."""
    folder.mkdir()
    with simulated_engine() as engine:
        config = write_config(folder, configuration(engine, kept))
        given = environ(folder, kill_after, kept)
        with suppress(AssertionError), serving(config, environ=given, program=KILLING) as doomed:
            wait_for(lambda: doomed.process.poll() is not None, "it is killed")
        writes = (folder / "writes").read_text().split()
        assert kill_after in (str(len(writes)), writes[-1])
        wait_for(lambda: engine.is_idle, "no load is left behind")
        with serving(config, environ=kept.environ, program=CALIBRATOR) as service:
            cap = CAP if PUBLISHED in writes else FALLBACK
            assert service.backend("chat")["cap"] == cap, "neither lost nor made up"
            served = service.document("/v1/backends/chat/cap")["cap"]
            # Until a lease lapses nobody else can know that the probes of the killed one are gone.
            assert served == cap or (kept.settings and 1 <= served < cap)
            assert calibrated(service)["cap"] == CAP
            wait_for(lambda: have_ended(service), "none is left without an end")
    return writes


def every_one(writes: Sequence[str]) -> list[str]:
    """As KILL_AFTER has it. What follows the sweep's last record comes now and then."""
    return [str(number) for number in range(1, writes.index(STORED) + 2)]


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)], ids=["some", "every"])
@pytest.mark.parametrize("database", IN_CI)
def test_after_each_write_in_turn(
    tmp_path: Path, database: str, request: pytest.FixtureRequest, *, every: bool
) -> None:
    server = request.getfixturevalue("postgres_server") if database == "postgresql" else None
    points = every_one(undisturbed(tmp_path / "whole", storage(server))) if every else IN_CI[database]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        lived = list(pool.map(lambda point: killed(tmp_path / f"after {point}", storage(server), point), points))
    print(f"\n{database}, killed after {', '.join(f'{len(done)} {done[-1]}' for done in lived)}")
