"""`calibrator demo` in a process of its own, as a newcomer starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from support.service_process import CALIBRATOR

STOP_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Demo:
    """A demo that answers. `token`: the operator token that it printed."""

    port: int
    token: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def document(self, path: str = "") -> dict[str, Any]:
        answer = httpx.get(f"{self.url}/v1/backends/demo{path}", timeout=120.0, trust_env=False)
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        return document


@contextmanager
def running_demo(*arguments: str) -> Iterator[Demo]:
    command = [*CALIBRATOR, "demo", "--port", "0", *arguments]
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        try:
            assert process.stdout is not None
            said = ""
            while "sign in with" not in said:
                line = process.stdout.readline()
                assert line, said
                said += line
            port, token = re.search(r"page at http://127.0.0.1:(\d+)/", said), re.search(r"sign in with (\S+)", said)
            assert port is not None, said
            assert token is not None, said
            yield Demo(int(port[1]), token[1])
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
