"""Only live traffic without probes is kept, and nothing that cannot be known."""

from __future__ import annotations

import pytest
from support.live_traffic import Users, token_histogram

from calibrator.core.publish.fleet import FleetLook, ReplicaLook
from calibrator.core.records.server_load import ServerLoad
from calibrator.service.backend.traffic import AFTER_PROBES_S, SLICE_S, TrafficLog


def look(at_s: float, *loads: ServerLoad | None, probes: int = 0) -> FleetLook:
    replicas = tuple(ReplicaLook(f"http://r{index}/v1", load, probes) for index, load in enumerate(loads))
    return FleetLook(at_s, 1e9 + at_s, replicas, cap=32, replica_cap=32)


def follow(log: TrafficLog, users: Users, seconds: range, rate: int = 2, *, probes: int = 0) -> None:
    for second in seconds:
        users.served(rate)
        log.observe(look(float(second), users.load(), probes=probes), is_sweeping=probes > 0)


def test_what_users_sent_is_kept_whole() -> None:
    log, users = TrafficLog(), Users()
    follow(log, users, range(1202))
    mix = log.mix(1201.0, 3600.0)
    assert mix.prompts == token_histogram(users.prompts[2 : 2 + int(mix.requests)])
    assert mix.requests >= 2 * 1140, "all but the last unfinished minute"
    assert mix.in_flight == pytest.approx(4.0)
    assert len(log.slices(1201.0, 3600.0)) == 2


def test_probes_and_half_a_minute_after_them_do_not_count() -> None:
    log, users = TrafficLog(), Users()
    follow(log, users, range(600))
    before = log.mix(600.0, 3600.0).requests
    follow(log, users, range(600, 900), rate=50, probes=8)
    follow(log, users, range(900, 900 + int(AFTER_PROBES_S) - 1), rate=50)
    assert log.mix(930.0, 3600.0).requests == pytest.approx(before, abs=120), "what was pending, and no probe"
    follow(log, users, range(930, 1200))
    assert log.mix(1200.0, 3600.0).requests < before + 120 + 2 * 270


@pytest.mark.parametrize("start", ["2", "1"])
def test_a_restart_loses_a_minute_at_most_and_counts_nothing_twice(start: str) -> None:
    log, users = TrafficLog(), Users()
    follow(log, users, range(601))
    users.restart(start)
    follow(log, users, range(601, 1202))
    assert 2 * 1050 <= log.mix(1202.0, 3600.0).requests <= 2 * 1200


def test_a_replica_that_does_not_answer_for_long_begins_anew() -> None:
    log, users = TrafficLog(), Users()
    follow(log, users, range(301))
    users.served(10_000)
    log.observe(look(400.0, None), is_sweeping=False)
    follow(log, users, range(401, 702))
    assert log.mix(702.0, 3600.0).requests <= 2 * 600


def test_looks_that_did_not_happen_are_a_gap() -> None:
    log, users = TrafficLog(), Users()
    follow(log, users, range(301))
    users.served(10_000)
    follow(log, users, range(900, 1000))
    assert log.mix(1000.0, 3600.0).requests <= 2 * 400


def test_a_flapping_page_still_tells_something() -> None:
    log, users = TrafficLog(), Users()
    for second in range(1200):
        users.served(2)
        log.observe(look(float(second), None if second % 3 == 0 else users.load()), is_sweeping=False)
    assert log.mix(1200.0, 3600.0).requests == pytest.approx(2 * 400, abs=10), "one second in three is seen"


def test_a_frozen_page_is_no_traffic() -> None:
    log, users = TrafficLog(), Users()
    users.served(1000)
    follow(log, users, range(600), rate=0)
    assert log.mix(600.0, 3600.0).requests == 0.0


def test_replicas_add_up_and_old_slices_go() -> None:
    log, one, two = TrafficLog(keep_s=2 * SLICE_S), Users(), Users()
    for second in range(0, 12 * int(SLICE_S), 5):
        one.served(1)
        two.served(3)
        log.observe(look(float(second), one.load(), two.load()), is_sweeping=False)
    now_s = 12 * SLICE_S
    assert len(log.slices(now_s, 1e9)) <= 4
    assert log.mix(now_s, SLICE_S).requests == pytest.approx(4 * SLICE_S / 5, rel=0.1)
