"""Three calibrators on one database, whatever befalls them in whatever order: the promises of `service.replication`
hold.

Each rule lets something happen and time pass; the judgements are those of an onlooker who sees the engines and the
database, never what an instance believes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from structlog.testing import capture_logs
from support.fakes import Script, plan
from support.instances import Instance, Site
from support.virtual_time import VirtualLoop

from calibrator.core.admission.schedule import Schedule
from calibrator.core.publish.lease import LeasePolicy
from calibrator.core.publish.snapshot import BackendView
from calibrator.core.records.sweep import Grade
from calibrator.errors import ConfigurationError

FALLBACK = 8
POLICY = LeasePolicy(6.0)
OFTEN = Schedule(every_s=20.0, jitter_ratio=0.1)
SCRIPTS = [
    Script(40, takes_s=5.0),
    Script(20, takes_s=9.0),
    Script(80, grade=Grade.PROVISIONAL, certified=0, takes_s=7.0),  # may not raise
    Script(60, takes_s=12.0),
    Script(12, takes_s=3.0),
] * 40  # fmt: skip
WHICH = st.integers(0, 2)


class Instances(RuleBasedStateMachine):
    """`play` runs the loop; between two rules time stands still."""

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.logs = capture_logs()
        self.logs.__enter__()
        self.site = Site((plan(schedule=OFTEN),), {"chat": list(SCRIPTS)}, policy=POLICY)
        self.seats: list[Instance] = [self.play(self.site.start(name)) for name in ("a", "b", "c")]
        self.generation = 0

    def play(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(coroutine)

    def pass_time(self, seconds: float) -> None:
        self.play(asyncio.sleep(seconds))

    # ------------------------------------------------------------------------------------------- what may befall them
    @rule(seconds=st.sampled_from([0.3, 2.0, 5.0, 13.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.pass_time(seconds)

    @rule(which=WHICH, seconds=st.sampled_from([1.0, 4.5, 9.0]))
    def pause(self, which: int, seconds: float) -> None:
        self.seats[which].pause()
        self.pass_time(seconds)

    @rule(which=WHICH)
    def resume(self, which: int) -> None:
        self.seats[which].resume()
        self.pass_time(0.3)

    @rule(which=WHICH, seconds=st.sampled_from([1.0, 4.5, 9.0]))
    def cut_off(self, which: int, seconds: float) -> None:
        self.seats[which].cut_off()
        self.pass_time(seconds)

    @rule(which=WHICH)
    def reconnect(self, which: int) -> None:
        self.seats[which].reconnect()
        self.pass_time(1.0)

    @rule(which=WHICH, step_s=st.sampled_from([-3600.0, -5.0, 5.0, 3600.0]))
    def step_its_wall_clock(self, which: int, step_s: float) -> None:
        self.seats[which].clock.step_s = step_s

    @rule(which=WHICH, is_clean=st.booleans())
    def restart(self, *, which: int, is_clean: bool) -> None:
        old = self.seats[which]
        if old.store.failure is not None:
            return  # without a database it would not start
        self.play(old.stop() if is_clean else old.kill())
        self.generation += 1
        self.seats[which] = self.play(self.site.start(f"{old.name[0]}{self.generation}"))
        self.pass_time(1.0)

    # ----------------------------------------------------------------------------------------------------- judgements
    @invariant()
    def never_two_that_probe_one_backend(self) -> None:
        if hasattr(self, "site"):
            assert self.play(self._overlaps()) == []

    @invariant()
    def epochs_of_what_is_published_only_grow(self) -> None:
        if hasattr(self, "site"):
            assert self.site.epochs() == sorted(self.site.epochs())

    @invariant()
    def no_cap_is_raised_without_a_certified_sweep(self) -> None:
        if hasattr(self, "site"):
            assert self.site.unfounded_raises() == []

    @invariant()
    def a_cap_that_was_stored_is_served_or_a_lower_one(self) -> None:
        """Nobody serves more than was ever stored, and nobody serves nothing."""
        if hasattr(self, "site"):
            stored = {FALLBACK, *self.site.stored_caps()}
            for view in self.views():
                cap = view.recommendation.cap
                assert 1 <= cap <= max(stored)
                assert cap in stored or cap < max(self.site.stored_caps())

    def views(self) -> list[BackendView]:
        async def look() -> list[BackendView]:
            return [one.view() for one in self.seats]

        views: list[BackendView] = self.play(look())
        return views

    async def _ask(self) -> None:
        """At any instance; the schedule goes by wall clocks, which have stepped."""
        with contextlib.suppress(ConfigurationError):  # one runs, or is queued
            await self.seats[0].supervisor.request_sweep("chat", "test")

    async def _overlaps(self) -> list[Any]:
        return self.site.overlaps()

    def teardown(self) -> None:
        """When all is well again they agree, one leads, and it measures."""
        if not hasattr(self, "site"):
            return
        try:
            for one in self.seats:
                one.reconnect()
                one.resume()
            self.pass_time(4 * POLICY.lease_s)
            assert sum(view.lease_held for view in self.views()) == 1
            measured = len(self.site.log)
            self.play(self._ask())
            self.pass_time(120.0)
            assert len(self.site.log) > measured
            self.pass_time(2.0)
            versions = {view.recommendation.version for view in self.views()}
            assert len(versions) == 1 or max(versions) - min(versions) == 1, "one is just being published"
            self.play(self.site.close())
        finally:
            self.logs.__exit__(None, None, None)
            self.runner.close()


class TestInstances(Instances.TestCase):  # type: ignore[misc,name-defined] # made by hypothesis at run time
    settings = settings(
        max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
