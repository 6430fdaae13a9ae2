"""Each trigger is seen in the looks, waits as it must, and is not seen where there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.live_traffic import Users, lognormal

from calibrator.core.admission.triggers import TriggeredSweep, TriggerKind, TriggerPolicy
from calibrator.core.publish.fleet import FleetScrape, ReplicaScrape
from calibrator.core.records.server_load import ServerLoad
from calibrator.service.backend.traffic import TrafficLog
from calibrator.service.backend.triggers import TriggerWatch

LOAD = ServerLoad("vllm", 4.0, 0.0, process_start="1", model="m", version="0.32.0", output_tokens_total=100.0)
UP_S = 600.0


def watch(policy: TriggerPolicy | None = None) -> TriggerWatch:
    return TriggerWatch(policy or TriggerPolicy(), TrafficLog(), probe_lengths=[200] * 100)


def look(at_s: float, *loads: ServerLoad | None, ready: tuple[bool, ...] = ()) -> FleetScrape:
    replicas = tuple(
        ReplicaScrape(f"http://r{index}/v1", load, 0, load is not None and (not ready or ready[index]))
        for index, load in enumerate(loads)
    )
    return FleetScrape(at_s, 1e9 + at_s, replicas, cap=32, replica_cap=32)


def first_due(one: TriggerWatch, *loads: ServerLoad | None, since_s: float, for_s: float = 2000.0) -> tuple[float, str]:
    """When a sweep is called for, seconds after `since_s`, and why; (-1, "") if none is."""
    for second in range(int(for_s)):
        due = one.observe(look(since_s + second, *loads))
        if due is not None:
            return float(second), due.reason
    return -1.0, ""


def test_nothing_changes_nothing() -> None:
    assert first_due(watch(), LOAD, LOAD, since_s=0.0, for_s=10_000.0) == (-1.0, "")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (LOAD, replace(LOAD, process_start="2", output_tokens_total=0.0)),
        (replace(LOAD, process_start=None), replace(LOAD, process_start=None, output_tokens_total=3.0)),
    ],
    ids=["another start", "a counter fell"],
)
def test_a_restart_calls_for_a_sweep_once_the_engine_is_up_long_enough(before: ServerLoad, after: ServerLoad) -> None:
    one = watch()
    one.observe(look(0.0, before))
    assert first_due(one, after, since_s=1.0) == (UP_S, "restart: http://r0/v1 started anew")
    due = one.observe(look(3000.0, after))
    assert due is not None
    assert not due.may_raise


def test_a_restart_is_seen_although_the_replica_was_gone_meanwhile() -> None:
    one = watch()
    one.observe(look(0.0, LOAD))
    for second in range(1, 60):
        assert one.observe(look(float(second), None)) is None
    assert first_due(one, replace(LOAD, process_start="2"), since_s=60.0)[0] == UP_S


def test_a_restart_during_a_sweep_is_not_forgotten() -> None:
    one = watch()
    one.observe(look(0.0, LOAD), is_sweeping=True)
    one.observe(look(1.0, replace(LOAD, process_start="2")), is_sweeping=True)
    one.sweep_started(2.0)
    one.sweep_ended(30.0)
    wait_s, why = first_due(one, replace(LOAD, process_start="2"), since_s=30.0)
    assert (wait_s, why[:7]) == (900.0, "restart")


def test_changing_processes_behind_one_url_never_trigger() -> None:
    """Each look shows another start, so nothing is ever up long enough."""
    one = watch()
    for second in range(5000):
        assert one.observe(look(float(second), replace(LOAD, process_start=str(second % 2)))) is None


def test_a_page_that_comes_and_goes_is_no_restart() -> None:
    one = watch()
    for second in range(5000):
        assert one.observe(look(float(second), None if second % 2 else LOAD)) is None


def test_another_version_is_told_as_such_and_measured_from_scratch() -> None:
    one = watch()
    one.observe(look(0.0, LOAD))
    assert first_due(one, replace(LOAD, version="0.33.0"), since_s=1.0) == (
        UP_S,
        "version: vllm 0.32.0 (m) became vllm 0.33.0 (m)",
    )


def test_a_version_that_is_not_told_for_a_while_did_not_change() -> None:
    one = watch()
    for second in range(3000):
        assert one.observe(look(float(second), replace(LOAD, version=None) if second % 7 else LOAD)) is None


def test_a_new_replica_calls_for_a_sweep_and_one_that_leaves_or_returns_does_not() -> None:
    one = watch()
    one.observe(look(0.0, LOAD, LOAD))
    assert first_due(one, LOAD, None, since_s=1.0) == (-1.0, "")
    assert first_due(one, LOAD, LOAD, since_s=2001.0) == (-1.0, "")
    assert first_due(one, LOAD, LOAD, LOAD, since_s=4001.0) == (UP_S, "replicas: http://r2/v1 joined")


def test_a_replica_that_does_not_count_yet_has_not_joined() -> None:
    one = watch()
    one.observe(look(0.0, LOAD))
    for second in range(1, 3000):
        assert one.observe(look(float(second), LOAD, LOAD, ready=(True, False))) is None


def test_another_configuration_is_a_cause_of_its_own() -> None:
    one = watch()
    one.configured_otherwise("objectives was a, is b", 0.0)
    due = one.observe(look(1.0, LOAD))
    assert due == TriggeredSweep(
        "configuration: objectives was a, is b", (TriggerKind.CONFIGURATION,), may_raise=True, is_warm=False
    )
    one.sweep_started(2.0)
    one.sweep_ended(100.0)
    assert first_due(one, LOAD, since_s=100.0) == (-1.0, "")


# --------------------------------------------------------------------------------------------------------------- drift
def serve(one: TriggerWatch, users: Users, since_s: int, for_s: int, rate: int = 5) -> TriggeredSweep | None:
    """A look each ten seconds; the first sweep called for."""
    for second in range(since_s, since_s + for_s, 10):
        users.served(rate)
        now = look(float(second), users.load())
        one.log.observe(now, is_sweeping=False)
        if (due := one.observe(now)) is not None:
            return due
    return None


def test_longer_prompts_are_drift_and_a_sweep_ends_it() -> None:
    one, users = watch(), Users()
    assert serve(one, users, 0, 8000) is None
    users.prompt = lognormal(900, 0.7)
    due = serve(one, users, 8000, 4000)
    assert due is not None
    assert due.reason.startswith("drift: prompts changed")
    assert (due.may_raise, due.is_warm) == (True, True)
    one.sweep_started(12_000.0)
    one.sweep_ended(12_300.0)
    assert serve(one, users, 12_300, 40_000) is None, "the new traffic is the reference now"


def test_a_fall_of_prefix_hits_is_drift() -> None:
    one, users = watch(), Users(hit_ratio=0.6)
    assert serve(one, users, 0, 8000) is None
    users.hit_ratio = 0.1
    due = serve(one, users, 8000, 4000)
    assert due is not None
    assert "prefix hits went from 60% to " in due.reason


def test_drift_waits_its_cool_down() -> None:
    """Traffic that never stays the same causes a sweep in six hours, and not more."""
    one, users, starts = watch(), Users(), []
    for hour in range(48):
        users.prompt = lognormal((100, 900)[hour // 2 % 2], 0.5)
        if serve(one, users, 3600 * hour, 3600) is not None:
            starts.append(hour)
            one.sweep_started(3600.0 * hour + 3000.0)
            one.sweep_ended(3600.0 * hour + 3300.0)
    assert 3 <= len(starts) <= 8


def test_users_unlike_the_probes_are_told() -> None:
    one, users = watch(), Users(prompt=lognormal(3000, 0.3))
    serve(one, users, 0, 4000)
    assert "differ from the probes'" in one.unlike


def test_an_engine_without_histograms_never_drifts() -> None:
    one = watch()
    assert first_due(one, replace(LOAD, engine="llama.cpp"), since_s=0.0, for_s=9000.0) == (-1.0, "")
