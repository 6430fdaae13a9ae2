"""Pollers that misbehave, against the real service: it stays small, and answers the others."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.service_process import Service, serving, write_config

from calibrator.core.sharing.allocator import MAX_CLIENTS

CAP = 20
PATH = "/v1/backends/llm/cap"
MANY = MAX_CLIENTS + 500
GROWTH_MB = 60.0  # for 10,000 clients and what was made for them
UNREAD_BYTES = 64_000_000  # if the service took as much from somebody who reads nothing, it would take anything


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    later = (datetime.now(UTC) + timedelta(days=3)).strftime("%a").lower()
    llm = {
        "url": "http://127.0.0.1:9/v1", "model": "m", "objectives": ["ttft p99 <= 500ms"], "fallback_cap": CAP,
        "windows": [{"days": [later], "from": "00:00", "to": "00:01"}],
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("hostile")
    with serving(write_config(folder, {"backends": {"llm": llm}, "load": {"selftest": False}})) as running:
        yield running


def megabytes(service: Service) -> float:
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024.0


def address(service: Service) -> tuple[str, int]:
    url = urlsplit(str(service.http.base_url))
    return str(url.hostname), url.port or 0


def request(client: str) -> bytes:
    return f"GET {PATH}?client={client} HTTP/1.1\r\nHost: calibrator\r\n\r\n".encode()


def statuses(service: Service, clients: list[str]) -> list[int]:
    """Asked on one connection, one after the other."""
    with socket.create_connection(address(service)) as line, line.makefile("rb") as answers:
        found = []
        for client in clients:
            line.sendall(request(client))
            found.append(int(answers.readline().split()[1]))
            headers = dict(iter(lambda: tuple(answers.readline().lower().rstrip().partition(b": ")[::2]), (b"", b"")))
            answers.read(int(headers.get(b"content-length", 0)))
        return found


def taken_by_force(deaf: socket.socket) -> int:
    """Bytes of polls that the service takes from a client that does not read one answer."""
    deaf.settimeout(2.0)
    polls, sent = request("deaf") * 1000, 0
    with contextlib.suppress(TimeoutError, ConnectionError):
        while sent < UNREAD_BYTES:
            sent += deaf.send(polls)
    return sent


def test_one_that_reads_nothing_is_not_listened_to_for_ever(service: Service) -> None:
    """Its connection fills up; that is all that happens."""
    with socket.create_connection(address(service)) as deaf:
        assert taken_by_force(deaf) < UNREAD_BYTES
        before_mb = megabytes(service)
        assert statuses(service, ["deaf"] * 20) == [200] * 20, "the others are answered meanwhile"
        assert megabytes(service) - before_mb < GROWTH_MB


def test_more_names_than_are_remembered_cost_no_more_memory_and_push_out_the_oldest(service: Service) -> None:
    names = [f"c{number:05}" for number in range(MANY)]
    statuses(service, names[:2000])
    before_mb = megabytes(service)
    found = statuses(service, names)
    assert set(found) <= {200, 503}
    seen = service.wait_for_backend("llm", lambda seen: seen["gateway_clients"] > CAP, "they are counted")
    assert seen["gateway_clients"] <= MAX_CLIENTS
    assert megabytes(service) - before_mb < GROWTH_MB
