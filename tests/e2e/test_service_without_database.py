"""A service without its database, or on a full disk, serves the caps it knew, says so, and catches up afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.postgres_process import PostgresProcess, postgres
from support.postgres_stores import store_at
from support.records import recommendation
from support.service_process import Service, serving, wait_for, write_config
from support.small_disk import fill, small_disk

BACKEND = {"url": "http://127.0.0.1:9/v1", "model": "m", "objectives": ["ttft p99 <= 500ms"], "mode": "observe"}
CAP = 23
TOKEN = "an-operator-s-own-token"
OPERATOR = {"Authorization": f"Bearer {TOKEN}"}


@dataclass(frozen=True)
class Site:
    service: Service
    server: PostgresProcess
    database: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The service found a published cap in its database."""
    with postgres() as server:
        database = server.new_database()
        asyncio.run(publish(server.url(database)))
        environ = {"DATABASE": server.url(database), "OPERATOR": TOKEN}
        config = write_config(
            tmp_path_factory.mktemp("service"),
            {
                "store": {"postgresql": {"env": "DATABASE"}, "lease": "6s"},
                "auth": {"operator_tokens": [{"env": "OPERATOR"}]},
                "backends": {"chat": {**BACKEND, "fallback_cap": 2}},
            },
        )
        with serving(config, environ=environ) as service:
            yield Site(service, server, database)
            assert "Traceback" not in service.log.read_text()


async def publish(url: str) -> None:
    store = store_at(url)
    await store.open()
    lease = await store.leases.acquire("chat", "a test", 1.0)
    assert lease is not None
    await store.add_recommendation(recommendation(cap=CAP), lease)
    await store.leases.release(lease)
    await store.close()


def cap(site: Site) -> int:
    answer = site.service.http.get("/v1/backends/chat/cap", timeout=2.0)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["cap"])


def store_up(site: Site) -> bool:
    return "\ncalibrator_store_up 1" in site.service.http.get("/metrics").text


AWAY = {
    "stopped": (PostgresProcess.stop, PostgresProcess.start),
    "hung": (PostgresProcess.pause, PostgresProcess.resume),
}


@pytest.mark.parametrize("how", AWAY)
def test_the_last_known_cap_is_served_while_the_database_is_away(site: Site, how: str) -> None:
    wait_for(lambda: store_up(site) and cap(site) == CAP, "the stored cap is served")
    go_away, come_back = AWAY[how]
    go_away(site.server)
    try:
        wait_for(lambda: not store_up(site), "the service notices")
        started_s = time.monotonic()
        for _ in range(20):
            assert cap(site) == CAP
        assert time.monotonic() - started_s < 10.0, "a poll never waits for the database"
        assert site.service.http.get("/readyz").status_code == 200
        if how == "stopped":
            said = site.service.http.get("/v1/backends/chat/sweeps")
            assert (said.status_code, "database" in said.json()["detail"]) == (503, True)
            assert "postgresql://" not in said.text
    finally:
        come_back(site.server)
    wait_for(lambda: store_up(site), "the service is back")
    assert cap(site) == CAP


def test_a_pin_made_meanwhile_holds_at_once_and_is_stored_later(site: Site) -> None:
    wait_for(lambda: store_up(site), "the database works")
    site.server.stop()
    pin = {"cap": 5, "reason": "incident", "author": "a test", "expires_in_s": 3600}
    try:
        answer = site.service.http.put("/v1/backends/chat/override", json=pin, headers=OPERATOR)
        assert answer.status_code in (200, 202), answer.text
        assert cap(site) == 5
    finally:
        site.server.start()
    wait_for(lambda: site.server.execute("SELECT backend FROM overrides", site.database), "the pin is stored")


def test_a_full_disk_takes_nothing_from_what_is_served(tmp_path: Path) -> None:
    """Pins are made until the file would have to grow."""
    with small_disk(tmp_path, kib=900) as disk:
        config = write_config(
            tmp_path,
            {
                "store": {"path": str(disk / "store.db")},
                "auth": {"operator_tokens": [{"env": "OPERATOR"}]},
                "backends": {"chat": {**BACKEND, "fallback_cap": 7}},
            },
        )
        with serving(config, environ={"OPERATOR": TOKEN}) as service:
            ballast = fill(disk)
            pin = {"cap": 5, "reason": "x" * 190, "author": "a test", "expires_in_s": 3600}

            def refused() -> bool:
                answer = service.http.put("/v1/backends/chat/override", json=pin, headers=OPERATOR)
                assert answer.status_code == 200, answer.text
                return not answer.json()["stored"]

            wait_for(refused, "a pin cannot be stored")
            assert service.document("/v1/backends/chat/cap")["cap"] == 5
            assert "\ncalibrator_store_up 0" in service.http.get("/metrics").text
            ballast.unlink()
            wait_for(lambda: "\ncalibrator_store_up 1" in service.http.get("/metrics").text, "there is space again")
            log = service.log.read_text()
    assert "is on a full disk (database or disk is full). Free some space, or set store.path" in log
    assert "Traceback" not in log
