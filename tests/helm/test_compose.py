"""`deploy/compose` without a container engine: its schema, every file and address that it refers to, and each
program's own judgement of its configuration."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from generate_chart import DEPLOY, REPOSITORY
from support.helm_chart import tool
from support.prometheus_process import accepted

from calibrator.backends.simulated.parameters import WORKLOADS
from calibrator.settings import Settings, load_settings

HERE = DEPLOY / "compose"
COMPOSE: dict[str, Any] = yaml.safe_load((HERE / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def settings() -> Settings:
    return load_settings(HERE / "calibrator.yaml", {})


def mounts(service: str) -> dict[str, Path]:
    """File by its place in the container; volumes are left out."""
    written = [text.split(":") for text in SERVICES[service].get("volumes", ())]
    return {parts[1]: (HERE / parts[0]).resolve() for parts in written if parts[0].startswith(".")}


def listening() -> dict[str, int]:
    """Port of each service, where its own configuration says it."""
    engine = SERVICES["engine"]["command"]
    return {
        "engine": int(engine[engine.index("--port") + 1]),
        "calibrator": settings().listen.port,
        "envoy": 18000,
        "prometheus": 9090,
        "grafana": 3000,
    }


def test_the_file_is_a_compose_file() -> None:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(HERE / "docker-compose.yml")]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert set(SERVICES) == {"engine", "calibrator", "envoy", "users", "prometheus", "grafana"}


def test_every_file_is_there_and_every_file_is_used() -> None:
    used = {path for service in SERVICES for path in mounts(service).values()}
    assert [path for path in used if not path.is_file()] == []
    ours = {path for path in HERE.rglob("*") if path.is_file() and path.name != "docker-compose.yml"}
    assert {path for path in ours if "__pycache__" not in path.parts} <= used
    build = SERVICES["engine"]["build"]
    context = (HERE / build["context"]).resolve()
    assert context == REPOSITORY
    assert (context / build["dockerfile"]).is_file()


def test_nothing_listens_beyond_this_machine_and_images_have_versions() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(ports) == 5
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert all(re.search(r":v?\d+\.\d+\.\d+$", service["image"]) for service in SERVICES.values())


def test_addresses_lead_to_services_and_their_ports() -> None:
    known = listening()
    addresses = [urlsplit(backend.url).netloc for backend in settings().backends.values()]
    prometheus = yaml.safe_load((HERE / "prometheus.yml").read_text())
    addresses += [target for job in prometheus["scrape_configs"] for target in job["static_configs"][0]["targets"]]
    addresses += [urlsplit(SERVICES["users"]["command"][0]).netloc]
    (source,) = yaml.safe_load((HERE / "grafana" / "datasources.yaml").read_text())["datasources"]
    addresses += [urlsplit(source["url"]).netloc]
    envoy = yaml.safe_load((HERE / "envoy.yaml").read_text())
    for cluster in envoy["static_resources"]["clusters"]:
        place = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
        addresses.append(f"{place['address']}:{place['port_value']}")
    admin = envoy["admin"]["address"]["socket_address"]["port_value"]
    reachable = {f"{name}:{port}" for name, port in known.items()} | {f"envoy:{admin}"}
    assert set(addresses) <= reachable
    published = {port.rpartition(":")[2] for service in SERVICES.values() for port in service.get("ports", ())}
    assert published == {str(port) for name, port in known.items() if name != "engine"} | {str(admin)}


def test_calibrator_accepts_its_configuration() -> None:
    found = settings()
    assert mounts("calibrator").keys() == {"/etc/calibrator/calibrator.yaml"}
    assert f"state:{found.store.path.parent}" in SERVICES["calibrator"]["volumes"]
    assert set(found.backends) == {"llm"}
    engine = SERVICES["engine"]["command"]
    assert found.backends["llm"].workload.value() == WORKLOADS[engine[engine.index("--parameters") + 1]]


def test_the_engine_starts_as_it_is_told() -> None:
    replaced = {"/app/bin/python": sys.executable, "0.0.0.0": "127.0.0.1", "8000": "0"}
    command = [replaced.get(part, part) for part in (*SERVICES["engine"]["entrypoint"], *SERVICES["engine"]["command"])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as engine:
        try:
            assert engine.stdout is not None
            assert engine.stdout.readline().startswith("READY http://127.0.0.1:")
        finally:
            engine.terminate()
            engine.wait(30)


def test_prometheus_accepts_its_configuration(tmp_path: Path) -> None:
    """Beside the rules, as in the container."""
    for place, source in mounts("prometheus").items():
        (tmp_path / Path(place).name).write_text(source.read_text())
    accepted("check", "config", tmp_path / "prometheus.yml")


def test_envoy_accepts_its_configuration_and_knows_the_backend() -> None:
    path = mounts("envoy")["/etc/envoy/envoy.yaml"]
    _, *options = [str(path) if part.endswith(".yaml") else part for part in SERVICES["envoy"]["command"]]
    command = [tool("envoy"), "--mode", "validate", *options]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stderr
    config = yaml.safe_load(path.read_text())
    backend = settings().backends["llm"]
    assert config["node"]["metadata"]["calibrator_clusters"] == ["llm"]
    (cluster,) = [one for one in config["static_resources"]["clusters"] if one["name"] == "llm"]
    assert cluster["circuit_breakers"]["thresholds"][0]["max_requests"] == backend.fallback_cap


def test_grafana_finds_its_dashboard() -> None:
    (provider,) = yaml.safe_load((HERE / "grafana" / "dashboards.yaml").read_text())["providers"]
    dashboards = [place for place in mounts("grafana") if place.startswith(provider["options"]["path"] + "/")]
    assert [mounts("grafana")[place].name for place in dashboards] == ["dashboard.json"]


class _AtTheCap(BaseHTTPRequestHandler):
    """Answers the first user, refuses the second."""

    asked: list[bytes]

    def do_POST(self) -> None:
        self.asked.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200 if len(self.asked) == 1 else 429)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def test_users_ask_and_take_no_for_an_answer() -> None:
    script: dict[str, Any] = {"__name__": "users"}
    exec(compile((HERE / "users.py").read_text(), "users.py", "exec"), script)  # noqa: S102 - it is no module
    asked: list[bytes] = []
    with HTTPServer(("127.0.0.1", 0), type("Handler", (_AtTheCap,), {"asked": asked})) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        url = f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
        try:
            statuses = [script["ask"](url), script["ask"](url)]
        finally:
            server.shutdown()
            serving.join()
    assert statuses == [200, 429]
    assert b'"model": "simulated"' in asked[0]
    assert script["ask"](url) == 0
