"""Which replicas count: tables of what they answered, one after the other."""

from __future__ import annotations

import pytest

from calibrator.core.publish.fleet import (
    SUSPICION_S,
    FleetScrape,
    Member,
    Probes,
    ReplicaAddress,
    ReplicaScrape,
    fleet_kind,
    kind_of,
    replica_view,
    statuses,
)
from calibrator.core.publish.snapshot import ReplicaStatus
from calibrator.core.records.server_load import ServerLoad

DELAY_S = 60.0
IDLE, BUSY = ServerLoad("vllm", 0.0, 0.0), ServerLoad("vllm", 3.0, 1.0)


def member(name: str = "a", *loads: ServerLoad | None, founder: bool = True, in_rotation: bool = True) -> Member:
    """One that has answered `loads`, a second apart, the last one at second 0."""
    known = Member(ReplicaAddress(f"http://{name}/v1"), -float(len(loads)), founder, in_rotation)
    for index, load in enumerate(loads):
        known = known.after(load, None, index + 1.0 - len(loads), DELAY_S)
    return known


def status(*members: Member, at_s: float = 0.0) -> list[ReplicaStatus]:
    return list(statuses(members, None, at_s).values())


@pytest.mark.parametrize(
    ("loads", "founder", "expected"),
    [
        ((IDLE,), True, ReplicaStatus.READY),  # found when the service started
        ((IDLE,), False, ReplicaStatus.JOINING),  # the gateway may not know it yet
        ((IDLE, BUSY), False, ReplicaStatus.READY),  # users' work
        ((IDLE, BUSY, IDLE), False, ReplicaStatus.READY),  # which once seen is enough
        ((IDLE,) * 61, False, ReplicaStatus.READY),  # long enough there
        ((IDLE,) * 60, False, ReplicaStatus.JOINING),
        ((BUSY, None), True, ReplicaStatus.DOWN),  # at the first scrape that fails
        ((BUSY, None, IDLE), True, ReplicaStatus.JOINING),  # back, but as new
        ((BUSY, None, BUSY), True, ReplicaStatus.READY),
        ((None,), True, ReplicaStatus.READY),  # none shows metrics: unknown is not down
        ((None,) * 30, False, ReplicaStatus.JOINING),
        ((None,) * 62, False, ReplicaStatus.READY),
    ],
)
def test_one_replica(loads: tuple[ServerLoad | None, ...], founder: bool, expected: ReplicaStatus) -> None:  # noqa: FBT001 - a column of the table
    assert status(member("a", *loads, founder=founder)) == [expected]


def test_our_own_probes_are_no_users_work() -> None:
    probed = Member(ReplicaAddress("http://a/v1"), 0.0).after(BUSY, Probes(4), 1.0, DELAY_S)
    assert status(probed) == [ReplicaStatus.JOINING]
    assert probed.organic_in_flight == 0.0


@pytest.mark.parametrize(
    ("probes", "gauge", "expected"),
    [
        (None, 9.0, 9.0),
        (Probes(16, 5.0), 9.0, 5.0),  # a sweep's own word, whatever the gauge holds at this moment
        (Probes(0, 5.0), 20.0, 5.0),
        (Probes(), 20.0, 4.0),  # it has just begun or ended: what came on top may be ours
        (Probes(), 2.0, 2.0),
        (Probes(3), 20.0, 17.0),  # a sweep that cannot tell
        (Probes(30), 20.0, 0.0),
    ],
)
def test_users_beside_probes(probes: Probes | None, gauge: float, expected: float) -> None:
    known = member("a", BUSY).after(ServerLoad("vllm", gauge, 0.0), probes, 1.0, DELAY_S)
    assert known.organic_in_flight == expected


def test_one_without_metrics_among_others_with_them_is_down() -> None:
    assert status(member("a", BUSY), member("b", None)) == [ReplicaStatus.READY, ReplicaStatus.DOWN]


def test_another_engine_model_or_version_stands_apart() -> None:
    old, new = ServerLoad("vllm", 1.0, model="m", version="1"), ServerLoad("vllm", 1.0, model="m", version="2")
    other, silent = ServerLoad("vllm", 1.0, model="x", version="1"), ServerLoad("vllm", 1.0)
    fleet = (member("a", old), member("b", old), member("c", new), member("d", other), member("e", silent))
    ready, apart = ReplicaStatus.READY, ReplicaStatus.MISMATCHED
    assert status(*fleet) == [ready, ready, apart, apart, ready], "the commonest, and who does not tell"
    assert list(statuses(fleet, kind_of(new), 0.0).values()) == [apart, apart, ready, apart, ready], "the measured"
    assert fleet_kind(fleet[:2], kind_of(new)) == kind_of(old), "none of the measured kind is left"
    assert fleet_kind((member("a", None),), None) is None


def test_in_a_rolling_update_the_measured_kind_counts_until_it_is_gone() -> None:
    old, new = ServerLoad("vllm", 1.0, version="1"), ServerLoad("vllm", 1.0, version="2")
    measured = kind_of(old)
    updated = (member("a", new), member("b", new), member("c", old))
    assert list(statuses(updated, measured, 0.0).values()) == [
        ReplicaStatus.MISMATCHED,
        ReplicaStatus.MISMATCHED,
        ReplicaStatus.READY,
    ]
    assert list(statuses(updated[:2], measured, 0.0).values()) == [ReplicaStatus.READY, ReplicaStatus.READY]


def started(*starts: str | None) -> Member:
    return member("a", *(ServerLoad("vllm", 1.0, process_start=start) for start in starts))


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        (("1", "1", "1"), ReplicaStatus.READY),
        (("1", "2", "2"), ReplicaStatus.READY),  # a restart
        (("1", "2", "3", "4"), ReplicaStatus.READY),  # it keeps crashing
        (("1", "2", "1"), ReplicaStatus.LOAD_BALANCED),
        (("1", "2", "3", "2"), ReplicaStatus.LOAD_BALANCED),
        ((None, "1", None, "1"), ReplicaStatus.READY),
    ],
)
def test_a_process_start_that_comes_back_is_a_load_balancer(
    starts: tuple[str | None, ...], expected: ReplicaStatus
) -> None:
    assert status(started(*starts)) == [expected]


def test_the_suspicion_ends() -> None:
    suspect = started("1", "2", "1")
    assert status(suspect, at_s=SUSPICION_S - 1.0) == [ReplicaStatus.LOAD_BALANCED]
    assert status(suspect, at_s=SUSPICION_S + 1.0) == [ReplicaStatus.READY]


def test_a_reserve_takes_no_users_and_decides_nothing_about_the_others() -> None:
    new, old = ServerLoad("vllm", 0.0, version="2"), ServerLoad("vllm", 0.0, version="1")
    reserve, users = member("r", new, in_rotation=False), member("a", old)
    assert status(reserve, users) == [ReplicaStatus.MISMATCHED, ReplicaStatus.READY], (
        "it cannot be measured for this fleet"
    )
    assert status(member("r", old, in_rotation=False), users) == [ReplicaStatus.STANDBY, ReplicaStatus.READY]
    assert status(member("r", None, in_rotation=False), users) == [ReplicaStatus.STANDBY, ReplicaStatus.READY]


def test_a_look_counts_the_ready_only() -> None:
    replicas = (
        ReplicaScrape("a", BUSY, probes_in_flight=1),
        ReplicaScrape("b", None, is_ready=False),
        ReplicaScrape("c", BUSY, is_ready=False),
    )
    seen = FleetScrape(0.0, 0.0, replicas, 10, 10)
    assert (seen.organic_in_flight, seen.probes_in_flight) == (3.0, 1)
    assert FleetScrape(0.0, 0.0, (replicas[0], ReplicaScrape("b", None)), 10, 10).organic_in_flight is None
    assert FleetScrape(0.0, 0.0, (), 10, 10).organic_in_flight is None


def test_the_view_names_what_a_replica_runs() -> None:
    view = replica_view(member("a", ServerLoad("vllm", 2.0, model="m", version="1")), ReplicaStatus.READY)
    assert (view.url, view.engine, view.model, view.version, view.organic_in_flight) == (
        "http://a/v1", "vllm", "m", "1", 2.0,
    )  # fmt: skip
    silent = replica_view(member("a", None), ReplicaStatus.DOWN)
    assert (silent.engine, silent.organic_in_flight) == (None, None)
