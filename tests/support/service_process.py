"""The programs as a user runs them: `calibrator serve` and the simulated engine, each in a real process on 127.0.0.1.

Every process started here is ended here, by its id, and seen to be gone together with its children.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml

CALIBRATOR = (sys.executable, "-m", "calibrator")
WAIT_S = 180.0  # a bound against hanging for ever, on a machine that is busy with other things
STOP_LIMIT_S = 5.0  # contract: SIGTERM ends the service within this time, even in mid-sweep
LEFT_LIMIT_S = 30.0  # its children, which end by themselves
POLL_S = 0.05

T = TypeVar("T")
Process = tuple[int, str]  # id, and the kernel's start time of it: ids are used again


def wait_for(look: Callable[[], T | None], what: str, limit_s: float = WAIT_S) -> T:
    """Look again and again until there is something to see."""
    deadline_s = time.monotonic() + limit_s
    while not (seen := look()):
        assert time.monotonic() < deadline_s, f"did not happen within {limit_s:g} s: {what}"
        time.sleep(POLL_S)
    return seen


def run_calibrator(
    *arguments: str | Path, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A verb that ends by itself."""
    command = [*CALIBRATOR, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=WAIT_S, check=False, env={**os.environ, **(environ or {})}
    )


# ---------------------------------------------------------------------------------------------------------- processes
def _stat(pid: int) -> tuple[str, int, str] | None:
    """State, parent and start time; None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    words = text.rpartition(")")[2].split()
    return words[0], int(words[1]), words[19]


def family(pid: int) -> list[Process]:
    """The process and all that descend from it, now."""
    known = {int(entry.name): _stat(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    found = [pid]
    for parent in found:
        found.extend(one for one, stat in known.items() if stat is not None and stat[1] == parent)
    return [(one, stat[2]) for one in found if (stat := known.get(one)) is not None]


def living(processes: list[Process]) -> list[Process]:
    """Those that still run; one that nobody has waited for yet is dead."""
    stats = ((one, _stat(one[0])) for one in processes)
    return [one for one, stat in stats if stat is not None and stat[2] == one[1] and stat[0] not in "ZX"]


# ------------------------------------------------------------------------------------------------------------- engine
@dataclass(frozen=True, slots=True)
class Engine:
    """A simulated engine that answers."""

    root_url: str  # http://127.0.0.1:PORT

    @property
    def api_url(self) -> str:
        return f"{self.root_url}/v1"

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = httpx.get(f"{self.root_url}/stats", timeout=WAIT_S).json()
        return stats

    @property
    def is_idle(self) -> bool:
        return bool(self.stats()["in_flight"] == 0)


@contextmanager
def simulated_engine(parameters: str = "small", arrivals: Path | None = None, port: int = 0) -> Iterator[Engine]:
    command = [sys.executable, "-m", "calibrator.backends.simulated", "--port", str(port), "--parameters", parameters]
    command += [] if arrivals is None else ["--arrivals", str(arrivals)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("READY "), "the simulated engine did not start"
            yield Engine(line.split()[1])
        finally:
            process.terminate()
            process.wait(WAIT_S)


# ------------------------------------------------------------------------------------------------------------ service
@dataclass(frozen=True, slots=True)
class Service:
    """`calibrator serve` that answers. `http` has its base URL."""

    process: subprocess.Popen[bytes]
    http: httpx.Client
    log: Path

    def document(self, path: str) -> dict[str, Any]:
        """The JSON of a GET that must succeed."""
        response = self.http.get(path)
        assert response.status_code == 200, (path, response.status_code, response.text)
        document: dict[str, Any] = response.json()
        return document

    def backend(self, name: str) -> dict[str, Any]:
        return self.document(f"/v1/backends/{name}")

    def wait_for_backend(
        self, name: str, condition: Callable[[dict[str, Any]], bool], what: str, limit_s: float = WAIT_S
    ) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            assert self.process.poll() is None, self.log.read_text()
            seen = self.backend(name)
            return seen if condition(seen) else None

        return wait_for(look, f"{name}: {what}", limit_s)

    def log_lines(self) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def terminate(self) -> tuple[int, float]:
        """SIGTERM, as an orchestrator stops it. Exit code, and how long it took; nothing of it is left."""
        ours = family(self.process.pid)
        asked_s = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(WAIT_S)
        took_s = time.monotonic() - asked_s
        wait_for(lambda: not living(ours), f"the service's processes {ours} end", LEFT_LIMIT_S)
        return code, took_s

    def kill(self) -> list[Process]:
        """kill -9 of the service alone. Its children, which must end by themselves."""
        _, *children = family(self.process.pid)
        self.process.kill()
        self.process.wait(WAIT_S)
        return children


@contextmanager
def serving(
    config: Path,
    *,
    token: str | None = None,
    environ: Mapping[str, str] | None = None,
    program: Sequence[str] = CALIBRATOR,
) -> Iterator[Service]:
    """Start the service and wait until it answers; on exit it is stopped, unless the test did so, and seen to be gone.

    `token` is sent with every request of `http`. `program`: another one with the same command line.
    """
    log = config.with_suffix(f".{time.monotonic_ns()}.log")
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*program, "serve", "--config", str(config)],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, **(environ or {})},
        )
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        url = wait_for(lambda: _url(process, log), "the service says where it serves")
        with httpx.Client(base_url=url, headers=headers, timeout=WAIT_S, trust_env=False) as http:
            service = Service(process, http, log)
            yield service
            if process.poll() is None:
                assert service.terminate()[0] == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(WAIT_S)


def _url(process: subprocess.Popen[bytes], log: Path) -> str | None:
    text = log.read_text()
    assert process.poll() is None, f"the service ended with {process.returncode}:\n{text}"
    serving_lines = [line for line in text.splitlines() if '"event": "serving"' in line and line.endswith("}")]
    return json.loads(serving_lines[0])["url"] if serving_lines else None


def write_config(folder: Path, tree: Mapping[str, Any]) -> Path:
    """A configuration in `folder`, with a free port and its own store unless `tree` says otherwise."""
    path = folder / "calibrator.yaml"
    whole = {"listen": {"port": 0}, "store": {"path": str(folder / "calibrator.db")}, "log": {"format": "json"}}
    path.write_text(yaml.safe_dump({**whole, **tree}))
    return path
