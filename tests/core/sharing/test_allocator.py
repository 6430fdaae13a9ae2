"""One cap among many gateways: the advertised sum stays within it, whatever clients and the cap do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrator.core.sharing.allocator import (
    GATHER_S,
    LEAST_EXPIRY_S,
    LONGEST_GAP_S,
    MAX_CLIENTS,
    REBALANCE_S,
    RESERVE_RATIO,
    RUN_OUT_S,
    UNKNOWN,
    FairShareAllocator,
    HeldShare,
    divide,
)

# ------------------------------------------------------------------------------------------------------------ division
DIVISIONS = [
    # cap, needs, targets
    (31, {"a": UNKNOWN, "b": UNKNOWN}, {"a": 16, "b": 15}),  # the remainder goes to the first by name
    (30, {"a": UNKNOWN, "b": UNKNOWN, "c": UNKNOWN, "d": UNKNOWN}, {"a": 8, "b": 8, "c": 7, "d": 7}),
    (7, {"a": UNKNOWN}, {"a": 7}),
    (40, {"busy": 40.0, "idle": 0.0}, {"busy": 35, "idle": 5}),  # idle keeps a quarter of its equal 20
    (40, {"busy": UNKNOWN, "idle": 0.0}, {"busy": 35, "idle": 5}),  # who says nothing may need it
    (40, {"a": 40.0, "b": 12.0, "c": 3.0}, {"a": 25, "b": 12, "c": 3}),
    (40, {"a": 90.0, "b": 41.0}, {"a": 20, "b": 20}),  # both need more than there is: equal
    (40, {"a": 10.0, "b": 4.0}, {"a": 23, "b": 17}),  # the rest is not needed: divided equally, b has its reserve of 5
    (3, {"a": UNKNOWN, "b": 0.0, "c": 9.0}, {"a": 1, "b": 1, "c": 1}),
    (2, {"a": UNKNOWN, "b": 0.0, "c": 9.0}, {"a": 1, "b": 1, "c": 1}),  # more clients than cap: more than the cap
    (5, {}, {}),
]


@pytest.mark.parametrize(("cap", "needs", "targets"), DIVISIONS)
def test_division(cap: int, needs: dict[str, float], targets: dict[str, int]) -> None:
    assert divide(cap, needs) == targets


NAMES = st.text("abcdefgh", min_size=1, max_size=3)
NEEDS = st.dictionaries(NAMES, st.one_of(st.just(UNKNOWN), st.floats(0.0, 500.0)), min_size=1, max_size=40)


@given(st.integers(1, 300), NEEDS)
def test_a_division_is_the_whole_cap_and_gives_no_client_less_than_the_reserve(
    cap: int, needs: dict[str, float]
) -> None:
    targets = divide(cap, needs)
    assert sum(targets.values()) == max(cap, len(needs))
    assert min(targets.values()) >= max(1, math.floor(RESERVE_RATIO * cap / len(needs)) if len(needs) < cap else 1)


@given(st.integers(1, 300), NEEDS)
def test_no_client_gets_more_than_it_needs_while_another_needs_more_than_it_has(
    cap: int, needs: dict[str, float]
) -> None:
    targets = divide(cap, needs)
    if len(needs) >= cap:
        return
    reserve = max(1, math.floor(RESERVE_RATIO * cap / len(needs)))
    poorest = min((targets[name] for name in needs if needs[name] > targets[name]), default=None)
    if poorest is not None:
        for name, need in needs.items():
            assert targets[name] <= max(reserve, min(math.ceil(min(need, cap)), poorest + 1))


# --------------------------------------------------------------------------------------------------- joining, leaving
def test_the_first_client_has_the_whole_cap_and_keeps_it_while_it_polls() -> None:
    allocator = FairShareAllocator(31)
    assert [allocator.poll("a", float(second)) for second in range(100)] == [31] * 100
    assert (allocator.clients, allocator.in_use, allocator.over_cap) == (1, 31, 0)


def test_a_joiner_waits_until_the_others_were_told_their_smaller_parts() -> None:
    allocator = FairShareAllocator(31)
    allocator.poll("a", 0.0)
    assert allocator.poll("b", 1.0) is None
    assert allocator.clients == 2, "it waits, and counts"
    assert allocator.poll("b", 1.5) is None
    assert allocator.poll("a", 2.0) == 16
    assert allocator.poll("b", 2.5) == 15


def test_a_joiner_takes_what_was_freed_so_far() -> None:
    allocator = FairShareAllocator(30)
    allocator.poll("a", 0.0)
    allocator.poll("b", 0.2)
    assert (allocator.poll("a", 0.4), allocator.poll("b", 0.5)) == (15, 15)
    assert allocator.poll("c", 1.0) is None
    assert allocator.poll("a", 1.2) == 10
    assert allocator.poll("c", 1.4) == 5, "b still holds 15"
    assert allocator.poll("b", 1.6) == 10
    assert allocator.poll("c", 1.8) == 10


def test_what_a_client_held_that_left_is_free_when_it_expired() -> None:
    allocator = FairShareAllocator(31)
    allocator.poll("a", 0.0)
    allocator.poll("b", 1.0)
    allocator.poll("a", 1.0)
    assert allocator.poll("b", 1.5) == 15
    last_s = 1.5
    for second in range(1, 11):
        assert allocator.poll("a", 1.0 + second) == 16
    assert allocator.poll("a", last_s + LEAST_EXPIRY_S) == 31
    assert allocator.clients == 1
    assert allocator.poll("b", last_s + LEAST_EXPIRY_S + 1.0) is None, "it comes back as a joiner"


def test_a_slow_polling_interval_is_known_from_the_second_poll_on() -> None:
    """Every 30 s: expired before its second poll, then kept for 90 s."""
    allocator = FairShareAllocator(10)
    assert allocator.poll("slow", 0.0) == 10
    allocator.tend(11.0)
    assert allocator.clients == 0
    assert allocator.poll("slow", 30.0) == 10
    allocator.tend(30.0 + 89.0)
    assert allocator.clients == 1
    allocator.tend(30.0 + 90.0)
    assert allocator.clients == 0


def test_a_client_that_is_back_exactly_when_it_expires_need_not_wait() -> None:
    allocator = FairShareAllocator(10)
    assert [allocator.poll("slow", 30.0 * step) for step in range(5)] == [10] * 5


def test_an_absence_is_not_taken_for_a_rhythm() -> None:
    allocator = FairShareAllocator(10)
    allocator.poll("a", 0.0)
    allocator.poll("a", LONGEST_GAP_S + 1.0)
    allocator.tend(LONGEST_GAP_S + 1.0 + LEAST_EXPIRY_S)
    assert allocator.clients == 0


def test_ten_polls_a_second_change_nothing() -> None:
    allocator = FairShareAllocator(31)
    for step in range(1000):
        allocator.poll("fast", 0.1 * step)
        if step % 10 == 0:
            allocator.poll("slow", 0.1 * step)
    assert (allocator.poll("fast", 100.0), allocator.poll("slow", 100.0)) == (16, 15)


# -------------------------------------------------------------------------------------------------- more than the cap
def test_more_clients_than_cap_have_one_each_and_are_counted() -> None:
    allocator = FairShareAllocator(3)
    names = "abcde"
    for round_s in range(4):
        advertised = [allocator.poll(name, round_s + 0.15 * index) for index, name in enumerate(names)]
    assert advertised == [1] * 5
    assert (allocator.in_use, allocator.over_cap) == (5, 2)


def test_no_client_joins_beyond_the_cap_before_all_others_are_down_to_one() -> None:
    allocator = FairShareAllocator(2)
    assert allocator.poll("a", 0.0) == 2
    assert allocator.poll("b", 1.0) is None
    assert allocator.poll("c", 2.0) is None
    assert allocator.poll("a", 3.0) == 1
    assert (allocator.poll("b", 3.1), allocator.poll("c", 3.2)) == (1, 1)


def test_ten_thousand_names_are_remembered_and_the_longest_silent_is_forgotten() -> None:
    allocator = FairShareAllocator(5, max_clients=100)
    for number in range(150):
        allocator.poll(f"c{number:03}", 0.01 * number)
    assert allocator.clients == 100
    assert {share.client for share in allocator.held()} <= {f"c{number:03}" for number in range(50, 150)}
    assert allocator.in_use == sum(share.requests for share in allocator.held())


def test_more_names_than_are_remembered_leave_the_sum_at_what_the_remembered_hold() -> None:
    allocator = FairShareAllocator(20)
    for number in range(MAX_CLIENTS + 500):
        allocator.poll(f"c{number:05}", 1e-4 * number)
    assert allocator.clients == MAX_CLIENTS
    assert allocator.in_use == sum(share.requests for share in allocator.held())


# -------------------------------------------------------------------------------------------------------------- demand
def settle(
    allocator: FairShareAllocator, polls: dict[str, tuple[int | None, int | None]], from_s: float, rounds: int = 8
) -> None:
    for second in range(rounds * 2):
        for name, (in_flight, rejected) in polls.items():
            allocator.poll(name, from_s + second, in_flight, rejected)


def test_what_an_idle_gateway_does_not_need_goes_to_one_that_refuses_requests() -> None:
    allocator = FairShareAllocator(40)
    settle(allocator, {"busy": (0, 0), "idle": (0, 0)}, 0.0)
    assert {share.client: share.requests for share in allocator.held()} == {"busy": 20, "idle": 20}
    settle(allocator, {"busy": (20, 7), "idle": (0, 0)}, 20.0)
    assert {share.client: share.requests for share in allocator.held()} == {"busy": 35, "idle": 5}
    settle(allocator, {"busy": (20, 7), "idle": (5, 9)}, 60.0)
    assert {share.client: share.requests for share in allocator.held()} == {"busy": 20, "idle": 20}


def test_a_full_gateway_that_queues_instead_of_refusing_grows_too() -> None:
    allocator = FairShareAllocator(40)
    settle(allocator, {"busy": (0, 0), "idle": (0, 0)}, 0.0)
    settle(allocator, {"busy": (20, 0), "idle": (1, 0)}, 20.0)
    assert allocator.poll("busy", 40.0, 20, 0) == 35


def test_shares_stay_as_they_are_while_no_client_is_pressed() -> None:
    allocator = FairShareAllocator(40)
    settle(allocator, {"a": (3, 0), "b": (2, 0)}, 0.0)
    revision = allocator.revision
    for second in range(100):
        allocator.poll("a", 20.0 + second, second % 20, 0)
        allocator.poll("b", 20.0 + second, 19 - second % 20, 0)
    assert allocator.revision == revision


def test_pressure_moves_shares_no_faster_than_gateways_hear_of_it() -> None:
    allocator = FairShareAllocator(40)
    settle(allocator, {"a": (0, 0), "b": (0, 0)}, 0.0, rounds=1)
    changes = []
    for step in range(200):
        before = allocator.revision
        allocator.poll("a", 10.0 + 0.1 * step, 20 + step % 7, step % 5)
        allocator.poll("b", 10.0 + 0.1 * step, step % 13, 0)
        changes += [0.1 * step] if allocator.revision != before else []
    assert len({int(moment / REBALANCE_S) for moment in changes}) <= 4
    assert len(changes) <= 8, "a plan, and the telling of it"


# --------------------------------------------------------------------------------------------------- changes of the cap
def test_a_lower_cap_reaches_each_client_with_its_next_poll_and_no_client_gets_more_before() -> None:
    allocator = FairShareAllocator(60)
    for second in range(3):
        for name in "abc":
            allocator.poll(name, second + 0.2 * "abc".index(name))
    assert allocator.in_use == 60
    allocator.set_cap(30, 3.0)
    assert allocator.poll("a", 3.0) == 10
    assert allocator.in_use == 50, "b and c still hold their old shares"
    assert allocator.poll("d", 3.2) is None
    assert (allocator.poll("b", 3.4), allocator.poll("c", 3.6)) == (8, 7)


def test_a_higher_cap_is_given_at_once_because_it_is_free() -> None:
    allocator = FairShareAllocator(10)
    allocator.poll("a", 0.0)
    allocator.set_cap(40, 0.01)
    assert allocator.poll("a", 0.02) == 40


# ------------------------------------------------------------------------------------------------------------- restart
def test_a_restart_takes_nothing_from_anybody_and_gives_nothing_twice() -> None:
    allocator = FairShareAllocator(31)
    for name, at_s in (("a", 0.0), ("b", 1.0), ("a", 2.0), ("b", 3.0)):
        allocator.poll(name, at_s)
    after = FairShareAllocator(31)
    after.restore(allocator.held(), 1000.0)
    assert after.poll("c", 1000.5) is None, "a and b may still use what they were given"
    assert after.poll("a", 1001.0) == 11
    assert after.poll("b", 1001.0) == 10
    assert after.poll("c", 1002.0) == 10


def test_after_a_restart_those_who_left_meanwhile_expire() -> None:
    after = FairShareAllocator(31)
    after.restore([HeldShare("a", 16, 2.0), HeldShare("b", 15, 2.0)], 50.0)
    assert after.poll("a", 50.0 + LEAST_EXPIRY_S) == 31


# ------------------------------------------------------------------------------------------------------------ property
@dataclass
class Fleet:
    """An independent account of the share of each client, and until when it counts."""

    allocator: FairShareAllocator
    advertised: dict[str, int] = field(default_factory=dict)
    polls: dict[str, list[float]] = field(default_factory=dict)

    def poll(self, name: str, now_s: float, in_flight: int | None, rejected: int | None) -> int | None:
        share = self.allocator.poll(name, now_s, in_flight, rejected)
        self.polls.setdefault(name, []).append(now_s)
        self.advertised.pop(name, None)
        if share is not None:
            self.advertised[name] = share
        return share

    def live(self, now_s: float) -> dict[str, int]:
        return {name: share for name, share in self.advertised.items() if now_s < self._until(name)}

    def _until(self, name: str) -> float:
        rhythm_s, until_s = 0.0, 0.0
        for earlier, later in pairwise([self.polls[name][0], *self.polls[name]]):
            if later - earlier <= LONGEST_GAP_S:
                rhythm_s = max(rhythm_s, later - earlier)
            elif later >= until_s:
                rhythm_s = 0.0
            until_s = later + max(10.0, 3.0 * rhythm_s)
        return until_s


POLL = st.tuples(
    st.just("poll"),
    st.sampled_from("abcdefghij"),
    st.one_of(st.none(), st.integers(0, 80)),
    st.one_of(st.none(), st.just(0), st.integers(0, 500)),
)
EVENT = st.tuples(
    st.sampled_from([0.0, 0.05, 0.3, 1.0, 4.0, 9.0, 31.0, 130.0]),
    st.one_of(POLL, POLL, POLL, POLL, st.tuples(st.just("cap"), st.integers(1, 64))),
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 64), st.lists(EVENT, max_size=120))
def test_the_sum_told_never_exceeds_the_cap_while_anybody_is_told_more(
    cap: int, events: list[tuple[float, tuple[object, ...]]]
) -> None:
    """Joins, leaves, needs and caps at random. Only a fall of the cap leaves a sum above it, which only falls then."""
    fleet, now_s, allowed = Fleet(FairShareAllocator(cap)), 0.0, 0
    for wait_s, event in events:
        now_s += wait_s
        if event[0] == "cap":
            fleet.allocator.set_cap(int(str(event[1])), now_s)
        else:
            _, name, in_flight, rejected = event
            share = fleet.poll(str(name), now_s, in_flight, rejected)  # type: ignore[arg-type] # drawn as int or None
            assert share is None or share >= 1
        live = fleet.live(now_s)
        total, held = sum(live.values()), len(live)
        allowed = max(fleet.allocator.cap, held, min(allowed, total))
        assert total <= allowed
        assert total <= fleet.allocator.in_use, "what counts as held is never less than what is held"


# ------------------------------------------------------------------------------------------ requests that still run
def test_who_is_told_less_and_says_what_still_runs_holds_that_until_it_ends() -> None:
    allocator = FairShareAllocator(12)
    assert allocator.poll("a", 0.0, 12, 0) == 12
    assert allocator.poll("b", 1.0, 0, 0) is None
    assert allocator.poll("a", 2.0, 12, 0) == 6
    assert allocator.poll("b", 2.5, 0, 0) is None, "a has its new share, but 12 are still running"
    assert allocator.poll("a", 3.0, 9, 0) == 6
    assert allocator.poll("b", 3.5, 0, 0) == 3
    assert allocator.poll("a", 4.0, 5, 0) == 6
    assert allocator.poll("b", 4.5, 3, 0) == 6
    assert allocator.in_use == 12


def test_between_its_report_and_our_answer_a_client_may_have_filled_its_old_share() -> None:
    allocator = FairShareAllocator(12)
    allocator.poll("a", 0.0, 0, 0)
    allocator.poll("b", 1.0, 0, 0)
    assert allocator.poll("a", 2.0, 0, 0) == 6
    assert allocator.poll("b", 2.5, 0, 0) is None, "its next poll tells"
    assert allocator.poll("a", 3.0, 2, 0) == 6
    assert allocator.poll("b", 3.5, 0, 0) == 6


def test_what_still_runs_can_be_had_again_at_once() -> None:
    allocator = FairShareAllocator(12)
    for second in range(3):
        allocator.poll("a", float(second), 12, 0)
        allocator.poll("b", second + 0.5, 0, 0)
    assert allocator.poll("a", 3.0, 10, 0) == 6
    allocator.tend(0.5 + 2.0 + LEAST_EXPIRY_S)  # b has left
    assert allocator.poll("a", 0.6 + 2.0 + LEAST_EXPIRY_S, 8, 0) == 12


def test_a_count_that_never_falls_is_believed_for_a_while_only_and_not_a_second_time() -> None:
    allocator = FairShareAllocator(12)
    allocator.poll("stuck", 0.0, 12, 0)
    for second in range(1, int(RUN_OUT_S)):
        assert allocator.poll("stuck", float(second), 12, 0) == (12 if second == 1 else 6)
        assert allocator.poll("b", second + 0.5, 0, 0) is None
    allocator.poll("stuck", RUN_OUT_S + 3.0, 12, 0)
    assert allocator.poll("b", RUN_OUT_S + 3.5, 0, 0) == 6
    for second in range(20):
        assert allocator.poll("stuck", RUN_OUT_S + 4.0 + second, 12, 0) == 6
        assert allocator.poll("b", RUN_OUT_S + 4.5 + second, 6, 9) == 6
    assert allocator.in_use == 12


def test_no_client_gains_by_reporting_more_than_it_was_ever_given() -> None:
    allocator = FairShareAllocator(12)
    allocator.poll("a", 0.0, 10**9, 0)
    allocator.poll("b", 1.0, 10**9, 0)
    assert allocator.poll("a", 2.0, 10**9, 0) == 6
    assert allocator.in_use == 12


def test_a_waiting_look_tells_nothing_of_what_runs() -> None:
    allocator = FairShareAllocator(12)
    allocator.poll("a", 0.0, 12, 0)
    allocator.poll("b", 1.0, 0, 0)
    assert allocator.wait_on("a", 2.0) == 6
    assert allocator.wait_on("a", 3.0) == 6
    assert allocator.wait_on("b", 3.5) is None
    assert allocator.poll("a", 4.0, 6, 0) == 6
    assert allocator.wait_on("b", 4.5) == 6


def test_a_restart_remembers_what_still_runs() -> None:
    allocator = FairShareAllocator(12)
    for second in range(3):
        allocator.poll("a", float(second), 12, 0)
        allocator.poll("b", second + 0.5, 0, 0)
    after = FairShareAllocator(12)
    after.restore(allocator.held(), 100.0)
    assert after.poll("b", 100.5, 0, 0) is None
    assert after.poll("a", 101.0, 12, 0) == 6
    assert after.poll("b", 101.5, 0, 0) is None


@dataclass
class Gateway:
    """Starts what its share allows, reports, and applies an answer a moment later."""

    limit: int = 0
    running: int = 0
    answer: int | None = None  # on its way
    is_waiting: bool = False  # in a long poll, which ends with a change

    def start(self, wanted: int) -> None:
        self.running += max(0, min(wanted, self.limit - self.running))

    def hear(self) -> None:
        if self.answer is not None:
            self.limit, self.answer = self.answer, None

    def take(self, advertised: int | None, *, waits: bool) -> None:
        self.is_waiting = waits and (advertised or 0) == self.limit
        if not self.is_waiting:
            self.answer = advertised


STEP = st.tuples(
    st.sampled_from([0.05, 0.5, 1.0, 3.0]),
    st.sampled_from("abcdef"),
    st.sampled_from(["poll", "poll", "poll", "start", "start", "hear", "long poll", "wait on", "wait on"]),
    st.integers(0, 64),
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 64), st.lists(STEP, max_size=150))
def test_what_really_runs_never_exceeds_the_cap_where_clients_say_what_they_have(
    cap: int, steps: list[tuple[float, str, str, int]]
) -> None:
    """Answers arrive late, requests end when they like. Who is silent until it expires is gone, with its requests."""
    allocator, now_s, fleet, seen_s = (
        FairShareAllocator(cap),
        0.0,
        {name: Gateway() for name in "abcdef"},
        dict[str, float](),
    )
    for wait_s, name, what, count in steps:
        now_s += wait_s
        for other, last_s in seen_s.items():
            if now_s - last_s >= LEAST_EXPIRY_S:
                fleet[other] = Gateway()
        gateway = fleet[name]
        if what == "start":
            gateway.running = min(gateway.running, count)  # some have ended
            gateway.start(count)
        elif what == "hear":
            gateway.hear()
        elif what != "wait on":
            gateway.hear()  # it asks again only when the last answer has come
            gateway.take(allocator.poll(name, now_s, gateway.running, 0), waits=what == "long poll")
            seen_s[name] = now_s
            gateway.start(count)  # while the answer is on its way
        elif gateway.is_waiting:
            gateway.take(allocator.wait_on(name, now_s), waits=True)
            seen_s[name] = now_s
        running = sum(gateway.running for gateway in fleet.values())
        assert running <= max(cap, sum(gateway.running > 0 for gateway in fleet.values()))
        assert running <= allocator.in_use


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 64), st.lists(EVENT, max_size=60), st.integers(1, 8))
def test_whatever_happened_a_steady_fleet_has_the_whole_cap_within_two_rounds(
    cap: int, events: list[tuple[float, tuple[object, ...]]], count: int
) -> None:
    allocator, now_s = FairShareAllocator(cap), 0.0
    for wait_s, event in events:
        now_s += wait_s
        if event[0] == "cap":
            allocator.set_cap(int(str(event[1])), now_s)
        else:
            allocator.poll(str(event[1]), now_s)
    names = [f"steady{number}" for number in range(count)]
    for _ in range(400):  # the others expire meanwhile, whatever rhythm they had
        now_s += 1.0
        for name in names:
            now_s += 2 * GATHER_S / count
            allocator.poll(name, now_s)
    advertised = [share.requests for share in allocator.held()]
    assert len(advertised) == count
    assert sum(advertised) == max(allocator.cap, count)
    assert max(advertised) - min(advertised) <= 1
