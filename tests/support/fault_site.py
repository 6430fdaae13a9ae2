"""Two real calibrators on one real PostgreSQL, each behind a proxy that can harm its way to it; one simulated engine.

What happened is judged by onlookers: the engine's own log of arrivals, the database's rows, and a poller at each
instance that asks for the cap all the time, as a gateway does.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.fault_proxy import FaultProxy, fault_proxy
from support.postgres_process import PostgresProcess, postgres
from support.service_process import Engine, Service, family, serving, simulated_engine, wait_for, write_config

TOKEN = "operator-token"
LEASE_S = 4.0
POLL_S = 0.2
POLL_LIMIT_S = 20.0


def configuration(engine: Engine, folder: Path) -> dict[str, Any]:
    (folder / "token").write_text(TOKEN)
    chat = {
        "url": engine.api_url,
        "model": "simulated",
        "objectives": ["ttft p99 <= 80ms"],
        "fallback_cap": 2,
        "every": "1h",
        "bounds": {"max": 16},
        "workload": {"classes": [{"prompt_tokens": 64, "output_tokens": 10, "spread_ratio": 0.3}]},
    }
    return {
        "auth": {"operator_tokens": [{"file": str(folder / "token")}]},
        "load": {"selftest": False},
        "store": {"postgresql": {"env": "DATABASE_URL"}, "lease": f"{LEASE_S:g}s"},
        "backends": {"chat": chat},
    }


@dataclass
class Poller:
    """Asks one instance for the cap, again and again. `excused`: it is known to be stopped."""

    url: str
    excused: bool = False
    answers: list[tuple[float, int]] = field(default_factory=list)  # when, cap
    errors: list[str] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="poller", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        assert self._thread is not None
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=POLL_LIMIT_S, trust_env=False) as http:
            while not self._ended.wait(POLL_S):
                was_excused = self.excused
                try:
                    answer = http.get("/v1/backends/chat/cap")
                    answer.raise_for_status()
                    self.answers.append((time.monotonic(), answer.json()["cap"]))
                except httpx.HTTPError as error:
                    if not (was_excused or self.excused or self._ended.is_set()):
                        self.errors.append(repr(error))


@dataclass
class Instance:
    """One calibrator. `service` is replaced when it is started anew."""

    name: str
    folder: Path
    proxy: FaultProxy
    database_url: str
    service: Service = field(init=False)
    poller: Poller = field(init=False)
    stack: ExitStack = field(default_factory=ExitStack)
    past: list[Poller] = field(default_factory=list)

    def start(self, config: Path) -> None:
        environ = {"DATABASE_URL": self.database_url}
        self.service = self.stack.enter_context(serving(config, token=TOKEN, environ=environ))
        self.poller = Poller(str(self.service.http.base_url))
        self.past.append(self.poller)
        self.poller.start()

    @property
    def is_up(self) -> bool:
        return self.service.process.poll() is None

    def backend(self) -> dict[str, Any]:
        return self.service.backend("chat")

    def holds_lease(self) -> bool:
        return bool(self.is_up and not self.poller.excused and self.backend()["lease_held"])

    # ---------------------------------------------------------------------------------------------- what befalls it
    def signal(self, number: signal.Signals, *, whole_family: bool = False) -> None:
        self.poller.excused = number is not signal.SIGCONT
        pid = self.service.process.pid
        for one, _ in family(pid) if whole_family else [(pid, "")]:
            with contextlib.suppress(ProcessLookupError):  # a child has ended meanwhile
                os.kill(one, number)

    def kill(self) -> None:
        self.poller.excused = True
        self.service.kill()

    def end(self) -> None:
        self.poller.stop()
        self.stack.close()


@dataclass
class Finding:
    """One row of the fault table."""

    fault: str
    overlap_s: float
    stale: int
    lost: int
    recovery_s: float | None

    def __str__(self) -> str:
        recovery = "-" if self.recovery_s is None else f"{self.recovery_s:.1f} s"
        return f"| {self.fault} | 1 | {self.overlap_s:.2f} s | {self.stale} | {self.lost} | {recovery} |"


@dataclass
class FaultSite:
    """See the head of this file."""

    server: PostgresProcess
    database: str
    engine: Engine
    arrivals: Path
    config: Path
    instances: list[Instance]
    findings: list[Finding] = field(default_factory=list)

    # ------------------------------------------------------------------------------------------------------ scenes
    def settle(self) -> None:
        """Both are up and well, one leads, nothing is swept, and a cap is known."""
        self.server.resume()
        for one in self.instances:
            one.proxy.heal()
            if one.is_up:
                one.signal(signal.SIGCONT, whole_family=True)
            else:
                one.poller.stop()
                one.start(self.config)
        wait_for(lambda: sum(one.holds_lease() for one in self.instances) == 1, "one leads")
        for one in self.instances:
            one.service.wait_for_backend("chat", lambda seen: seen["state"] == "calibrated", "is calibrated")
        if self.holder().backend()["progress"] is not None:
            self.holder().service.http.delete("/v1/backends/chat/sweeps/current")
        wait_for(lambda: all(one.backend()["progress"] is None for one in self.instances), "nothing is swept")
        wait_for(lambda: self.engine.is_idle, "the engine is idle")

    def holder(self) -> Instance:
        return next(one for one in self.instances if one.holds_lease())

    def in_mid_sweep(self) -> tuple[Instance, Instance]:
        """Who sweeps, and the other one."""
        self.settle()
        holder = self.holder()
        holder.service.http.post("/v1/backends/chat/sweeps").raise_for_status()
        wait_for(lambda: self.engine.stats()["in_flight"] >= 2, "the sweep's probes are in flight")
        other = next(one for one in self.instances if one is not holder)
        return holder, other

    def sweep_again(self, one: Instance) -> None:
        """So that there are probes which could meet those of the one before."""
        one.service.http.post("/v1/backends/chat/sweeps").raise_for_status()
        wait_for(lambda: one.backend()["progress"] is not None, "it sweeps")
        time.sleep(1.0)

    # -------------------------------------------------------------------------------------------------- judgements
    @contextmanager
    def judged(self, fault: str) -> Iterator[Finding]:
        """Put `recovery_s` into what is given. What must never happen fails the test outright: no noise excuses it."""
        began_s = time.monotonic()
        finding = Finding(fault, 0.0, 0, 0, None)
        errors = [len(poller.errors) for poller in self._pollers()]
        stored = self.published()
        yield finding
        known = {cap for _, cap, _, _ in self.published()} | {1}
        after = self.published()
        finding.overlap_s = overlap_s(self.arrivals, began_s)
        finding.stale = sum(
            later[2] < earlier[2] or (later[1] > earlier[1] and not later[3])
            for earlier, later in itertools.pairwise(after)
        )
        finding.lost = len(set(stored) - set(after))
        self.findings.append(finding)
        if finding.overlap_s or finding.stale or finding.lost:
            pytest.fail(f"probed at once, published stale or lost: {finding}; {after}")
        for poller, before in itertools.zip_longest(self._pollers(), errors, fillvalue=0):
            assert isinstance(poller, Poller)
            assert poller.errors[before:] == [], "a poller saw an error for a cap that was known"
            most = max(known)
            assert all(1 <= cap <= most for at_s, cap in poller.answers if at_s >= began_s)

    def _pollers(self) -> list[Poller]:
        return [poller for one in self.instances for poller in one.past]

    def published(self) -> list[tuple[int, int, int, bool]]:
        """Version, cap, epoch, and whether a certified sweep stands behind it; by version."""
        rows = self.server.execute(
            "SELECT r.version, r.document, r.epoch, s.document FROM recommendations r LEFT JOIN sweeps s "
            "ON s.sweep_id = (r.document::json->>'sweep_id') WHERE r.backend = 'chat' ORDER BY r.version",
            self.database,
        )
        return [
            (version, json.loads(document)["cap"], epoch, sweep is not None and json.loads(sweep)["grade"] is not None)
            for version, document, epoch, sweep in rows
        ]

    def close(self) -> None:
        for one in self.instances:
            one.proxy.heal()
            one.end()

    def table(self) -> str:
        head = "| fault | times | two at once | stale | lost | recovery |\n|---|---|---|---|---|---|"
        return "\n".join([head, *map(str, self.findings)])


def overlap_s(arrivals: Path, since_s: float) -> float:
    """Seconds in which requests of two sweeps were in flight, by the engine's log."""
    begun: dict[int, str] = {}
    moments: list[tuple[float, int, str]] = []
    for text in arrivals.read_text().splitlines():
        line = json.loads(text)
        if line["event"] == "begin":
            begun[line["number"]] = sweep_of(line["request_id"])
        if line["at_s"] >= since_s and begun.get(line["number"]):
            moments.append((line["at_s"], 1 if line["event"] == "begin" else -1, begun[line["number"]]))
    in_flight: dict[str, int] = {}
    total_s = before_s = 0.0
    for at_s, change, sweep in sorted(moments):
        if sum(count > 0 for count in in_flight.values()) > 1:
            total_s += at_s - before_s
        before_s = at_s
        in_flight[sweep] = max(0, in_flight.get(sweep, 0) + change)
    return total_s


def sweep_of(request_id: str) -> str:
    """Probes are called calibrator-<sweep>-<number>."""
    return request_id.removeprefix("calibrator-").rpartition("-")[0] if request_id.startswith("calibrator-") else ""


@contextmanager
def fault_site(folder: Path) -> Iterator[FaultSite]:
    """Calibrated, for as long as the block lasts."""
    arrivals = folder / "arrivals.jsonl"
    with ExitStack() as stack:
        server = stack.enter_context(postgres())
        database = server.new_database()
        engine = stack.enter_context(simulated_engine(arrivals=arrivals))
        config = write_config(folder, {**configuration(engine, folder)})
        instances = []
        for name in ("a", "b"):
            proxy = stack.enter_context(fault_proxy(server.port))
            url = f"postgresql://postgres@127.0.0.1:{proxy.port}/{database}?sslmode=disable"
            one = Instance(name, folder, proxy, url)
            one.start(config)
            instances.append(one)
        site = FaultSite(server, database, engine, arrivals, config, instances)
        try:
            site.settle()
            yield site
        finally:
            site.close()
