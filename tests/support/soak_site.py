"""A whole service on an accelerated schedule, with gateways that poll and engines that misbehave, watched from outside.

Three simulated engines, each a process of its own, swept every few seconds; `POLLERS` clients that ask for caps, half
of them as sharers; and a random fault every few seconds: an engine refuses with 503, stalls, cuts streams, or is ended
and started again. Memory and file descriptors are read from /proc, tasks from the service's own page of metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from support.postgres_process import free_port
from support.service_process import Engine, Service, serving, simulated_engine, write_config

BACKENDS = ("a", "b", "c")
POLLERS = 50
POLL_S = 2.0
FAULT_EVERY_S = (2.0, 6.0)
SAMPLE_S = 1.0
FAULTS: tuple[dict[str, Any], ...] = (
    {"refuse_ratio": 0.5, "refusal": "status_503"},
    {"stall_now_s": 1.5},
    {"truncate_ratio": 0.3, "reset_ratio": 0.3},
    {"stall_ratio": 0.02, "stall_s": 0.3},
)


@dataclass(frozen=True, slots=True)
class Reading:
    """The service's process at one moment."""

    at_s: float
    resident_bytes: int
    descriptors: int
    tasks: int
    sweeps: int


@dataclass
class SoakSite:
    """`engines` are replaced when they are restarted, at their old address."""

    service: Service
    ports: dict[str, int]
    engines: dict[str, tuple[Engine, ExitStack]]
    readings: list[Reading] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)
    polls: int = 0
    refused_joins: int = 0
    errors: list[str] = field(default_factory=list)
    _ends_s: float = 0.0

    async def run(self, duration_s: float, seed: int) -> None:
        """Everything at once, for so long."""
        self._ends_s = time.monotonic() + duration_s
        url = str(self.service.http.base_url)
        limits = httpx.Limits(max_connections=POLLERS + 5)
        async with httpx.AsyncClient(base_url=url, timeout=30.0, trust_env=False, limits=limits) as http:
            tasks = [asyncio.create_task(self._poll(http, number)) for number in range(POLLERS)]
            tasks += [asyncio.create_task(self._harm(random.Random(seed))), asyncio.create_task(self._watch(http))]
            await asyncio.gather(*tasks)  # none is cancelled: that would leave half-closed connections behind

    @property
    def _goes_on(self) -> bool:
        return time.monotonic() < self._ends_s

    async def _poll(self, http: httpx.AsyncClient, number: int) -> None:
        path = f"/v1/backends/{BACKENDS[number % len(BACKENDS)]}/cap"
        params = {"wait": f"{POLL_S:g}", **({"client": f"gateway-{number}"} if number % 2 else {})}
        etag = ""
        while self._goes_on:
            answer = await http.get(path, params=params, headers={"If-None-Match": etag} if etag else {})
            self.polls += 1
            etag = answer.headers.get("ETag", "")
            if answer.status_code == 503 and "client" in params and "Retry-After" in answer.headers:
                self.refused_joins += 1
            elif answer.status_code not in (200, 304):
                self.errors.append(f"{path}: {answer.status_code} {answer.text[:200]}")
            elif answer.status_code == 200 and answer.json()["cap"] < 1:
                self.errors.append(f"{path}: {answer.text}")
            await asyncio.sleep(0.2)

    async def _harm(self, draws: random.Random) -> None:
        while self._goes_on:
            await asyncio.sleep(draws.uniform(*FAULT_EVERY_S))
            name = draws.choice(BACKENDS)
            kind = draws.randrange(len(FAULTS) + 1)
            if kind == len(FAULTS):
                await asyncio.to_thread(self._restart, name)
            else:
                with contextlib.suppress(httpx.HTTPError):
                    await self._fault(name, FAULTS[kind], draws.uniform(0.5, 3.0))
            told = "restart" if kind == len(FAULTS) else " ".join(FAULTS[kind])
            self.faults[told] = self.faults.get(told, 0) + 1

    async def _fault(self, name: str, fault: dict[str, Any], for_s: float) -> None:
        root = self.engines[name][0].root_url
        async with httpx.AsyncClient(base_url=root, timeout=10.0, trust_env=False) as http:
            await http.post("/faults", json=fault)
            await asyncio.sleep(for_s)
            await http.post("/faults", json={})

    def _restart(self, name: str) -> None:
        self.engines[name][1].close()
        self.engines[name] = started(self.ports[name])

    async def _watch(self, http: httpx.AsyncClient) -> None:
        pid = self.service.process.pid
        while self._goes_on:
            page = (await http.get("/metrics")).text
            self.readings.append(
                Reading(
                    at_s=time.monotonic(),
                    resident_bytes=_resident_bytes(pid),
                    descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
                    tasks=int(_total(page, "calibrator_asyncio_tasks ")),
                    sweeps=int(_total(page, "calibrator_sweeps_total{")),
                )
            )
            await asyncio.sleep(SAMPLE_S)


def _resident_bytes(pid: int) -> int:
    words = Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()
    return int(words[0]) * 1024


def _total(page: str, start: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(start))


def started(port: int) -> tuple[Engine, ExitStack]:
    stack = ExitStack()
    return stack.enter_context(simulated_engine(port=port)), stack


def configuration(ports: dict[str, int], every_s: float) -> dict[str, Any]:
    def backend(name: str) -> dict[str, Any]:
        return {
            "url": f"http://127.0.0.1:{ports[name]}/v1",
            "model": "simulated",
            "objectives": ["ttft p90 <= 500ms"],
            "fallback_cap": 2,
            "every": f"{every_s:g}s",
            "bounds": {"max": 4},
            "budget": {"requests": 200, "requests_per_level": 0, "duration": "20s"},
            "workload": {"classes": [{"prompt_tokens": 32, "output_tokens": 2}]},
        }

    return {
        "load": {"selftest": False},
        "store": {"keep_sweeps": 5, "keep_recommendations": 20, "keep_samples": 1},
        "sweeps": {"max_parallel": 2},
        "backends": {name: backend(name) for name in ports},
    }


@contextmanager
def soak_site(folder: Path, every_s: float) -> Iterator[SoakSite]:
    """Runs for as long as the block lasts; ends with a clean stop."""
    ports = {name: free_port() for name in BACKENDS}
    engines = {name: started(port) for name, port in ports.items()}
    try:
        tree = configuration(ports, every_s)
        tree["store"]["path"] = str(folder / "calibrator.db")
        with serving(write_config(folder, tree)) as service:
            yield SoakSite(service, ports, engines)
    finally:
        for _, stack in engines.values():
            stack.close()
