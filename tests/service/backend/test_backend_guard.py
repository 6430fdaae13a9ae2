"""The watch over live users, look by look: what counts, what does not, and what it asks for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest

from calibrator.core.live.change_test import GuardAction, GuardEvent, GuardPolicy, GuardReason
from calibrator.core.publish.fleet import FleetLook, ReplicaLook
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.server_load import Histogram, ServerLoad
from calibrator.service.backend.guard import GuardWatch

POLICY = GuardPolicy(settle_s=30.0, clean_s=120.0)
OBJECTIVES = (parse_objective("ttft p99 <= 400ms"),)
BOUNDS_S = (0.25, 0.5, 1.0, math.inf)


@dataclass
class Engine:
    """One replica: so many requests a second, a share of them above the 500 ms bound."""

    per_second: float = 4.0
    slow_ratio: float = 0.0
    running: float = 9.0
    waiting: float = 0.0
    process_start: str = "1"
    shows_histograms: bool = True
    fast: float = 0.0
    slow: float = 0.0
    tokens: float = 0.0

    def second(self) -> None:
        self.fast += self.per_second * (1.0 - self.slow_ratio)
        self.slow += self.per_second * self.slow_ratio
        self.tokens += self.per_second * 10.0

    def restart(self) -> None:
        self.fast = self.slow = self.tokens = 0.0
        self.process_start += "1"

    def load(self) -> ServerLoad:
        total = self.fast + self.slow
        histogram = Histogram(BOUNDS_S, (self.fast / 2, self.fast, self.fast, total))
        return ServerLoad(
            "vllm",
            running_requests=self.running,
            waiting_requests=self.waiting,
            process_start=self.process_start,
            finished_total=total,
            output_tokens_total=self.tokens,
            ttft_s=histogram if self.shows_histograms else None,
        )


@dataclass
class Bench:
    """A watch and the engines it looks at, second by second."""

    engines: dict[str, Engine] = field(default_factory=lambda: {"a": Engine()})
    policy: GuardPolicy = POLICY
    cap: int = 10
    replica_cap: int = 10
    time_s: float = 1000.0
    silent: set[str] = field(default_factory=set)  # do not answer
    watch: GuardWatch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = GuardWatch(self.policy, OBJECTIVES)

    @property
    def engine(self) -> Engine:
        return self.engines["a"]

    def looks(self, seconds: float, *, probes: int = 0, **more: Any) -> Iterator[tuple[float, GuardEvent]]:
        began_s = self.time_s
        while self.time_s < began_s + seconds:
            self.time_s += 1.0
            for engine in self.engines.values():
                engine.second()
            replicas = tuple(
                ReplicaLook(url, None if url in self.silent else engine.load(), probes)
                for url, engine in self.engines.items()
            )
            look = FleetLook(self.time_s, self.time_s, replicas, self.cap, self.replica_cap)
            if (event := self.watch.observe(look, **more)) is not None:
                yield self.time_s - began_s, event

    def events(self, seconds: float, **more: Any) -> list[GuardEvent]:
        return [event for _, event in self.looks(seconds, **more)]


def test_a_breach_near_the_cap_is_cut_within_a_minute_and_named() -> None:
    bench = Bench()
    assert bench.events(600.0) == []
    bench.engine.slow_ratio = 0.25
    after_s, event = next(bench.looks(180.0))
    assert after_s <= 60.0
    assert (event.action, event.reason, event.wants_sweep) == (GuardAction.CUT, GuardReason.LATENCY, True)
    assert event.words == (
        "live requests break ttft p99 <= 400ms (counted above 500ms) with 90% of the cap in flight"
    )  # fmt: skip
    assert bench.watch.view().bounds_s == {"ttft p99 <= 400ms": 0.5}


def test_a_cut_settles_before_the_next_and_one_sweep_is_asked_for_in_an_hour() -> None:
    bench = Bench()
    bench.engine.slow_ratio = 0.25
    cuts = list(bench.looks(900.0))
    times_s = [after_s for after_s, _ in cuts]
    assert len(cuts) > 5
    assert min(b - a for a, b in pairwise(times_s)) > POLICY.settle_s
    assert [event.wants_sweep for _, event in cuts] == [True] + [False] * (len(cuts) - 1)
    assert any(event.wants_sweep for event in bench.events(3600.0))
    assert bench.watch.trips[GuardReason.LATENCY] > len(cuts)


def test_far_below_the_cap_the_breach_is_reported_once_and_ends_when_it_is_over() -> None:
    bench = Bench(engines={"a": Engine(running=3.0, slow_ratio=0.25)})
    (event,) = bench.events(900.0)
    assert (event.action, event.wants_sweep) == (GuardAction.REPORT, False)
    assert "only 30%" in event.words
    view = bench.watch.view()
    assert (view.breach_reason, view.trips["breach_not_concurrency"], view.trips["latency"]) == ("latency", 1, 0)
    assert view.breach_since is not None
    bench.engine.slow_ratio = 0.0
    assert bench.events(400.0) == []
    assert bench.watch.view().breach_reason is None


def test_what_happened_far_below_the_cap_an_hour_ago_does_not_excuse_a_breach_near_it() -> None:
    bench = Bench(engines={"a": Engine(running=2.0, slow_ratio=0.004)})
    assert bench.events(3600.0) == []
    bench.engine.running, bench.engine.slow_ratio = 9.0, 0.25
    ((_, event), *_) = bench.looks(120.0)
    assert event.action is GuardAction.CUT


def test_the_way_back_goes_by_clean_periods_and_only_when_guarded() -> None:
    bench = Bench()
    assert bench.events(600.0, is_guarded=False) == []
    steps = list(bench.looks(600.0, is_guarded=True))
    assert {event.action for _, event in steps} == {GuardAction.RAISE}
    assert len(steps) == 5
    bench.engine.slow_ratio = 0.02  # too few for an alarm soon, too many to be clean: the null allows 0.75 %
    bench.events(120.0, is_guarded=True)  # the end of a period that was still clean on the whole
    assert GuardAction.RAISE not in [event.action for event in bench.events(600.0, is_guarded=True)]


def test_without_traffic_nothing_is_clean() -> None:
    bench = Bench(engines={"a": Engine(per_second=0.0, running=0.0)})
    assert bench.events(3600.0, is_guarded=True) == []


@pytest.mark.parametrize("pause", [{"is_sweeping": True}, {"probes": 4}])
def test_intervals_with_probes_never_count_nor_does_a_residence_after(pause: dict[str, Any]) -> None:
    bench = Bench(engines={"a": Engine(running=9.0, per_second=0.2)})  # residence 45 s
    assert bench.events(600.0) == []
    bench.engine.per_second, bench.engine.slow_ratio = 4.0, 1.0
    assert bench.events(300.0, **pause) == []
    bench.engine.slow_ratio = 0.0
    assert bench.events(2000.0) == [], "what the probes did is forgotten"


def test_what_is_still_slow_right_after_the_probes_does_not_count() -> None:
    bench = Bench()
    assert bench.events(60.0) == []
    bench.engine.slow_ratio = 1.0
    assert bench.events(60.0, probes=4) == []
    assert bench.events(9.0) == []  # the last of them had our probes beside them
    bench.engine.slow_ratio = 0.0
    assert bench.events(900.0) == []


def test_a_frozen_page_missing_scrapes_and_restarts_raise_no_alarm() -> None:
    bench = Bench()
    assert bench.events(60.0) == []
    bench.engine.per_second = 0.0  # frozen: 9 are said to run, nothing changes
    assert bench.events(3600.0) == []
    bench.silent = {"a"}
    assert bench.events(600.0, is_guarded=True) == []
    bench.silent = set()
    bench.engine.slow = 1e6  # while it did not answer
    assert bench.events(60.0) == []
    for _ in range(20):
        bench.engine.restart()
        bench.engine.slow = 500.0  # counted by the new process before we looked
        assert bench.events(5.0) == []


def test_replicas_of_other_counters_are_never_mixed() -> None:
    engines = {"a": Engine(running=4.0), "b": Engine(running=4.0, slow=1e6, fast=1e3)}
    bench = Bench(engines=engines, cap=20)
    assert bench.events(60.0) == []
    moved = {"c": engines["b"], "b": engines["a"]}  # a name server moved the names
    bench.engines = moved
    assert bench.events(600.0) == []


def test_one_slow_replica_of_four_near_its_own_cap_is_enough() -> None:
    engines = {name: Engine(running=2.0) for name in "bcd"} | {"a": Engine(running=9.0, slow_ratio=0.25)}
    bench = Bench(engines=engines, cap=40)
    (event, *_) = bench.events(300.0)
    assert event.action is GuardAction.CUT


def test_a_hanging_engine_is_noticed_and_no_sweep_asked_for() -> None:
    bench = Bench(engines={"a": Engine(running=4.0)})
    assert bench.events(120.0) == []
    bench.engine.per_second = 0.0
    for waiting in range(6):
        bench.engine.waiting = float(waiting)
        assert bench.events(5.0) == []
    (after_s, event), *_ = bench.looks(120.0)
    assert 20.0 <= after_s <= 40.0
    assert (event.action, event.reason, event.wants_sweep) == (GuardAction.CUT, GuardReason.NO_COMPLETIONS, False)


def test_without_histograms_a_lasting_queue_below_the_cap_is_the_signal() -> None:
    bench = Bench(engines={"a": Engine(shows_histograms=False, running=6.0, waiting=0.0)})
    assert bench.events(600.0) == []
    bench.engine.waiting = 2.0
    assert bench.events(100.0, queue_allowed=2.0) == [], "such a queue was certified"
    (after_s, event), *_ = bench.looks(300.0)
    assert 115.0 <= after_s <= 125.0
    assert (event.action, event.reason) == (GuardAction.CUT, GuardReason.QUEUE)
    bench.cap = bench.replica_cap = 8
    bench.engine.waiting = 0.0
    assert GuardAction.RAISE in [event.action for event in bench.events(300.0, is_guarded=True)]


def test_with_histograms_a_queue_is_no_signal() -> None:
    bench = Bench(engines={"a": Engine(running=6.0, waiting=2.0)})
    assert bench.events(3600.0) == []


def test_a_new_calibration_voids_what_was_counted_before() -> None:
    bench = Bench()
    bench.engine.slow_ratio = 0.25
    first_s = next(bench.looks(300.0))[0]
    again = Bench()
    again.engine.slow_ratio = 0.25
    assert again.events(first_s - 1.0) == []
    again.watch.reset()
    assert next(again.looks(300.0))[0] > first_s / 2


def test_looks_far_apart_or_out_of_order_do_not_count() -> None:
    bench = Bench()
    bench.engine.slow_ratio = 0.5
    for _ in range(200):
        bench.time_s += 60.0
        assert bench.events(1.0) == []
    bench.time_s -= 100.0
    assert bench.events(1.0) == []


def test_switched_off_it_says_nothing() -> None:
    bench = Bench(policy=replace(POLICY, enabled=False))
    bench.engine.slow_ratio = 1.0
    assert bench.events(600.0) == []
    assert not bench.watch.view().is_watching
