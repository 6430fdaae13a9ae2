"""The real Envoy with the shipped configuration, against the real service: the cap holds at the backend."""

from __future__ import annotations

from pathlib import Path

from support.envoy_process import ADMIN, envoy
from support.gateway_site import (
    BACKEND,
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
from support.quiet_machine import real_time
from support.service_process import serving

CONFIG = DEPLOYED / "envoy" / "envoy.yaml"
STATIC_CAP = 8  # in the shipped file
LATENCY_S = 0.3


@real_time
def test_the_cap_holds_through_changes_and_the_calibrators_death(tmp_path: Path) -> None:
    def scenario() -> None:
        config = calibrator_config(tmp_path)
        with bench(BACKEND, latency_s=LATENCY_S) as site, serving(config, token=TOKEN, environ=TOKENS) as service:
            pin(service, 20)
            with envoy(tmp_path, "gw-1", CONFIG) as gateway, site.load(40):
                gateway.wait_for_cap(20)
                site.note("cap 20 in Envoy")
                site.settle()
                site.hold(2.0, 20)
                refused = next(answer for answer in site.answers if answer.status != 200)
                assert refused.status == 429
                assert refused.headers["retry-after"] == "1"
                assert {answer.status for answer in site.answers} == {200, 429}

                pin(service, 11)
                changed_s = site.note("cap pinned to 11")
                gateway.wait_for_cap(11)
                site.note(f"in Envoy after {site.now_s() - changed_s:.1f} s")
                site.settle()
                site.hold(2.0, 11)

                service.kill()
                site.note("calibrator killed")
                failures = gateway.counter("runtime.update_failure")
                wait_until(lambda: gateway.counter("runtime.update_failure") > failures, "a poll fails", 15.0)
                site.hold(2.0, 11)
                site.note("a poll failed; still 11")

                with serving(config, token=TOKEN, environ=TOKENS) as again:
                    assert again.document("/v1/backends/llm/cap")["cap"] == 11
                    site.note("calibrator is back")
                    pin(again, 26)
                    site.note("cap pinned to 26")
                    gateway.wait_for_cap(26)
                    site.note("in Envoy")
                    site.settle()
                    site.hold(2.0, 26)

    in_own_network(scenario)


@real_time
def test_an_unchanged_cap_costs_a_304(tmp_path: Path) -> None:
    """Envoy counts no update; the layer stays."""

    def scenario() -> None:
        with (
            serving(calibrator_config(tmp_path), token=TOKEN, environ=TOKENS),
            envoy(tmp_path, "gw-1", CONFIG) as gateway,
        ):
            gateway.wait_for_cap(20)
            updates = gateway.counter("runtime.update_success")
            unchanged = "cluster.calibrator.upstream_rq_304"
            wait_until(lambda: gateway.counter(unchanged) > 1, "304s are answered", 15.0)
            assert gateway.counter("runtime.update_success") == updates
            assert gateway.counter("runtime.update_rejected") == 0
            assert gateway.cap() == 20

    in_own_network(scenario)


@real_time
def test_without_a_calibrator_the_static_cap_holds(tmp_path: Path) -> None:
    def scenario() -> None:
        with bench(BACKEND, latency_s=LATENCY_S) as site, envoy(tmp_path, "gw-1", CONFIG) as gateway:
            gateway.wait_until_live()
            assert gateway.cap() == 0
            statuses = [answer.status for answer in site.burst(40)]
            assert (statuses.count(200), statuses.count(429)) == (STATIC_CAP, 40 - STATIC_CAP)
            assert site.peak(0.0) == STATIC_CAP

    in_own_network(scenario)


@real_time
def test_two_envoys_share_one_cap(tmp_path: Path) -> None:
    def scenario() -> None:
        config = calibrator_config(tmp_path)
        with bench(BACKEND, latency_s=LATENCY_S) as site, serving(config, token=TOKEN, environ=TOKENS) as service:
            pin(service, 31)
            with envoy(tmp_path, "gw-1", CONFIG) as first, site.load(40):
                first.wait_for_cap(31)
                site.settle()
                site.hold(1.0, 31)
                joined_s = site.note("gw-2 starts")
                with (
                    envoy(tmp_path, "gw-2", CONFIG, admin=ADMIN + 1, ingress=INGRESS + 1) as second,
                    site.load(40, second.ingress),
                ):
                    second.wait_for_cap(15, 20.0)  # it waits until gw-1 has heard of its smaller share
                    site.note("both have their shares")
                    assert first.cap() == 16
                    assert site.peak(joined_s) <= 31 + STATIC_CAP, "a joiner holds no more than its static cap"
                    site.settle()
                    site.hold(5.0, 31)
                site.note("gw-2 stopped")
                first.wait_for_cap(31, 40.0)  # after gw-2 was silent for three times its longest gap
                site.note("gw-1 has it all")
                site.settle()
                site.hold(1.0, 31)

    in_own_network(scenario)
