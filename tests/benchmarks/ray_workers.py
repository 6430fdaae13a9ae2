"""The pool on a real Ray of this machine: `make test-ray`. Nothing leaves loopback.

Each test names the rule it proves; the figures of the last one are printed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import pytest
import ray
from support import worker_factories
from support.real_processes import is_alive, on_uvloop

from calibrator.core.generator_rating import SelfTest
from calibrator.core.publish.snapshot import Progress
from calibrator.core.records.history import Bounds
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sample import Label, Phase
from calibrator.core.records.sweep import SweepRecord
from calibrator.core.workload.classes import Workload, WorkloadClass
from calibrator.errors import ConfigurationError, GeneratorError
from calibrator.load.messages import WorkerFactory
from calibrator.load.pool import INDEX_SPACE, WorkerPool
from calibrator.load.processes import LocalLauncher, usable_cores
from calibrator.load.ray_workers import RayLauncher
from calibrator.load.selftest import StampServer, measure_level
from calibrator.ports.backend import BackendFacts
from calibrator.ports.load import Batch, LoadGenerator, LoadPlan
from calibrator.ports.sweeps import SweepOrder, Target
from calibrator.wiring.embedded import EmbeddedEngine
from calibrator.wiring.generator import closed_loop, node_selftest, refuse_slow
from calibrator.wiring.sweeps import sweep_runner

COUNTED = Label(1, Phase.COUNTED)
POLL_S = 0.05
TESTS = Path(__file__).parents[1]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One for all tests: it takes seconds to start."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(
        address="local",
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=100_000_000,
        runtime_env={"env_vars": {"PYTHONPATH": str(TESTS)}},
    )
    yield
    ray.shutdown()


async def untested() -> SelfTest:
    return SelfTest(1, ())


def anything(node: str, result: SelfTest) -> None:
    """Every node will do."""


def pool_of(make: WorkerFactory, most_workers: int = 2, place_s: float = 60.0, per_worker: int = 4) -> WorkerPool:
    launcher = RayLauncher("auto", place_s=place_s, node_test=untested, judge=anything)
    return WorkerPool(make, launcher, most_workers=most_workers, users_per_worker=per_worker)


async def until(pool: WorkerPool, condition: Callable[[Batch], bool], seconds: float = 60.0) -> list[Batch]:
    batches = []
    async with asyncio.timeout(seconds):
        while not batches or not condition(batches[-1]):
            await asyncio.sleep(0.02)
            batches.append(await pool.poll())
    return batches


def test_a_level_is_held_and_every_request_arrives_once() -> None:
    async def scenario() -> None:
        pool = pool_of(worker_factories.quick)
        await pool.start()
        try:
            pool.aim(8, COUNTED, 0.0)
            batches = await until(pool, lambda batch: batch.all_started and batch.in_flight == 8)
            assert batches[-1].processes == 2
            batches += await until(pool, lambda batch: batch.turned_over == 8)
            pool.aim(0, COUNTED, 0.0)
            batches += await until(pool, lambda batch: batch.all_started and batch.in_flight == 0)
            starts = [start.request_id for batch in batches for start in batch.started]
            ends = [sample.request_id for batch in batches for sample in batch.ended]
            assert sorted(starts) == sorted(ends)
            assert len(set(starts)) == len(starts)
            assert {request_id % INDEX_SPACE for request_id in starts} == {0, 1}
        finally:
            await pool.stop()

    on_uvloop(scenario)


def test_moments_are_told_in_our_clock() -> None:
    async def scenario() -> None:
        pool = pool_of(worker_factories.quick, most_workers=1)
        await pool.start()
        try:
            await until(pool, lambda batch: batch.processes == 1)
            before_s = time.monotonic()
            pool.aim(2, COUNTED, 0.0)
            batches = await until(pool, lambda batch: batch.turned_over == 2)
            after_s = time.monotonic()
            for start in (start for batch in batches for start in batch.started):
                assert before_s <= start.started_s <= after_s
        finally:
            await pool.stop()

    on_uvloop(scenario)


def test_a_death_breaks_one_batch_and_the_level_is_held_again() -> None:
    async def scenario() -> None:
        pool = pool_of(worker_factories.first_dies_loaded)
        await pool.start()
        try:
            pool.aim(2, COUNTED, 0.0)
            batches = await until(pool, lambda batch: bool(batch.broken))
            assert "died" in batches[-1].broken
            pool.aim(2, Label(2, Phase.RAMP), 0.0)
            batches = await until(pool, lambda batch: batch.all_started and batch.turned_over == 2)
            assert not any(batch.broken for batch in batches)
        finally:
            await pool.stop()

    on_uvloop(scenario)


def test_a_lost_actor_takes_its_worker_along() -> None:
    async def scenario() -> None:
        pool = pool_of(worker_factories.endless)
        await pool.start()
        try:
            pool.aim(2, COUNTED, 0.0)
            await until(pool, lambda batch: batch.in_flight == 2)
            (worker,) = workers()
            killed_s = time.monotonic()
            pool._seats[0].link.kill()
            await until(pool, lambda batch: bool(batch.broken), seconds=5.0)
            print(f"death of an actor seen after {time.monotonic() - killed_s:.3f} s")
            async with asyncio.timeout(5.0):
                while is_alive(worker):  # noqa: ASYNC110 - a process of somebody else
                    await asyncio.sleep(0.02)
        finally:
            await pool.stop()

    on_uvloop(scenario)


def test_stop_leaves_nothing_of_workers_that_do_not_leave() -> None:
    async def scenario() -> None:
        pool = pool_of(worker_factories.hung)
        await pool.start()
        pool.aim(2, COUNTED, 0.0)
        await until(pool, lambda batch: batch.in_flight == 2)
        await pool.stop()
        async with asyncio.timeout(5.0):
            while workers():  # noqa: ASYNC110 - processes of somebody else
                await asyncio.sleep(0.02)

    on_uvloop(scenario)


def test_what_a_worker_has_to_say_about_its_configuration_arrives() -> None:
    async def scenario() -> None:
        pool = pool_of(worker_factories.misconfigured)
        await pool.start()
        try:
            with pytest.raises(ConfigurationError, match=r"The cause\. The remedy\."):
                await until(pool, lambda _: False)
        finally:
            await pool.stop()

    on_uvloop(scenario)


def test_more_workers_than_cores_is_an_error_with_a_remedy() -> None:
    async def scenario() -> None:
        pool = pool_of(worker_factories.endless, most_workers=5, place_s=6.0)
        await pool.start()
        try:
            pool.aim(20, COUNTED, 0.0)
            with pytest.raises(GeneratorError, match=r"free core within 6 s.*load\.workers"):
                await until(pool, lambda _: False)
        finally:
            await pool.stop()

    on_uvloop(scenario)


def test_a_node_is_tested_once_and_refused_by_name_if_it_is_too_slow() -> None:
    async def scenario() -> None:
        seen: list[tuple[str, SelfTest]] = []

        def judge(node: str, result: SelfTest) -> None:
            seen.append((node, result))
            refuse_slow(0.5, node, result)

        launcher = RayLauncher("auto", place_s=60.0, node_test=node_selftest, judge=judge)
        links = await asyncio.gather(*(launcher.launch(lambda _: None, lambda: None) for _ in range(2)))
        for link in links:
            link.kill()
            await link.let_go()
        ((node, result),) = seen
        assert result.levels[0].streams == 64
        print(f"node {node}: {result}")
        strict = RayLauncher("auto", place_s=60.0, node_test=node_selftest, judge=partial(refuse_all, node))
        with pytest.raises(GeneratorError, match=f"Node {node} is too slow"):
            await strict.launch(lambda _: None, lambda: None)

    on_uvloop(scenario)


def refuse_all(expected: str, node: str, result: SelfTest) -> None:
    assert node == expected
    raise GeneratorError(f"Node {node} is too slow to measure with: {result.cores} cores.", "")


def test_figures_beside_the_pool_of_one_machine() -> None:
    """Same server, same streams. The added latency is a moment here, told in our clock: with Ray it contains what the
    fastest report of a worker took, which must be far below a poll. Durations know nothing of it.
    """
    streams = 128

    def order(port: int) -> SweepOrder:
        return SweepOrder(
            "s", "b", Target(f"http://127.0.0.1:{port}/v1", "s"), (parse_objective("ttft p99 <= 500ms"),),
            Workload((WorkloadClass("default", 1.0, 256, 24),)), Bounds(), seed=1, levels=(streams,),
        )  # fmt: skip

    def make(kind: str, port: int) -> LoadGenerator:
        facts = BackendFacts("s", worker_factories.FACTS.token_scale, forces_length=True)
        launcher = (
            LocalLauncher()
            if kind == "processes"
            else RayLauncher("auto", place_s=60.0, node_test=untested, judge=anything)
        )
        factory = partial(closed_loop, order(port), facts)
        return WorkerPool(factory, launcher, most_workers=2, expected_users=streams)

    async def scenario() -> None:
        added_p99_s: dict[str, list[float]] = {"processes": [], "ray": []}
        async with StampServer() as server:
            for kind in ("processes", "ray") * 2:
                level = await measure_level(server, make(kind, server.port), streams, 4.0, time.monotonic)
                print(f"{kind:>10}: {level}")
                assert level.held == pytest.approx(streams, rel=0.05)
                assert level.added_latency_p99_s is not None
                added_p99_s[kind].append(level.added_latency_p99_s)
        assert median(added_p99_s["ray"]) - median(added_p99_s["processes"]) < POLL_S
        print({kind: f"{median(values) * 1e3:.2f} ms" for kind, values in added_p99_s.items()}, usable_cores(), "cores")

    on_uvloop(scenario)


class Listener:
    def progress(self, progress: Progress) -> None: ...

    def partial(self, record: SweepRecord) -> None: ...


def test_a_whole_sweep_in_a_process_of_its_own_as_the_service_runs_it() -> None:
    async def scenario() -> None:
        plan = LoadPlan(kind="ray", most_workers=2, ray_address=ray.get_runtime_context().gcs_address)
        async with EmbeddedEngine("small") as url:
            order = SweepOrder(
                "s", "b", Target(f"{url}/v1", "simulated"), (parse_objective("ttft p99 <= 10s"),),
                Workload((WorkloadClass("short", 1.0, 64, 16),)), Bounds(), seed=1, levels=(8, 96),
                requests_per_level=200,
            )  # fmt: skip
            begun_s = time.monotonic()
            record = await sweep_runner(plan).run(order, Listener())
            print(f"sweep of {record.requests} requests on Ray: {time.monotonic() - begun_s:.1f} s, {record.reason}")
            assert [level.n for level in record.levels] == [200, 200]
            assert [level.audit.reasons for level in record.levels] == [(), ()]
            running = asyncio.create_task(sweep_runner(plan).run(replace(order, requests_per_level=10**6), Listener()))
            async with asyncio.timeout(60.0):
                while not workers():  # noqa: ASYNC110 - processes of somebody else
                    await asyncio.sleep(0.1)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            async with asyncio.timeout(5.0):
                while workers():  # noqa: ASYNC110 - processes of somebody else
                    await asyncio.sleep(0.02)

    on_uvloop(scenario)


def workers() -> list[int]:
    """Worker processes on this machine that descend from a Ray actor."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, parent = (path / "cmdline").read_bytes(), (path / "stat").read_text().rsplit(")", 1)[1].split()[1]
            above = Path(f"/proc/{parent}/cmdline").read_bytes()
        except OSError:
            continue
        if b"calibrator.load.worker" in command and b"ray::" in above and is_alive(int(path.name)):
            found.append(int(path.name))
    return found
