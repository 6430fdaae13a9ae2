"""Stopping, killing and restarting `calibrator serve`: the last cap is served at once, and no load is left behind.

One store is calibrated once; every test starts the service on it anew and leaves the cap as it was.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.quiet_machine import real_time
from support.service_process import (
    STOP_LIMIT_S,
    Engine,
    Service,
    living,
    run_calibrator,
    serving,
    simulated_engine,
    wait_for,
    write_config,
)

TOKEN = "operator-token"
DISCONNECT_LIMIT_S = 1.0  # contract: the probes of a level are gone within a second


@dataclass(frozen=True, slots=True)
class Site:
    """A configuration whose store already holds a cap, and what that cap's answer is."""

    config: Path
    engine: Engine
    etag: str
    body: bytes

    def assert_cap_unchanged(self, service: Service) -> None:
        answer = service.http.get("/v1/backends/chat/cap")
        assert (answer.headers["ETag"], answer.content) == (self.etag, self.body)

    def sweep_now(self, service: Service) -> str:
        """The id of a sweep that has requests in flight."""
        sweep_id: str = service.http.post("/v1/backends/chat/sweeps").json()["sweep_id"]
        wait_for(lambda: self.engine.stats()["in_flight"] >= 2, "the sweep's probes are in flight")
        return sweep_id


def configuration(engine: Engine, folder: Path) -> dict[str, Any]:
    (folder / "token").write_text(TOKEN)
    chat = {
        "url": engine.api_url,
        "model": "simulated",
        "objectives": ["ttft p90 <= 2s"],  # a busy machine, too, finds the highest level
        "fallback_cap": 2,
        "every": "1h",
        "bounds": {"max": 8},
        "budget": {"requests": 500, "requests_per_level": 0},
        "workload": {"classes": [{"prompt_tokens": 64, "output_tokens": 10, "spread_ratio": 0.3}]},
    }
    auth = {"operator_tokens": [{"file": str(folder / "token")}]}
    return {"auth": auth, "load": {"selftest": False}, "backends": {"chat": chat}}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("restarts")
    with simulated_engine() as engine:
        config = write_config(folder, configuration(engine, folder))
        with serving(config, token=TOKEN) as service:
            service.wait_for_backend("chat", lambda seen: seen["state"] == "calibrated", "is calibrated")
            cap = service.http.get("/v1/backends/chat/cap")
            code, _ = service.terminate()
        assert code == 0
        yield Site(config, engine, cap.headers["ETag"], cap.content)


def newest_sweep(service: Service) -> dict[str, Any]:
    newest: dict[str, Any] = service.document("/v1/backends/chat/sweeps")["sweeps"][0]
    return newest


# ----------------------------------------------------------------------------------------------------------- restarts
def test_a_restart_serves_the_last_cap_and_does_not_sweep_before_it_is_due(site: Site) -> None:
    sent_before = site.engine.stats()["requests_total"]
    with serving(site.config, token=TOKEN) as service:
        site.assert_cap_unchanged(service)
        # A round of the supervisor starts what is due before it looks at the engines.
        seen = service.wait_for_backend("chat", lambda seen: seen["up"] is True, "the service has looked around")
        assert (seen["health"], seen["progress"]) == ("ok", None)
        assert seen["last_sweep"]["outcome"] == "calibrated"
        assert seen["next_sweep_at"] > seen["last_sweep"]["ended_at"]
        assert site.engine.stats()["requests_total"] == sent_before
        assert not [line for line in service.log_lines() if line["event"] == "sweep started"]


@real_time
def test_sigterm_in_mid_sweep_ends_everything_quickly_and_cleanly(site: Site) -> None:
    with serving(site.config, token=TOKEN) as service:
        sweep_id = site.sweep_now(service)
        code, took_s = service.terminate()
        assert code == 0
        assert took_s <= STOP_LIMIT_S
        wait_for(lambda: site.engine.is_idle, "the engine is idle", DISCONNECT_LIMIT_S)
        assert service.log_lines()[-1]["event"] == "stopped"
    with serving(site.config, token=TOKEN) as service:
        site.assert_cap_unchanged(service)
        assert (newest_sweep(service)["sweep_id"], newest_sweep(service)["outcome"]) == (sweep_id, "interrupted")


@real_time
def test_a_killed_service_leaves_no_load_behind_and_resumes_its_cap(site: Site) -> None:
    with serving(site.config, token=TOKEN) as service:
        sweep_id = site.sweep_now(service)
        orphans = service.kill()
        assert orphans, "a sweep has a process of its own"
        wait_for(lambda: site.engine.is_idle, "the engine is idle", STOP_LIMIT_S)
        wait_for(lambda: not living(orphans), "the sweep's process has ended", STOP_LIMIT_S)
    with serving(site.config, token=TOKEN) as service:
        site.assert_cap_unchanged(service)
        newest = newest_sweep(service)
        assert (newest["sweep_id"], newest["outcome"]) == (sweep_id, "interrupted")
        assert newest["ended_at"] is not None
        assert service.document(f"/v1/backends/chat/sweeps/{sweep_id}")["outcome"] == "interrupted"


# ------------------------------------------------------------------------------------------------- refused at the start
def assert_refused(config: Path, *words: str) -> None:
    done = run_calibrator("serve", "--config", config)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_a_second_instance_on_the_same_store_is_refused(site: Site) -> None:
    with serving(site.config, token=TOKEN) as service:
        owner = str(service.process.pid)
        assert_refused(site.config, "in use by another calibrator", owner, "store.path")
        site.assert_cap_unchanged(service)


def test_a_port_in_use_is_refused(site: Site, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = write_config(tmp_path, {**configuration(site.engine, tmp_path), "listen": {"port": port}})
        assert_refused(config, f"127.0.0.1:{port}", "listen.port")
    assert not (tmp_path / "calibrator.db").exists(), "nothing was written before the refusal"


def test_a_configuration_error_is_refused_with_every_problem(site: Site, tmp_path: Path) -> None:
    tree = configuration(site.engine, tmp_path)
    tree["backends"]["chat"] |= {"fallback_cap": 0, "modell": "x"}
    assert_refused(write_config(tmp_path, tree), "2 problems", "fallback_cap", "modell", "Did you mean 'model'?")


def test_a_missing_secret_is_refused_at_the_start(site: Site, tmp_path: Path) -> None:
    tree = configuration(site.engine, tmp_path) | {"auth": {"operator_tokens": [{"file": str(tmp_path / "none")}]}}
    assert_refused(write_config(tmp_path, tree), "auth.operator_tokens[0]", "cannot be read")


# ------------------------------------------------------------------------------------------------------ without tokens
def test_without_an_operator_token_there_is_no_write_route(site: Site, tmp_path: Path) -> None:
    tree = configuration(site.engine, tmp_path) | {"auth": {}}
    with serving(write_config(tmp_path, tree)) as service:
        assert service.http.post("/v1/backends/chat/sweeps").status_code in {404, 405}
        assert "post" not in service.document("/openapi.json")["paths"]["/v1/backends/{name}/sweeps"]
        assert service.document("/v1/backends/chat/cap")["cap"] == 2, "the fallback, before anything is measured"
    wait_for(lambda: site.engine.is_idle, "the engine is idle")
