"""The parts of the compose file together, without a container engine: `make test-long`.

Each service's own command and own files, under its own name and port: a network namespace has nobody else, and a hosts
file of a mount namespace leads every name to it. What differs is what images bring: where programs lie, and the folder
of the state. Grafana, whose program is not to be had here, is left out.
"""

from __future__ import annotations

import contextlib
import ctypes
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from generate_chart import DEPLOY
from support.gateway_site import in_own_network
from support.helm_chart import tool
from support.prometheus_process import program
from support.service_process import wait_for

HERE = DEPLOY / "compose"
SERVICES: Mapping[str, dict[str, Any]] = yaml.safe_load((HERE / "docker-compose.yml").read_text())["services"]
CLONE_NEWNS = 0x00020000
SWEEP_LIMIT_S = 240.0


def names_lead_here(folder: Path) -> None:
    """In this thread and what it starts."""
    assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) == 0
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {' '.join(SERVICES)}\n")
    for line in ("mount --make-rprivate /", f"mount --bind {hosts} /etc/hosts"):
        subprocess.run(shlex.split(line), check=True)


def command(service: str, folder: Path) -> list[str]:
    """As the compose file has it, with programs and files where they are here."""
    written = SERVICES[service]
    given = [*written.get("entrypoint", ()), *written.get("command", ())]
    match service:
        case "calibrator":  # the image's own
            given = [sys.executable, "-m", "calibrator", "serve", "--config", "/etc/calibrator/calibrator.yaml"]
        case "prometheus":
            given = [program("prometheus"), "--config.file=/etc/prometheus/prometheus.yml"]
            given += [f"--storage.tsdb.path={folder / 'tsdb'}", "--web.listen-address=127.0.0.1:9090"]
        case "envoy":
            given = [tool("envoy"), *given[1:], "--use-dynamic-base-id"]
    places = {"/app/bin/python": sys.executable, **placed(service, folder)}
    return [replaced(part, places) for part in given]


def replaced(text: str, places: Mapping[str, str]) -> str:
    for inside, outside in places.items():
        text = text.replace(inside, outside)
    return text


def placed(service: str, folder: Path) -> dict[str, str]:
    """The service's mounted files, side by side as in its container; where, by their place there."""
    home = folder / service
    home.mkdir(exist_ok=True)
    found = {}
    for text in SERVICES[service].get("volumes", ()):
        source, place, *_ = text.split(":")
        if source.startswith("."):
            copy = home / Path(place).name
            copy.write_text((HERE / source).resolve().read_text())
            found[place] = str(copy)
    return found


@contextmanager
def running(service: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    log = folder / f"{service}.log"
    environ = {"PATH": "/usr/bin:/bin", "CALIBRATOR_STORE__PATH": str(folder / "calibrator.db")}
    with log.open("wb") as output:
        process = subprocess.Popen(command(service, folder), stdout=output, stderr=output, env=environ)
    try:
        yield process
        assert process.poll() is None, log.read_text()[-3000:]
    finally:
        process.terminate()
        process.wait(30)


def asked(url: str) -> Any:
    """JSON of a GET; None while nobody answers."""
    with contextlib.suppress(httpx.TransportError):
        answer = httpx.get(url, trust_env=False, timeout=30.0)
        return answer.json() if answer.status_code == 200 else None
    return None


def envoys_cap() -> int | None:
    found = asked("http://envoy:19000/runtime")
    entries = {} if found is None else found["entries"]
    value = entries.get("circuit_breakers.llm.default.max_requests", {}).get("final_value", "")
    return int(value) if value else None


def targets_up() -> set[str] | None:
    found = asked("http://prometheus:9090/api/v1/targets")
    active = [] if found is None else found["data"]["activeTargets"]
    up = {target["labels"]["job"] for target in active if target["health"] == "up"}
    return up if len(up) == 3 else None


def users_answered() -> int:
    """By the engine, through Envoy."""
    (counter,) = asked("http://envoy:19000/stats?filter=^cluster.llm.upstream_rq_200$&format=json")["stats"]
    return int(counter["value"])


@pytest.mark.long
def test_the_parts_work_together() -> None:
    def body() -> tuple[int, int, set[str], int]:
        with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
            folder = Path(name)
            names_lead_here(folder)
            for service in ("engine", "calibrator", "envoy", "prometheus", "users"):
                stack.enter_context(running(service, folder))

            def calibrated() -> int | None:
                seen = asked("http://calibrator:8300/v1/backends/llm")
                return int(seen["cap"]) if seen is not None and seen["state"] == "calibrated" else None

            cap = wait_for(calibrated, "the backend is calibrated beside 32 users", SWEEP_LIMIT_S)
            wait_for(lambda: calibrated() == envoys_cap(), "Envoy has the cap", 60.0)
            jobs = wait_for(targets_up, "Prometheus scrapes all", 60.0)
            return cap, envoys_cap() or 0, jobs, users_answered()

    cap, enforced, jobs, answered = in_own_network(body)
    print(f"\ncap {cap}, in force in Envoy {enforced}, scraped {sorted(jobs)}, {answered} requests of users answered")
    assert cap == enforced
    assert jobs == {"calibrator", "engine", "envoy"}
    assert answered > 0
