"""The whole loop on one machine: simulated engine, live users, calibrator, Prometheus, Alertmanager, a webhook, and a
collector of traces."""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from support.independent_load import chat, make_prompt
from support.otlp_receiver import Receiver, otlp_receiver
from support.prometheus_process import RULES, alertmanager, prometheus
from support.service_process import Engine, Service, serving, simulated_engine, wait_for, write_config

BACKEND = "chat"
OUTPUT_TOKENS, PROMPT_TOKENS = 24, 64
LIMIT_S = 120.0  # of each step


@dataclass
class Traffic:
    """Live users: `users` of them, each sending its next request when the last one ended; `users` may change."""

    port: int
    users: int = 0
    _stopping: bool = False

    def run(self) -> None:
        asyncio.run(self._follow())

    async def _follow(self) -> None:
        active: set[asyncio.Task[None]] = set()
        draws = random.Random(1)
        while not self._stopping:
            for task in [task for task in active if task.done()]:
                active.remove(task)
                task.result()
            for number in range(len(active), self.users):
                active.add(asyncio.create_task(self._live(number, draws)))
            await asyncio.sleep(0.05)
        for task in active:
            task.cancel()
        await asyncio.gather(*active, return_exceptions=True)

    async def _live(self, number: int, draws: random.Random) -> None:
        while number < self.users:
            await chat(self.port, make_prompt(draws, PROMPT_TOKENS), OUTPUT_TOKENS, model="simulated")

    @contextmanager
    def flowing(self) -> Iterator[None]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._stopping = True
            thread.join(LIMIT_S)
            assert not thread.is_alive()


@dataclass
class Webhook:
    """Notes what Alertmanager posts: (seconds since the start, alert name, backend, status)."""

    started_s: float = field(default_factory=time.monotonic)
    heard: list[tuple[float, str, str, str]] = field(default_factory=list)

    def wait_for(self, alert: str, status: str) -> float:
        def look() -> float | None:
            return next((at for at, *what in self.heard if what == [alert, BACKEND, status]), None)

        return wait_for(look, f"the webhook hears that {alert} is {status}; it heard {self.heard}", LIMIT_S)

    @contextmanager
    def listening(self) -> Iterator[str]:
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                at_s = time.monotonic() - hook.started_s
                for alert in body["alerts"]:
                    labels = alert["labels"]
                    hook.heard.append((at_s, labels["alertname"], labels.get("backend", ""), alert["status"]))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by the library
                """Quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@dataclass(frozen=True)
class AlertSite:
    """Everything runs, the backend is calibrated, and there are no users yet."""

    engine: Engine
    service: Service
    traffic: Traffic
    webhook: Webhook
    collector: Receiver
    prometheus: httpx.Client

    def query(self, expression: str) -> list[dict[str, Any]]:
        """An instant query's samples."""
        answer = self.prometheus.get("/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, (expression, answer.text)
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def wait_until(self, what: str, condition: Callable[[], bool]) -> None:
        wait_for(condition, what, LIMIT_S)


def shortened(rules: str) -> str:
    """The same rules in a hurry: nothing but the shortest durations differs."""
    return re.sub(r"\bfor: \w+", "for: 2s", rules).replace("[5m]", "[4s]")


@contextmanager
def alert_site(folder: Path) -> Iterator[AlertSite]:
    (folder / "rules.yaml").write_text(shortened(RULES.read_text()))
    webhook = Webhook()
    with (
        simulated_engine() as engine,
        otlp_receiver() as collector,
        webhook.listening() as hook_url,
        alertmanager(folder, hook_url) as manager,
        serving(_config(folder, engine), environ={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}) as service,
        prometheus(folder, _scraping(folder, service, manager)) as http,  # in time to see the sweep
    ):
        traffic = Traffic(urlsplit(engine.root_url).port or 0)
        service.wait_for_backend(BACKEND, lambda seen: seen["state"] == "calibrated", "is calibrated")
        service.document(f"/v1/backends/{BACKEND}/cap?client=gateway-1")
        with traffic.flowing():
            yield AlertSite(engine, service, traffic, webhook, collector, http)


def _config(folder: Path, engine: Engine) -> Path:
    backend = {
        "url": engine.api_url,
        "model": "simulated",
        "objectives": ["ttft p90 <= 80ms", "e2e p98 <= 10s"],  # the second holds, and asks for a hundred requests
        "fallback_cap": 2,
        "every": "1h",
        "bounds": {"max": 16},
        "budget": {"requests": 900, "requests_per_level": 0},
        "workload": {"classes": [{"prompt_tokens": 64, "output_tokens": 10, "spread_ratio": 0.3}]},
    }
    return write_config(folder, {"backends": {BACKEND: backend}})


def _scraping(folder: Path, service: Service, manager: str) -> dict[str, Any]:
    target = service.http.base_url.netloc.decode()
    return {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(folder / "rules.yaml")],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [manager]}]}]},
        "scrape_configs": [{"job_name": "calibrator", "static_configs": [{"targets": [target]}]}],
    }
