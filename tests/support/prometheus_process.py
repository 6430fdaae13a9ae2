"""The real Prometheus, Alertmanager and promtool. A missing program is a failure."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from support.service_process import wait_for

REPOSITORY = Path(__file__).parents[2]
RULES = REPOSITORY / "deploy" / "prometheus" / "rules.yaml"
WAIT_S = 120.0


def program(name: str) -> str:
    path = shutil.which(name)
    assert path is not None, f"{name} is not installed: make programs"
    return path


def promtool(*arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("promtool"), *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


def accepted(*arguments: str | Path, stdin: str | None = None) -> None:
    """promtool must not object, nor say anything on the way."""
    answer = promtool(*arguments, stdin=stdin)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def as_query(panel_expression: str) -> str:
    """A dashboard's expression with what Grafana puts in for its variables."""
    values = {"__rate_interval": "5m", "metric": "ttft"}
    return re.sub(r"\$(\w+)", lambda found: values.get(found[1], ".+"), panel_expression)


@contextmanager
def prometheus(folder: Path, config: dict[str, Any]) -> Iterator[httpx.Client]:
    """Prometheus on a free port, ready; its HTTP API."""
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    accepted("check", "config", path)
    arguments = [f"--config.file={path}", f"--storage.tsdb.path={folder / 'tsdb'}", "--web.listen-address=127.0.0.1:0"]
    with _process([program("prometheus"), *arguments], folder / "prometheus.log") as log:
        listening = re.compile(r'msg="Listening on" address=(127\.0\.0\.1:\d+)')
        found = wait_for(lambda: listening.search(log.read_text()), "Prometheus listens", WAIT_S)
        with _ready(f"http://{found[1]}") as http:
            yield http


@contextmanager
def alertmanager(folder: Path, webhook_url: str) -> Iterator[str]:
    """Alertmanager that posts every change at once; its host:port.

    It does not log the port it was given, so a free one is asked for and handed over.
    """
    path = folder / "alertmanager.yml"
    receiver = {"name": "hook", "webhook_configs": [{"url": webhook_url, "send_resolved": True}]}
    route = {"receiver": "hook", "group_by": ["..."], "group_wait": "0s", "group_interval": "1s"}
    path.write_text(yaml.safe_dump({"route": route, "receivers": [receiver]}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    arguments = [
        f"--config.file={path}",
        f"--storage.path={folder / 'alertmanager'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    ]
    with (
        _process([program("prometheus-alertmanager"), *arguments], folder / "alertmanager.log"),
        _ready(f"http://{address}"),
    ):
        yield address


@contextmanager
def _process(command: Sequence[str], log: Path) -> Iterator[Path]:
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            yield log
            assert process.poll() is None, log.read_text()
        finally:
            process.terminate()
            process.wait(WAIT_S)


@contextmanager
def _ready(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=WAIT_S, trust_env=False) as http:

        def is_ready() -> bool:
            try:
                return http.get("/-/ready").status_code == 200
            except httpx.TransportError:
                return False

        wait_for(is_ready, f"{url} is ready", WAIT_S)
        yield http
