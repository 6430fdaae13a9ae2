"""What befalls two calibrators on one PostgreSQL in mid-sweep: never two that probe, no cap lost or made up.

`pytest tests/faults -s` prints the table of what was seen.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.fault_site import LEASE_S, TOKEN, FaultSite, Instance, fault_site, sweep_of
from support.quiet_machine import real_time
from support.service_process import STOP_LIMIT_S, wait_for

TWO_LEASES_S = 2 * LEASE_S  # contract: another one has taken over by then
VALID_S = LEASE_S * 2 / 3
NEWS_S = 2.0  # contract: what one instance stores the others know by then
SLOTS_FREE_S = 1.0  # contract: so long after the order to stop, the engine has no probe of ours


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultSite]:
    with fault_site(tmp_path_factory.mktemp("faults")) as made:
        yield made
        print(f"\n{made.table()}")


def taken_over(other: Instance, began_s: float) -> float:
    """Seconds until the other one leads."""
    wait_for(other.holds_lease, "the other one takes over", TWO_LEASES_S + 1.0)
    return time.monotonic() - began_s


# ---------------------------------------------------------------------------------------------- the holder is struck
def killed(holder: Instance) -> None:
    holder.kill()


def paused(holder: Instance) -> None:
    holder.signal(signal.SIGSTOP)


def paused_with_its_sweep(holder: Instance) -> None:
    holder.signal(signal.SIGSTOP, whole_family=True)


def cut(kind: str, **how: Any) -> Callable[[Instance], None]:
    def strike(holder: Instance) -> None:
        holder.proxy.poison(kind, **how)

    strike.__name__ = f"its way to the database: {kind}"
    return strike


long = pytest.mark.long
STRIKES = [
    killed,
    paused,
    paused_with_its_sweep,
    cut("timeout"),
    pytest.param(cut("down"), marks=long),
    pytest.param(cut("reset_peer"), marks=long),
    pytest.param(cut("limit_data", size=100), marks=long),
    pytest.param(cut("latency", seconds=5.0), marks=long),
    pytest.param(cut("bandwidth", rate=20), marks=long),
]


@pytest.mark.parametrize("strike", STRIKES, ids=lambda strike: strike.__name__.replace("_", " "))
@real_time
def test_a_holder_that_is_struck_in_mid_sweep_is_followed_in_time(
    site: FaultSite, strike: Callable[[Instance], None]
) -> None:
    holder, other = site.in_mid_sweep()
    cap = other.backend()["cap"]
    with site.judged(strike.__name__.replace("_", " ")) as finding:
        began_s = time.monotonic()
        strike(holder)
        finding.recovery_s = taken_over(other, began_s)
        assert finding.recovery_s < TWO_LEASES_S
        assert other.backend()["cap"] == cap
        site.sweep_again(other)
        if holder.is_up:
            holder.signal(signal.SIGCONT, whole_family=True)
            holder.proxy.heal()
            wait_for(lambda: not holder.backend()["lease_held"], "it knows that it leads no more")
            wait_for(lambda: holder.backend()["store_problem"] is None, "it has the database back")
            assert other.holds_lease()


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "how"), [("latency", {"seconds": 0.05}), ("slicer", {"size": 200}), ("slow_close", {"seconds": 2.0})]
)
@real_time
def test_a_slow_way_to_the_database_costs_nobody_the_lead(site: FaultSite, kind: str, how: dict[str, Any]) -> None:
    holder, _ = site.in_mid_sweep()
    with site.judged(f"a slow way: {kind}"):
        holder.proxy.poison(kind, **how)
        for _ in range(20):
            assert holder.backend()["lease_held"]
            time.sleep(0.3)


@pytest.mark.long
@real_time
def test_a_follower_that_is_cut_off_serves_on_and_disturbs_nobody(site: FaultSite) -> None:
    holder, other = site.in_mid_sweep()
    with site.judged("the other one: timeout"):
        other.proxy.poison("timeout")
        wait_for(lambda: other.backend()["store_problem"], "it says that its database is lost")
        assert holder.holds_lease()
        assert not other.holds_lease()


# ------------------------------------------------------------------------------------------- the database is struck
@real_time
def test_with_the_database_hung_nobody_probes_and_all_serve(site: FaultSite) -> None:
    holder, other = site.in_mid_sweep()
    cap = other.backend()["cap"]
    with site.judged("PostgreSQL hung") as finding:
        site.server.pause()
        time.sleep(VALID_S + SLOTS_FREE_S)
        assert site.engine.is_idle, "the sweep ended with the validity of its lease"
        for one in (holder, other):
            seen = one.backend()
            assert (seen["cap"], seen["lease_held"]) == (cap, False)
            assert seen["store_problem"]
        began_s = time.monotonic()
        site.server.resume()
        wait_for(lambda: sum(one.holds_lease() for one in site.instances) == 1, "one leads", TWO_LEASES_S)
        finding.recovery_s = time.monotonic() - began_s
        for one in (holder, other):
            wait_for(lambda one=one: one.backend()["store_problem"] is None, "all is well")  # type: ignore[misc] # bound per turn


@real_time
def test_a_database_that_crashes_and_comes_back_costs_nothing(site: FaultSite) -> None:
    site.in_mid_sweep()
    with site.judged("PostgreSQL crashed and restarted") as finding:
        began_s = time.monotonic()
        site.server.stop()
        site.server.start()
        wait_for(lambda: sum(one.holds_lease() for one in site.instances) == 1, "one leads", TWO_LEASES_S)
        finding.recovery_s = time.monotonic() - began_s
        for one in site.instances:
            wait_for(lambda one=one: one.backend()["store_problem"] is None, "all is well")  # type: ignore[misc] # bound per turn


# -------------------------------------------------------------------------------------------------- a clean stop
@real_time
def test_sigterm_in_mid_sweep_frees_the_engine_answers_polls_and_hands_over_at_once(site: FaultSite) -> None:
    holder, other = site.in_mid_sweep()
    answered: list[tuple[int, float]] = []
    etag = holder.service.http.get("/v1/backends/chat/cap").headers["ETag"]

    def poll_long() -> None:
        headers = {"If-None-Match": etag, "Authorization": f"Bearer {TOKEN}"}
        url = f"{holder.service.http.base_url}/v1/backends/chat/cap?wait=50"
        status = httpx.get(url, headers=headers, timeout=180.0, trust_env=False).status_code
        answered.append((status, time.monotonic()))

    def hear_events() -> None:
        url = f"{holder.service.http.base_url}/v1/events"
        with httpx.stream("GET", url, timeout=180.0, trust_env=False) as stream:
            for _ in stream.iter_raw():
                pass
        answered.append((stream.status_code, time.monotonic()))

    waiting = [threading.Thread(target=poll_long), threading.Thread(target=hear_events)]
    for thread in waiting:
        thread.start()
    time.sleep(0.5)
    with site.judged("SIGTERM") as finding:
        holder.poller.excused = True
        began_s = time.monotonic()
        code, took_s = holder.service.terminate()
        finding.recovery_s = taken_over(other, began_s)
        for thread in waiting:
            thread.join()
        assert (code, took_s < STOP_LIMIT_S) == (0, True)
        assert finding.recovery_s - took_s < NEWS_S, "it need not wait for the lease to expire"
        assert {status for status, _ in answered} <= {200, 304}
        assert all(at_s < began_s + STOP_LIMIT_S for _, at_s in answered)
        assert max(at_s for _, at_s in answered) > began_s, "the event stream was open"
        assert last_probe_s(site.arrivals) - began_s < SLOTS_FREE_S


@pytest.mark.long
@real_time
def test_sigterm_ends_in_time_while_the_database_hangs(site: FaultSite) -> None:
    holder, other = site.in_mid_sweep()
    with site.judged("SIGTERM while its way to the database: timeout") as finding:
        holder.proxy.poison("timeout")
        holder.poller.excused = True
        began_s = time.monotonic()
        code, took_s = holder.service.terminate()
        assert (code, took_s < STOP_LIMIT_S) == (0, True)
        assert last_probe_s(site.arrivals) - began_s < SLOTS_FREE_S
        finding.recovery_s = taken_over(other, began_s)


def last_probe_s(arrivals: Path) -> float:
    """When the last request of a sweep had left the engine, by its own log; those that are there still count as now."""
    begun: dict[int, str] = {}
    last_s = 0.0
    for text in arrivals.read_text().splitlines():
        line = json.loads(text)
        if line["event"] == "begin":
            begun[line["number"]] = sweep_of(line["request_id"])
        elif begun.pop(line["number"], ""):
            last_s = line["at_s"]
    return time.monotonic() if any(begun.values()) else last_s
