"""Two real calibrators on one real PostgreSQL, a real Envoy at each: together they have the cap at the backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.envoy_process import ADMIN, envoy
from support.gateway_site import (
    BACKEND,
    CALIBRATOR,
    DEPLOYED,
    INGRESS,
    TOKEN,
    TOKENS,
    bench,
    calibrator_config,
    in_own_network,
    pin,
    wait_until,
)
from support.postgres_process import PostgresProcess, postgres
from support.quiet_machine import real_time
from support.service_process import Service, serving

CONFIG = DEPLOYED / "envoy" / "envoy.yaml"
STATIC_CAP = 8  # in the shipped file
LATENCY_S = 0.3
SHARES_S = 120.0  # polls of up to 4 s, exchanges of 1 s, on a busy machine
LEASE_S = 6


@contextmanager
def calibrator(folder: Path, name: str, port: int, server: PostgresProcess, database: str) -> Iterator[Service]:
    (folder / name).mkdir(exist_ok=True)
    store = {"postgresql": {"env": "DATABASE"}, "lease": f"{LEASE_S}s"}
    config = calibrator_config(folder / name, port=port, store=store)
    with serving(config, token=TOKEN, environ={**TOKENS, "DATABASE": server.url(database)}) as service:
        yield service


def holds_lease(service: Service) -> bool:
    return 'calibrator_lease_held{backend="llm"} 1' in service.http.get("/metrics").text


@real_time
def test_the_cap_holds_over_both_through_a_change_and_the_leaders_death(tmp_path: Path) -> None:
    def scenario() -> None:
        with (
            bench(BACKEND, latency_s=LATENCY_S) as site,
            postgres() as server,
            calibrator(tmp_path, "a", CALIBRATOR, server, database := server.new_database()) as a,
            calibrator(tmp_path, "b", CALIBRATOR + 100, server, database) as b,
        ):
            assert (holds_lease(a), holds_lease(b)) == (True, False)
            pin(a, 31)
            with (
                envoy(tmp_path, "gw-1", CONFIG) as first,
                envoy(
                    tmp_path, "gw-2", CONFIG, admin=ADMIN + 1, ingress=INGRESS + 1, calibrator=CALIBRATOR + 100
                ) as second,
                site.load(40),
                site.load(40, second.ingress),
            ):
                wait_until(lambda: (first.cap(), second.cap()) == (16, 15), "both have their shares", SHARES_S)
                site.note("16 in gw-1, which asks a, and 15 in gw-2, which asks b")
                site.settle()
                site.hold(2.0, 31)

                pin(b, 20)
                site.note("pinned to 20 at b, which does not lead")
                wait_until(lambda: (first.cap(), second.cap()) == (10, 10), "both have heard", SHARES_S)
                site.note("both have heard")
                site.settle()
                killed_s = site.now_s()
                site.hold(1.0, 20)

                a.kill()
                site.note("a killed")
                wait_until(lambda: holds_lease(b), "b leads", LEASE_S + SHARES_S)
                site.note("b leads")
                with calibrator(tmp_path, "a", CALIBRATOR, server, database) as again:
                    site.note("a is back")
                    wait_until(lambda: again.backend("llm")["gateway_clients"] == 2, "a sees both", SHARES_S)
                    site.hold(2.0, 20)
                    assert (first.cap(), second.cap()) == (10, 10)
                    assert site.peak(killed_s) == 20, "nothing was given twice"
                    assert holds_lease(b)

    in_own_network(scenario)
