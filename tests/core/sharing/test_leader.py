"""One cap, several calibrators on one database: what gateways may have, whichever instance leads, leaves or is lost."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest

from calibrator.core.sharing.allocator import LEAST_EXPIRY_S
from calibrator.core.sharing.leader import ShareLeader
from calibrator.core.sharing.share_cache import KNOWN_S, ShareCache, ShareTable, StoredReport

CAP = 12


@dataclass
class Instance:
    name: str
    cache: ShareCache = field(default_factory=ShareCache)
    number: int = 0
    is_troubled: bool = False
    is_cut: bool = False  # from the database; its pollers still reach it
    division: ShareLeader | None = None
    epoch: int = 0


@dataclass
class Site:
    """A database, instances, and an account of what each gateway may have."""

    cap: int = CAP
    now_s: float = 0.0
    table: ShareTable = field(default_factory=ShareTable)
    epoch: int = 0
    rows: dict[str, tuple[float, StoredReport]] = field(default_factory=dict)
    instances: dict[str, Instance] = field(default_factory=lambda: {name: Instance(name) for name in "xyz"})
    late: list[tuple[int, ShareTable]] = field(default_factory=list)  # writes on their way: epoch, table

    def lead(self, name: str) -> None:
        """Take the lease over; the previous holder finds out at its next write."""
        instance = self.instances[name]
        if not instance.is_cut:
            self.epoch += 1
            instance.division, instance.epoch = ShareLeader(self.cap, self.table, self.now_s), self.epoch

    def exchange(self, name: str, *, is_answered: bool = True, is_written: bool = True) -> None:
        instance = self.instances[name]
        report = instance.cache.report(self.now_s)
        if instance.is_cut:
            return
        instance.number += 1
        self.rows[name] = (self.now_s, StoredReport(instance.number, 0.0, report, instance.is_troubled))
        instance.is_troubled = not is_answered
        if not is_answered:
            return
        instance.cache.exchanged(report, self.table, self.now_s)
        division = instance.division
        if division is None:
            return
        division.sync(self.table)
        rows = {name: replace(stored, age_s=self.now_s - at_s) for name, (at_s, stored) in self.rows.items()}
        division.receive(rows, self.now_s, self.now_s)
        made = division.next(self.cap, self.now_s)
        if made is None:
            return
        if not is_written:
            self.late.append((instance.epoch, made))
        elif self.write(instance.epoch, made):
            division.sync(made)
            instance.cache.adopt(made)
        elif instance.epoch != self.epoch:
            instance.division = None

    def write(self, epoch: int, table: ShareTable) -> bool:
        if epoch != self.epoch or table.version != self.table.version + 1:
            return False
        self.table = table
        return True

    def rounds(self, count: int, *names: str) -> None:
        for _ in range(count):
            self.now_s += 1.0
            for name in names or "xyz":
                self.exchange(name)

    def poll(self, client: str, name: str, in_flight: int | None = None) -> int | None:
        return self.instances[name].cache.poll(client, self.now_s, in_flight, 0)


def led(*, cap: int = CAP) -> Site:
    site = Site(cap)
    site.lead("x")
    site.rounds(1)
    return site


def settled(site: Site, polls: dict[str, str], seconds: int = 15) -> list[int | None]:
    for _ in range(seconds):
        advertised = [site.poll(client, name) for client, name in polls.items()]
        site.rounds(1)
    return advertised


# ------------------------------------------------------------------------------------------------------------- the way
def test_pollers_of_all_instances_share_one_cap() -> None:
    site = led()
    assert site.poll("a", "x") is None, "no share is advertised before the leader has granted it"
    site.rounds(2)
    assert site.poll("a", "x") == 12
    assert site.poll("b", "y") is None
    assert settled(site, {"a": "x", "b": "y", "c": "z"}) == [4, 4, 4]
    assert settled(site, {"a": "z", "b": "y", "c": "x"}) == [4, 4, 4], "a name is known everywhere"


def test_a_smaller_share_frees_nothing_before_every_instance_has_read_it_and_the_client_has_heard() -> None:
    site = led()
    settled(site, {"a": "y"})
    site.poll("b", "x")
    site.rounds(3, "x", "z")  # y does not exchange
    assert site.poll("b", "x") is None, "y still tells a 12"
    assert site.poll("a", "y") == 12
    site.rounds(2)
    assert site.poll("b", "x") is None, "y has read that a gets 6, but a has not asked"
    assert site.poll("a", "y") == 6
    site.rounds(2)
    assert site.poll("b", "x") == 6


def test_what_still_runs_at_another_instance_is_held() -> None:
    site = led()
    for _ in range(4):
        site.poll("a", "y", 12)
        site.rounds(1)
    site.poll("b", "x", 0)
    site.rounds(2)
    for running, left in ((12, None), (12, None), (9, 3), (6, 6)):
        site.poll("a", "y", running)
        site.rounds(2)
        assert site.poll("b", "x", 0) == left, running


# ------------------------------------------------------------------------------------------------------------- faults
def test_with_the_database_lost_known_shares_stay_in_use_and_no_client_joins() -> None:
    site = led()
    settled(site, {"a": "x", "b": "y"})
    for instance in site.instances.values():
        instance.is_cut = True
    for _ in range(int(KNOWN_S) - 2):
        site.now_s += 1.0
        assert (site.poll("a", "x"), site.poll("b", "y")) == (6, 6)
        assert site.poll("c", "z") is None
        site.exchange("x"), site.exchange("y"), site.exchange("z")
    assert site.poll("a", "y") is None, "y never had it: it may have another share by now"
    site.now_s += 10.0
    assert (site.poll("a", "x"), site.poll("b", "y")) == (None, None), "gateways keep what they have"
    for instance in site.instances.values():
        instance.is_cut = False
    assert settled(site, {"a": "x", "b": "y", "c": "z"}) == [4, 4, 4]


def test_an_instance_out_of_sight_keeps_the_shares_of_its_clients_until_it_stops_telling_them() -> None:
    site = led()
    settled(site, {"a": "x", "b": "y"})
    site.instances["y"].is_cut = True
    for _ in range(int(KNOWN_S) - 20):
        site.now_s += 1.0
        assert (site.poll("a", "x"), site.poll("b", "y")) == (6, 6)
        site.exchange("x"), site.exchange("z")
    for _ in range(60):
        site.now_s += 1.0
        site.poll("a", "x")
        site.exchange("x"), site.exchange("z")
    assert site.poll("a", "x") == 12
    assert site.poll("b", "y") is None


def test_a_client_that_comes_over_from_a_dead_instance_has_its_share_at_once() -> None:
    site = led()
    settled(site, {"a": "x", "b": "y"})
    site.instances["y"].is_cut = True
    site.rounds(2)
    assert site.poll("b", "z") == 6
    advertised = settled(site, {"a": "x", "b": "z", "c": "x"}, 30)
    assert advertised == [4, 4, 2], "y may still advertise 6 to b"
    assert settled(site, {"a": "x", "b": "z", "c": "x"}, int(KNOWN_S)) == [4, 4, 4]


def test_an_instance_that_says_good_bye_is_not_waited_for() -> None:
    site = led()
    settled(site, {"a": "x", "b": "y"})
    site.instances["y"].cache.close()
    site.exchange("y")
    site.instances["y"].is_cut = True
    assert site.poll("b", "y") is None
    assert settled(site, {"a": "x", "b": "z", "c": "x"}) == [4, 4, 4]
    assert settled(site, {"a": "x", "c": "x"}, int(2 * LEAST_EXPIRY_S) + 5) == [6, 6]


def test_who_takes_over_gives_nothing_twice() -> None:
    site = led()
    settled(site, {"a": "x", "b": "y"})
    site.instances["x"].is_cut = True
    site.lead("y")
    assert settled(site, {"a": "x", "b": "y", "c": "z"}, 30) == [6, 4, 2], "x still tells a its 6"
    site.instances["x"].is_cut = False
    assert settled(site, {"a": "x", "b": "y", "c": "z"}) == [4, 4, 4]
    assert site.instances["x"].division is None


def test_a_write_that_was_thought_lost_may_still_arrive() -> None:
    site = led()
    settled(site, {"a": "x", "b": "y"})
    site.cap = 20
    site.now_s += 1.0
    site.poll("a", "x"), site.poll("b", "y")
    site.exchange("y")
    site.exchange("x", is_written=False)  # it gives more
    site.cap = 12
    for _ in range(3):
        site.now_s += 1.0
        assert (site.poll("a", "x"), site.poll("b", "y")) == (6, 6)
        site.exchange("y")
        site.exchange("x", is_written=False)
    division = site.instances["x"].division
    assert division is not None
    assert division.in_use == 20, "the first may arrive"
    assert site.write(*site.late[0])
    assert settled(site, {"a": "x", "b": "y"}) == [6, 6]
    assert division.in_use == 12


# ------------------------------------------------------------------------------------------------------------ property
@dataclass
class Gateway:
    """As in test_shares: starts what it may, reports, hears an answer some time later."""

    reports: bool
    limit: int = 0
    running: int = 0
    answer: int | None = None
    seen_s: float = 0.0

    def hear(self) -> None:
        if self.answer is not None:
            self.limit, self.answer = self.answer, None
            if not self.reports:
                self.running = min(self.running, self.limit)  # what still runs is not known of it

    @property
    def possible(self) -> int:
        return max(self.limit, self.running, self.answer or 0)


NAMES = "abcdef"  # the first four say what they have in flight


@dataclass
class Scenario:
    """A fleet of gateways and its calibrators, with faults: seconds at random, of a seed."""

    draws: random.Random
    site: Site = field(init=False)
    fleet: dict[str, Gateway] = field(init=False)
    is_away: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(NAMES, False))
    faults: float = 0.0
    roams: float = 0.0  # how often a gateway asks elsewhere than at home

    def __post_init__(self) -> None:
        self.site = led(cap=self.draws.choice((5, 12, 30)))
        self.fleet = {name: Gateway(reports=name < "e") for name in NAMES}
        self.roams = self.draws.choice((0.0, 0.05, 0.3, 1.0))
        self.faults = self.draws.choice((0.01, 0.03, 0.1))

    def second(self) -> None:
        draws = self.draws
        for name in draws.sample(NAMES, len(NAMES)):
            self.pass_time(0.01)
            if draws.random() < 0.03:
                self.is_away[name] = not self.is_away[name]
            if not self.is_away[name] and draws.random() < 0.9:
                self.poll(name, draws.choice("xyz") if draws.random() < self.roams else "xyz"[NAMES.index(name) % 3])
            if draws.random() < 0.3:
                self.check()
        for name in draws.sample("xyz", 3):
            self.pass_time(draws.choice((0.0, 0.3)))
            self.exchange(name)
            self.check()
        self.site.cap += draws.random() < 0.02

    def pass_time(self, seconds: float) -> None:
        self.site.now_s += seconds
        for gateway in self.fleet.values():
            if self.site.now_s - gateway.seen_s >= LEAST_EXPIRY_S:
                gateway.limit, gateway.running, gateway.answer = 0, 0, None

    def poll(self, name: str, at: str) -> None:
        gateway, wanted = self.fleet[name], self.draws.choice((0, 3, 30))
        gateway.hear()
        gateway.running = min(gateway.running, self.draws.randrange(31))  # some have ended
        gateway.answer = self.site.poll(name, at, gateway.running if gateway.reports else None)
        gateway.running = max(gateway.running, min(wanted, gateway.limit))  # begun while the answer is on its way
        if gateway.answer is not None:  # without an answer it counts as one that reaches no calibrator
            gateway.seen_s = self.site.now_s
        if not gateway.reports or self.draws.random() < 0.7:
            gateway.hear()

    def exchange(self, name: str) -> None:
        draws, site = self.draws, self.site
        instance = site.instances[name]
        if draws.random() < self.faults:
            instance.is_cut = not instance.is_cut
        if draws.random() < self.faults / 2:
            site.lead(name)
        if site.late and draws.random() < 0.3:
            site.write(*site.late.pop(draws.randrange(len(site.late))))
        site.exchange(name, is_answered=draws.random() < 0.95, is_written=draws.random() < 0.9)

    def check(self) -> None:
        possible = {name: gateway.possible for name, gateway in self.fleet.items() if gateway.possible}
        assert sum(possible.values()) <= max(self.site.cap, len(possible)), (self.site.now_s, possible)


@pytest.mark.parametrize("seed", range(60))
def test_what_gateways_may_have_never_exceeds_the_cap_whichever_instance_is_cut_off_leads_or_writes_late(
    seed: int,
) -> None:
    scenario = Scenario(random.Random(seed))
    for _ in range(300):
        scenario.second()
    assert scenario.site.table.version > 4, "shares have moved"
