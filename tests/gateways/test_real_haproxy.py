"""The real HAProxy with the shipped configurations, against the real service: each server's cap holds."""

from __future__ import annotations

import csv
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.gateway_site import (
    AGENT,
    DEPLOYED,
    INGRESS,
    SERVERS,
    TOKEN,
    TOKENS,
    bench,
    calibrator_config,
    in_own_network,
    pin,
    program,
    remember,
    wait_until,
)
from support.quiet_machine import real_time
from support.require import require
from support.service_process import serving

HAPROXY = shutil.which("haproxy") or "/usr/sbin/haproxy"
QUEUEING = DEPLOYED / "haproxy" / "queueing.cfg"
FAILFAST = DEPLOYED / "haproxy" / "failfast.cfg"
STATIC_CAP = 4  # in the shipped files, each server's
AGENT_INTER_S = 2.0
ROOM_S = 60.0  # of a busy machine
LATENCY_S = 0.3
NAMES = ("s1", "s2", "s3")


@dataclass(frozen=True, slots=True)
class Haproxy:
    """One HAProxy that answers."""

    admin_socket: Path

    def servers(self) -> dict[str, dict[str, str]]:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self.admin_socket))
            admin.sendall(b"show stat\n")
            text = b"".join(iter(lambda: admin.recv(65536), b"")).decode()
        rows = csv.DictReader(text.removeprefix("# ").splitlines())
        return {row["svname"]: row for row in rows if row["pxname"] == "llm" and row["svname"] in NAMES}

    def caps(self) -> tuple[int, ...]:
        return tuple(int(row["slim"]) for row in self.servers().values())

    def wait_for_caps(self, *caps: int, limit_s: float = AGENT_INTER_S + ROOM_S) -> None:
        wait_until(lambda: self.caps() == caps, f"HAProxy's caps become {caps}", limit_s)


@contextmanager
def haproxy(
    folder: Path, config: Path, name: str = "hap-1", queue_wait_s: float = 0.5, ingress: int = INGRESS
) -> Iterator[Haproxy]:
    require("haproxy", found=Path(HAPROXY).exists(), remedy="make programs")
    if ingress != INGRESS:
        text = config.read_text()
        config = folder / f"{name}.cfg"
        config.write_text(text.replace(f":{INGRESS}", f":{ingress}"))
    environ = {
        "GW_ID": name,
        "HAPROXY_SOCKET": str(folder / f"{name}.sock"),
        "MAX_QUEUE_WAIT": f"{int(1000 * queue_wait_s)}ms",
    }
    started = Haproxy(folder / f"{name}.sock")

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return len(started.servers()) == len(NAMES)
        except OSError:
            return False

    log = folder / f"{name}.log"
    with program([HAPROXY, "-db", "-f", str(config)], environ, log) as process:
        wait_until(answers, "HAProxy answers", 20.0)
        yield started


@real_time
def test_queueing_holds_each_server_at_its_cap_and_the_queue_at_what_the_sla_leaves(tmp_path: Path) -> None:
    def scenario() -> None:
        config = calibrator_config(tmp_path, haproxy={"port": AGENT})
        remember(tmp_path, cap=10, max_queue_wait_s=0.5)
        with bench(*SERVERS, latency_s=LATENCY_S) as site, serving(config, token=TOKEN, environ=TOKENS) as service:
            wait_s = service.document("/v1/backends/llm/cap")["max_queue_wait_s"]
            assert wait_s == 0.5
            with haproxy(tmp_path, QUEUEING, queue_wait_s=wait_s) as gateway, site.load(36):
                gateway.wait_for_caps(10, 10, 10)
                begun_s = site.note("each server's cap is 10")
                site.settle()
                site.hold(2.0, 30)
                assert all(site.peak(begun_s, ports=(port,)) == 10 for port in SERVERS)
                seen = [answer.status for answer in site.answers if answer.at_s > begun_s + LATENCY_S]
                assert seen.count(200) > 0.98 * len(seen), "who is over the cap waits"

                pin(service, 3)
                site.note("cap pinned to 3")
                gateway.wait_for_caps(3, 3, 3)
                lowered_s = site.note("in HAProxy")
                site.settle()
                site.hold(2.0, 9)
                tired = [answer for answer in site.answers if answer.at_s > lowered_s and answer.status == 503]
                assert tired, "36 users and 9 places: some wait longer than the SLA leaves"
                assert min(answer.took_s for answer in tired) >= wait_s - 0.05

                service.kill()
                killed_s = site.note("calibrator killed")
                site.hold(1.5 * AGENT_INTER_S, 9)
                assert gateway.caps() == (3, 3, 3)
                assert {row["status"] for row in gateway.servers().values()} == {"no check"}
                assert any(answer.status == 200 for answer in site.answers if answer.at_s > killed_s + LATENCY_S)

            with haproxy(tmp_path, QUEUEING, queue_wait_s=wait_s) as gateway, site.load(36):
                site.note("HAProxy restarted, no calibrator")
                site.pass_time(AGENT_INTER_S)  # a check has failed
                site.hold(1.0, 3 * STATIC_CAP)
                assert gateway.caps() == (STATIC_CAP,) * 3
                with serving(config, token=TOKEN, environ=TOKENS) as again:
                    pin(again, 7)
                    site.note("calibrator is back, cap pinned to 7")
                    gateway.wait_for_caps(7, 7, 7)
                    site.note("in HAProxy")
                    site.settle()
                    site.hold(2.0, 21)

    in_own_network(scenario)


@real_time
def test_failing_fast_answers_429_beyond_the_cap(tmp_path: Path) -> None:
    def scenario() -> None:
        config = calibrator_config(tmp_path, haproxy={"port": AGENT})
        with bench(*SERVERS, latency_s=LATENCY_S) as site, serving(config, token=TOKEN, environ=TOKENS) as service:
            pin(service, 6)
            with haproxy(tmp_path, FAILFAST) as gateway, site.load(30):
                gateway.wait_for_caps(6, 6, 6)
                begun_s = site.note("each server's cap is 6")
                site.settle()
                site.hold(2.0, 18)
                refused = [answer for answer in site.answers if answer.at_s > begun_s and answer.status != 200]
                full = [answer for answer in refused if answer.status == 429]
                assert {answer.status for answer in refused} <= {429, 503}
                assert len(full) > 0.9 * len(refused), "few race past the rule"
                assert {answer.headers["retry-after"] for answer in full} == {"1"}

                pin(service, 2)
                site.note("cap pinned to 2")
                gateway.wait_for_caps(2, 2, 2)
                site.note("in HAProxy")
                site.settle()
                site.hold(2.0, 6)

    in_own_network(scenario)


@real_time
def test_an_unknown_backend_changes_nothing(tmp_path: Path) -> None:
    """The agent closes without a line: HAProxy keeps the last cap, and the server stays in use."""

    def scenario() -> None:
        config = calibrator_config(tmp_path, haproxy={"port": AGENT})
        wrong = tmp_path / "wrong.cfg"
        wrong.write_text(QUEUEING.read_text().replace("llm/s2 ", "lmm/s2 "))
        with bench(*SERVERS, latency_s=LATENCY_S) as site, serving(config, token=TOKEN, environ=TOKENS) as service:
            pin(service, 9)
            with haproxy(tmp_path, wrong) as gateway:
                gateway.wait_for_caps(9, STATIC_CAP, 9)
                wait_until(lambda: "lmm/s2" in service.log.read_text(), "the log tells", 10.0)
                site.pass_time(AGENT_INTER_S)
                assert gateway.caps() == (9, STATIC_CAP, 9)
                assert [answer.status for answer in site.burst(22)].count(200) == 22
                assert site.peak(0.0, ports=(SERVERS[1],)) == STATIC_CAP

    in_own_network(scenario)


@real_time
def test_two_haproxies_share_each_servers_cap(tmp_path: Path) -> None:
    def scenario() -> None:
        config = calibrator_config(tmp_path, haproxy={"port": AGENT})
        with bench(*SERVERS, latency_s=LATENCY_S) as site, serving(config, token=TOKEN, environ=TOKENS) as service:
            pin(service, 13)
            with haproxy(tmp_path, QUEUEING) as first, site.load(45):
                first.wait_for_caps(13, 13, 13)
                site.settle()
                site.hold(1.0, 39)
                joined_s = site.note("hap-2 starts")
                with haproxy(tmp_path, QUEUEING, "hap-2", ingress=INGRESS + 1) as second, site.load(45, INGRESS + 1):
                    second.wait_for_caps(6, 6, 6, limit_s=90.0)
                    site.note("both have their shares")
                    assert first.caps() == (7, 7, 7)
                    assert site.peak(joined_s) <= 3 * (13 + STATIC_CAP), "a joiner holds no more than its static cap"
                    site.settle()
                    shared_s = site.now_s()
                    site.hold(5.0, 39)
                    assert all(site.peak(shared_s, ports=(port,)) == 13 for port in SERVERS)

    in_own_network(scenario)
