"""The pool's hand on other machines, without Ray: real worker processes behind an `Outpost`, Ray itself is a fake.

The same on a real Ray: `make test-ray`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import worker_factories
from support.fake_ray import FakeRay, RayError, never
from support.real_processes import on_uvloop

from calibrator.core.generator_rating import SelfTest, SelfTestLevel
from calibrator.core.records.history import Bounds
from calibrator.core.records.sample import Label, Phase
from calibrator.core.workload.classes import TokenScale, Workload
from calibrator.errors import CalibratorError, ConfigurationError, GeneratorError
from calibrator.load.messages import WorkerFactory
from calibrator.load.pool import WorkerPool
from calibrator.load.processes import LocalLink
from calibrator.load.ray_outpost import Outpost
from calibrator.load.ray_workers import RayLauncher, _translated
from calibrator.ports.backend import BackendFacts
from calibrator.ports.load import Batch, LoadPlan
from calibrator.ports.sweeps import SweepOrder, Target
from calibrator.wiring.generator import generator, refuse_slow, require_parts

COUNTED = Label(1, Phase.COUNTED)


def level(held: float = 64.0, added_p99_s: float | None = 0.001) -> SelfTestLevel:
    return SelfTestLevel(64, 1, held, 3200.0, 3200.0, None, added_p99_s, 20.0, 0.0)


async def quick_node() -> SelfTest:
    return SelfTest(2, (level(),))


async def broken_node() -> SelfTest:
    raise GeneratorError("The server of the self-test died.", "See its traceback above.")


class Place(Outpost):
    """An outpost on a machine of another name."""

    def __init__(self, name: str = "node", release: str | None = None) -> None:
        super().__init__()
        self._name = name
        self._release = release

    async def place(self) -> tuple[str, str]:
        _, release = await super().place()
        return self._name, self._release or release


class Full(Outpost):
    async def place(self) -> tuple[str, str]:
        await never()
        raise AssertionError


class Judge:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, node: str, result: SelfTest) -> None:
        assert result.levels == (level(),)
        self.seen.append(node)


def launcher_on(ray: FakeRay, judge: Callable[[str, SelfTest], None], node_test: Any = quick_node) -> RayLauncher:
    launcher = RayLauncher("auto", place_s=0.2, node_test=node_test, judge=judge)
    launcher._ray = ray
    return launcher


class Pool:
    """Over actors on `places`, one after the other."""

    def __init__(self, make: WorkerFactory, *places: str) -> None:
        names = iter(places)
        self.judge = Judge()
        self.ray = FakeRay(lambda: Place(next(names)))
        launcher = launcher_on(self.ray, self.judge)
        self.pool = WorkerPool(make, launcher, most_workers=2, users_per_worker=4)

    async def until(self, condition: Callable[[Batch], bool], seconds: float = 120.0) -> list[Batch]:
        batches: list[Batch] = []
        async with asyncio.timeout(seconds):
            while not batches or not condition(batches[-1]):
                await asyncio.sleep(0.02)
                batches.append(await self.pool.poll())
        return batches


def children(ray: FakeRay) -> list[int]:
    pids = [actor.inner._link.process.pid for actor in ray.actors if isinstance(actor.inner._link, LocalLink)]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_level_is_held_over_nodes_and_each_node_is_tested_once() -> None:
    async def scenario() -> None:
        pool = Pool(worker_factories.quick, "a", "a", "b")
        await pool.pool.start()
        try:
            pool.pool.aim(8, COUNTED, 0.0)
            batches = await pool.until(lambda batch: batch.all_started and batch.turned_over == 8)
            assert batches[-1].processes == 2
            assert pool.judge.seen == ["a"]
            assert pool.ray.options == [{"num_cpus": 1, "max_restarts": 0, "scheduling_strategy": "SPREAD"}] * 2
        finally:
            await pool.pool.stop()
        assert children(pool.ray) == []

    on_uvloop(scenario)


@pytest.mark.parametrize("how", ["actor", "worker"])
def test_a_death_on_another_machine_breaks_one_batch_and_the_level_is_held_again(how: str) -> None:
    async def scenario() -> None:
        pool = Pool(worker_factories.endless, "a", "a", "b")
        await pool.pool.start()
        try:
            pool.pool.aim(2, COUNTED, 0.0)
            await pool.until(lambda batch: batch.in_flight == 2)
            victim = pool.ray.actors[0]
            if how == "actor":
                pool.ray.kill(victim)
            else:
                victim.inner._link.process.kill()
            assert "died" in (await pool.until(lambda batch: bool(batch.broken)))[-1].broken
            batches = await pool.until(lambda batch: batch.all_started and batch.in_flight == 2)
            assert not any(batch.broken for batch in batches)
            if how == "actor":  # no process of Ray's here that would end with it
                victim.inner._link.process.kill()
                victim.inner._link.process.wait()
        finally:
            await pool.pool.stop()

    on_uvloop(scenario)


def test_what_a_worker_says_last_is_heard_before_its_loss() -> None:
    async def scenario() -> None:
        pool = Pool(worker_factories.misconfigured, "a")
        await pool.pool.start()
        try:
            with pytest.raises(ConfigurationError, match=r"The cause\. The remedy\."):
                await pool.until(lambda _: False)
        finally:
            await pool.pool.stop()

    on_uvloop(scenario)


async def launch(launcher: RayLauncher) -> None:
    await launcher.launch(lambda _: None, lambda: None)


def refuse(node: str, result: SelfTest) -> None:
    refuse_slow(0.01, node, SelfTest(result.cores, (level(added_p99_s=0.030),)))


@pytest.mark.parametrize(
    ("outpost", "judge", "node_test", "error", "words"),
    [
        # an autoscaler that brings no node in time
        (Full, Judge(), quick_node, GeneratorError, "had a free core within 0.2 s"),
        # an image of another release
        (lambda: Place("a", "9.9"), Judge(), quick_node, ConfigurationError, r"Node a runs calibrator 9\.9"),
        # a node whose own error is material
        (lambda: Place("a"), refuse, quick_node, GeneratorError, r"Node a is too slow.*adds 30\.0 ms.*5\.0 ms are"),
        # a node that cannot even be tested
        (lambda: Place("a"), Judge(), broken_node, GeneratorError, "server of the self-test died"),
    ],
)
def test_a_worker_that_must_not_run_is_refused_with_the_reason_and_nothing_is_left(
    outpost: Callable[[], Outpost], judge: Any, node_test: Any, error: type[CalibratorError], words: str
) -> None:
    async def scenario() -> None:
        ray = FakeRay(outpost)
        launcher = launcher_on(ray, judge, node_test)
        with pytest.raises(error, match=words):
            await launch(launcher)
        await launcher.close()
        assert all(actor.died.is_set() for actor in ray.actors)
        assert children(ray) == []

    asyncio.run(scenario())


def test_stop_does_not_wait_for_a_core_that_never_comes_free() -> None:
    async def scenario() -> None:
        ray = FakeRay(Full)
        launcher = RayLauncher("auto", place_s=3600.0, node_test=quick_node, judge=Judge())
        launcher._ray = ray
        pool = WorkerPool(worker_factories.quick, launcher, most_workers=1)
        await pool.start()
        await asyncio.sleep(0)
        async with asyncio.timeout(30.0):
            await pool.stop()
        assert all(actor.died.is_set() for actor in ray.actors)

    on_uvloop(scenario)


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("ModuleNotFoundError: No module named 'calibrator'", ConfigurationError, "cannot import calibrator"),
        ("The actor died.\nThe node was lost.", GeneratorError, "could not start a worker: The node was lost"),
    ],
)
def test_what_ray_says_is_translated(said: str, kind: type[CalibratorError], words: str) -> None:
    error = _translated(RayError(said))
    assert isinstance(error, kind)
    assert words in str(error)


def test_without_the_extra_all_else_works_and_choosing_ray_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    require_parts(LoadPlan())
    with pytest.raises(ConfigurationError, match=r"pip install 'calibrator\[ray\]'"):
        require_parts(LoadPlan(kind="ray"))


def test_the_plan_chooses_where_workers_run() -> None:
    order = SweepOrder(
        "s",
        "b",
        Target("http://127.0.0.1:9/v1", "m"),
        worker_factories.OBJECTIVES,
        Workload(),
        Bounds(max_level=512),
        1,
    )
    facts = BackendFacts("m", TokenScale(), forces_length=True)
    far = generator(order, facts, LoadPlan(kind="ray"))
    assert isinstance(far, WorkerPool)
    assert isinstance(far._launcher, RayLauncher)
    assert far._most_workers == 8, "as many as the highest level needs: the cluster's cores are not ours to count"
    few = generator(order, facts, LoadPlan(kind="ray", most_workers=3))
    assert isinstance(few, WorkerPool)
    assert few._most_workers == 3
