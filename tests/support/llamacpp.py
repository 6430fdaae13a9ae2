"""A real engine for tests: llama.cpp with continuous batching, S slots and a queue, from the `xllamacpp` wheel.

Why it is an oracle: with S slots nothing waits up to S requests in flight, and exactly C - S wait above it, on any
machine. `requests_deferred` on its metrics page says so without a clock.
"""

from __future__ import annotations

import importlib.util
import select
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from support.real_processes import with_the_tests
from support.require import require

START_LIMIT_S = 180.0  # 0.1-0.7 s warm; a bound for a machine that is busy with other things
STOP_LIMIT_S = 120.0
MODEL_NAME = "tiny"  # llama.cpp accepts any name in a request


@dataclass(frozen=True, slots=True)
class LlamaServer:
    """A server that answers."""

    root_url: str  # http://127.0.0.1:PORT
    pid: int
    slots: int

    @property
    def api_url(self) -> str:
        return f"{self.root_url}/v1"

    @property
    def port(self) -> int:
        return int(self.root_url.rsplit(":", 1)[1])

    def gauges(self) -> tuple[int, int]:
        """(running, queued) as the engine itself counts them."""
        page = {}
        for line in self.metrics_page().splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                page[name] = float(value)
        return int(page["llamacpp:requests_processing"]), int(page["llamacpp:requests_deferred"])

    def metrics_page(self) -> str:
        with urllib.request.urlopen(f"{self.root_url}/metrics", timeout=120.0) as response:
            text: str = response.read().decode()
            return text


@contextmanager
def llama_server(
    *, model: Path, slots: int, ctx_per_slot: int = 2048, api_key: str | None = None
) -> Iterator[LlamaServer]:
    """Start the engine in a process of its own on a free port; on exit it is stopped, by pid, and seen to be gone."""
    found = importlib.util.find_spec("xllamacpp") is not None
    require("llama.cpp (the wheel xllamacpp)", found=found, remedy="make setup")
    command = [sys.executable, "-P", "-m", "support.llamacpp_process"]
    command += ["--model", str(model), "--slots", str(slots), "--ctx-per-slot", str(ctx_per_slot)]
    command += ["--api-key", api_key] if api_key else []
    log_path = model.with_suffix(f".{slots}.log")
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=with_the_tests(),
        )
    try:
        root_url = _wait_ready(process, log_path)
        yield LlamaServer(root_url=root_url, pid=process.pid, slots=slots)
    finally:
        _stop(process)


def _wait_ready(process: subprocess.Popen[bytes], log_path: Path) -> str:
    deadline_s = time.monotonic() + START_LIMIT_S
    line = _read_line(process.stdout, deadline_s)
    if not line.startswith("READY "):
        tail = log_path.read_text(errors="replace")[-2000:]
        raise AssertionError(f"llama.cpp did not start (said {line!r}, exit code {process.poll()}):\n{tail}")
    root_url = line.split()[1]
    while not _is_healthy(root_url):
        assert process.poll() is None, f"llama.cpp ended with {process.returncode} while starting"
        assert time.monotonic() < deadline_s, "llama.cpp listens but never became healthy"
        time.sleep(0.05)
    return root_url


def _read_line(stream: IO[bytes] | None, deadline_s: float) -> str:
    assert stream is not None
    ready, _, _ = select.select([stream], [], [], max(0.0, deadline_s - time.monotonic()))
    return stream.readline().decode() if ready else ""


def _is_healthy(root_url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{root_url}/health", timeout=60.0) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, TimeoutError):
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_LIMIT_S)
        raise AssertionError("llama.cpp ignored SIGTERM") from None
    finally:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
