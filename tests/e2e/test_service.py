"""`calibrator serve` from outside: a real service, real engines, HTTP only. One service is shared by all tests here.

Two backends are healthy, one has nobody listening and one is asked for a model that it does not have.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.quiet_machine import judge
from support.service_process import Service, run_calibrator, serving, simulated_engine, wait_for, write_config

OPERATOR, READER = "operator-token", "reader-token"
FALLBACK_CAPS = {"chat": 2, "code": 2, "dead": 7, "misnamed": 5}
SLOTS = 4  # of the simulated engine "small"


@dataclass(frozen=True, slots=True)
class Site:
    """The service under test and the file that its operator token is read from."""

    service: Service
    operator_token: Path

    def swept(self, backend: str, sweep_id: str | None = None) -> dict[str, Any]:
        """Wait until this sweep, or any, has ended and nothing is running; the backend's document."""
        return self.service.wait_for_backend(
            backend,
            lambda seen: (
                seen["progress"] is None
                and seen["last_sweep"] is not None
                and sweep_id in (None, seen["last_sweep"]["sweep_id"])
            ),
            "has been swept",
        )

    def calibrated(self, backend: str) -> dict[str, Any]:
        """A cap is stored before it is served, so it may come a moment after its sweep."""
        self.swept(backend)
        return self.service.wait_for_backend(backend, lambda seen: seen["state"] == "calibrated", "is calibrated")

    def post_sweep(self, backend: str, authorization: str) -> httpx.Response:
        return self.service.http.post(f"/v1/backends/{backend}/sweeps", headers={"Authorization": authorization})

    def start_sweep(self, backend: str) -> str:
        """Its id, once its probes are on their way."""
        self.swept(backend)
        answer = self.post_sweep(backend, f"Bearer {OPERATOR}")
        assert answer.status_code == 202, answer.text
        sweep_id: str = answer.json()["sweep_id"]
        self.service.wait_for_backend(
            backend, lambda seen: (seen["progress"] or {}).get("in_flight", 0) > 0, "is being swept"
        )
        return sweep_id

    def metrics(self) -> dict[tuple[str, ...], float]:
        """A scrape, parsed: {(name, label values...): value}."""
        families = text_string_to_metric_families(self.service.http.get("/metrics").text)
        samples = (sample for family in families for sample in family.samples)
        return {
            (
                sample.name.removeprefix("calibrator_"),
                *(sample.labels[key] for key in sorted(sample.labels)),
            ): sample.value
            for sample in samples
        }


def backend(url: str, name: str, **changes: object) -> dict[str, object]:
    """Small bounds and a P90, so that a sweep takes some 5 s."""
    return {
        "url": url,
        "model": "simulated",
        "objectives": ["ttft p90 <= 80ms"],
        "fallback_cap": FALLBACK_CAPS[name],
        "every": "1h",
        "bounds": {"max": 16},
        "budget": {"requests": 500, "requests_per_level": 0},
        "workload": {"classes": [{"prompt_tokens": 64, "output_tokens": 10, "spread_ratio": 0.3}]},
        **changes,
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("service")
    operator, reader = folder / "operator", folder / "reader"
    operator.write_text(OPERATOR + "\n")
    reader.write_text(READER + "\n")
    with (
        socket.socket() as nobody,
        simulated_engine() as first,
        simulated_engine() as second,
        simulated_engine() as third,
    ):
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused, and nobody else gets the port
        config = write_config(
            folder,
            {
                "auth": {"operator_tokens": [{"file": str(operator)}], "read_tokens": [{"file": str(reader)}]},
                "sweeps": {"max_parallel": 2},
                "backends": {
                    "dead": backend(f"http://127.0.0.1:{nobody.getsockname()[1]}/v1", "dead"),
                    "chat": backend(first.api_url, "chat"),
                    "misnamed": backend(third.api_url, "misnamed", model="another", engine_group="chat"),
                    "code": backend(second.api_url, "code"),
                },
            },
        )
        with serving(config, token=READER) as service:
            yield Site(service, operator)
            assert service.process.poll() is None, "the service lived through all of it"
            log = service.log.read_text()
        assert OPERATOR not in log
        assert READER not in log
        assert "Traceback" not in log
        assert first.is_idle
        assert second.is_idle


# ------------------------------------------------------------------------------------------------- what is measured
@pytest.mark.parametrize("name", ["chat", "code"])
def test_a_live_backend_gets_a_measured_cap(site: Site, name: str) -> None:
    def attempt() -> dict[str, Any]:
        seen = site.calibrated(name)
        if not SLOTS - 1 <= seen["capacity"]["estimate"] <= SLOTS + 2:
            site.start_sweep(name)
            raise AssertionError(f"queueing starts above the slots: {seen}")
        return seen

    seen = judge(attempt)
    assert (seen["health"], seen["state"]) == ("ok", "calibrated"), seen
    capacity = seen["capacity"]
    assert capacity["low"] <= capacity["estimate"] <= capacity["high"] <= 16
    assert seen["cap"] == max(1, int(0.9 * capacity["estimate"]))
    assert seen["engine"] == "vllm"
    assert seen["up"] is True


@pytest.mark.parametrize(
    ("name", "cause", "remedy"),
    [("dead", "Nothing answers", "Check the URL"), ("misnamed", "no model 'another'", "It serves: simulated")],
)
def test_a_broken_backend_says_why_and_keeps_its_fallback(site: Site, name: str, cause: str, remedy: str) -> None:
    seen = site.swept(name)
    assert seen["health"] == "error"
    assert cause in seen["health_reason"]
    assert remedy in seen["health_reason"]
    cap = site.service.document(f"/v1/backends/{name}/cap")
    assert (cap["cap"], cap["state"], cap["grade"]) == (FALLBACK_CAPS[name], "fallback", None)
    metrics = site.metrics()
    assert metrics["backend_health", name, "error"] == 1
    assert metrics["backend_health", name, "ok"] == 0
    assert metrics["recommended_concurrency", name] == FALLBACK_CAPS[name]
    assert metrics["sweeps_total", name, "error"] >= 1
    [newest, *_] = site.service.document(f"/v1/backends/{name}/sweeps")["sweeps"]
    assert newest["outcome"] == "error"
    assert cause in newest["reason"]
    assert remedy in newest["remedy"]


def test_sweeps_are_listed_and_each_explains_its_number(site: Site) -> None:
    seen = site.calibrated("chat")
    [*_, first] = site.service.document("/v1/backends/chat/sweeps")["sweeps"]
    assert first["outcome"] == "calibrated"
    detail = site.service.document(f"/v1/backends/chat/sweeps/{seen['last_sweep']['sweep_id']}")
    assert set(detail) >= {"capacity", "cap", "grade", "requests", "duration_s", "levels"}
    assert set(detail["capacity"]) == {"estimate", "low", "high"}
    assert detail["provenance"]["objectives"] == ["ttft p90 <= 80ms"]
    levels = {level["concurrency"]: level for level in detail["levels"]}
    assert max(levels) <= 16
    for level in levels.values():
        assert set(level) >= {
            "concurrency", "achieved_concurrency", "n", "exceedances", "verdict", "reasons", "ttft_s", "itl_s",
            "tpot_s", "e2e_s", "requests_per_second", "output_tokens_per_second", "goodput_per_second", "errors",
        }  # fmt: skip
        assert set(level["ttft_s"]) >= {"p50", "p90", "p99"}
        assert level["verdict"] in {"within", "exceeded", "inconclusive"}
        assert level["errors"] == {}
    assert site.service.http.get("/v1/backends/chat/sweeps/none").status_code == 404
    address = site.service.http.base_url.join(f"/v1/backends/chat/sweeps/{detail['sweep_id']}")
    exported = run_calibrator("export", str(address), "--token-env", "READER", environ={"READER": READER})
    assert exported.returncode == 0, exported.stderr
    rows = [json.loads(line) for line in exported.stdout.splitlines()]
    assert len(rows) >= sum(level["n"] for level in levels.values())
    assert {row["calibrator"]["level"] for row in rows} >= set(levels)
    assert all(row["metrics"]["time_to_first_token"]["value"] > 0.0 for row in rows if row["error"] is None)
    assert site.service.http.get(f"/v1/backends/code/sweeps/{first['sweep_id']}").status_code == 404


# ----------------------------------------------------------------------------------------------- what gateways poll
def test_the_cap_is_cacheable_and_an_unchanged_one_is_304(site: Site) -> None:
    published = site.calibrated("code")
    answer = site.service.http.get("/v1/backends/code/cap")
    assert answer.json() == {**answer.json(), "backend": "code", "cap": published["cap"], "state": "calibrated"}
    assert answer.headers["Cache-Control"].startswith("max-age=")
    again = site.service.http.get("/v1/backends/code/cap", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["ETag"] == answer.headers["ETag"]
    other = site.service.http.get("/v1/backends/code/cap", headers={"If-None-Match": '"0-0-fallback"'})
    assert (other.status_code, other.content) == (200, answer.content)
    unknown = site.service.http.get("/v1/backends/none/cap")
    assert unknown.status_code == 404
    assert set(unknown.json()["backends"]) == set(FALLBACK_CAPS)


def test_polls_and_scrapes_are_answered_while_a_sweep_runs(site: Site) -> None:
    """By count, not by the clock: two hundred polls fit into a part of one short sweep."""
    sweep_id = site.start_sweep("chat")
    before = site.metrics()
    assert before["sweep_active", "chat"] == 1
    assert before["in_flight_requests", "chat", "probe"] > 0
    answers = [site.service.http.get("/v1/backends/chat/cap") for _ in range(200)]
    after = site.metrics()
    assert {answer.status_code for answer in answers} == {200}
    served = {(answer.headers["ETag"], answer.json()["version"], answer.json()["share"]) for answer in answers}
    assert len({tag for tag, _, _ in served}) == len(served), "one tag for each state that was served"
    polls = ("gateway_polls_total", "chat")  # what is shown is made anew with each tick, not with each poll
    wait_for(lambda: site.metrics()[polls] == before[polls] + 200, "every poll is counted")
    assert after["sweep_active", "chat"] == 1
    progress = site.service.backend("chat")["progress"]
    assert progress["sweep_id"] == sweep_id, "still the same sweep"
    running = site.service.document(f"/v1/backends/chat/sweeps/{sweep_id}")
    assert running["outcome"] is None
    site.swept("chat", sweep_id)
    assert site.metrics()["sweep_active", "chat"] == 0
    assert site.service.document(f"/v1/backends/chat/sweeps/{sweep_id}")["outcome"] is not None


def test_orchestrators_and_machines_find_their_way(site: Site) -> None:
    anonymous = {"Authorization": ""}
    for path in ("/livez", "/readyz", "/metrics", "/openapi.json"):
        assert site.service.http.get(path, headers=anonymous).status_code == 200, path
    described = site.service.document("/openapi.json")["paths"]
    assert described["/v1/backends/{name}/cap"].keys() >= {"get"}
    assert described["/v1/backends/{name}/sweeps"].keys() >= {"get", "post"}
    listed = site.service.document("/v1/backends")["backends"]
    assert {one["name"] for one in listed} == set(FALLBACK_CAPS)


# ------------------------------------------------------------------------------------------------------ who may what
def test_reading_and_writing_need_their_tokens(site: Site) -> None:
    assert site.service.http.get("/v1/backends", headers={"Authorization": ""}).status_code == 401
    assert site.post_sweep("dead", "").status_code == 401
    assert site.post_sweep("dead", "Bearer wrong").status_code == 401
    assert site.post_sweep("dead", f"Bearer {READER}").status_code == 403
    assert site.post_sweep("none", f"Bearer {OPERATOR}").status_code == 404


def test_an_operator_starts_one_sweep_at_a_time(site: Site) -> None:
    site.swept("code")
    started = site.post_sweep("code", f"Bearer {OPERATOR}")
    assert started.status_code == 202
    sweep_id = started.json()["sweep_id"]
    refused = site.post_sweep("code", f"Bearer {OPERATOR}")
    assert refused.status_code == 409
    assert sweep_id in refused.json()["detail"]
    location = started.headers["Location"]
    wait_for(lambda: site.service.http.get(location).status_code != 404, "the sweep's document exists")
    site.swept("code", sweep_id)
    assert site.service.document(location)["outcome"] is not None


def test_a_rotated_token_file_is_followed_without_a_restart(site: Site) -> None:
    site.swept("dead")
    site.operator_token.write_text("the-next-one\n")
    try:
        wait_for(lambda: site.post_sweep("dead", f"Bearer {OPERATOR}").status_code == 401, "the old one is refused")
        assert site.post_sweep("dead", "Bearer the-next-one").status_code in {202, 409}
    finally:
        site.operator_token.write_text(OPERATOR + "\n")
    wait_for(lambda: site.post_sweep("dead", "Bearer the-next-one").status_code == 401, "the next one is refused")
