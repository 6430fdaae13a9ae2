"""The pool: users dealt over processes, nothing lost on the way, death seen, and no worker survives its pool."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest
from support import worker_factories
from support.real_processes import is_alive, on_uvloop, with_the_tests

from calibrator.core.records.history import Bounds
from calibrator.core.records.sample import Label, Phase
from calibrator.core.workload.classes import TokenScale, Workload
from calibrator.errors import ConfigurationError, GeneratorError
from calibrator.load.closed_loop import ClosedLoop
from calibrator.load.messages import Aim, Channel, Ready, WorkerFactory
from calibrator.load.pool import INDEX_SPACE, MOST_DEATHS, WorkerPool
from calibrator.load.processes import LocalLauncher, usable_cores
from calibrator.ports.backend import BackendFacts
from calibrator.ports.load import Batch, LoadPlan
from calibrator.ports.sweeps import SweepOrder, Target
from calibrator.wiring.generator import generator

COUNTED = Label(1, Phase.COUNTED)


def children() -> list[int]:
    """Worker processes of this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            command = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == os.getpid() and b"calibrator.load.worker" in command:
            found.append(int(path.name))
    return found


class Watched:
    """A pool whose batches are kept."""

    def __init__(
        self, make: WorkerFactory, most_workers: int = 2, expected_users: int = 1, per_worker: int = 4
    ) -> None:
        self.pool = WorkerPool(
            make, LocalLauncher(), most_workers=most_workers, expected_users=expected_users, users_per_worker=per_worker
        )
        self.batches: list[Batch] = []

    async def __aenter__(self) -> Self:
        await self.pool.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pool.stop()

    async def until(self, condition: Callable[[Batch], bool], seconds: float = 120.0) -> Batch:
        async with asyncio.timeout(seconds):
            while True:
                batch = await self.pool.poll()
                self.batches.append(batch)
                if condition(batch):
                    return batch
                await asyncio.sleep(0.02)

    async def settled(self, users: int) -> Batch:
        return await self.until(lambda batch: batch.all_started and batch.in_flight == users)


def test_a_level_is_held_by_as_many_processes_as_it_needs() -> None:
    async def scenario() -> None:
        async with Watched(worker_factories.endless, most_workers=3) as watched:
            watched.pool.aim(2, COUNTED, 0.0)
            assert (await watched.settled(2)).processes == 1
            watched.pool.aim(10, COUNTED, 0.0)
            batch = await watched.settled(10)
            assert batch.processes == 3
            ids = {start.request_id % INDEX_SPACE for batch in watched.batches for start in batch.started}
            assert ids == {0, 1, 2}
            assert len(children()) == 3
        assert children() == []

    on_uvloop(scenario)


def test_workers_are_ready_before_the_ramp_needs_them() -> None:
    async def scenario() -> None:
        async with Watched(worker_factories.quick, most_workers=8) as watched:
            watched.pool.aim(4, COUNTED, 0.0)  # one worker is enough, the next level will want two
            await watched.until(lambda batch: batch.processes == 2)
            watched.pool.aim(8, Label(2, Phase.RAMP), 0.0)
            await watched.settled(8)
            assert len(children()) == 4

    on_uvloop(scenario)


def test_a_jump_beyond_what_is_ready_waits_for_its_workers_instead_of_overloading_one() -> None:
    async def scenario() -> None:
        async with Watched(worker_factories.endless) as watched:
            await watched.until(lambda batch: batch.processes == 1)
            watched.pool.aim(8, COUNTED, 0.0)
            await watched.settled(8)
            first = [batch for batch in watched.batches if batch.processes == 1]
            assert all(batch.in_flight <= 4 and not (batch.all_started and batch.in_flight) for batch in first)

    on_uvloop(scenario)


def test_no_user_moves_between_workers_that_live() -> None:
    async def scenario() -> None:
        async with Watched(worker_factories.endless, expected_users=8) as watched:
            await watched.until(lambda batch: batch.processes == 2)
            for stage, users in enumerate((4, 6, 8)):
                watched.pool.aim(users, Label(stage, Phase.RAMP), 0.0)
                await watched.settled(users)
            starts = [start.request_id for batch in watched.batches for start in batch.started]
            assert len(starts) == 8, "endless answers: each user started once and was never ended by a move"

    on_uvloop(scenario)


def test_every_request_arrives_once_and_in_order() -> None:
    async def scenario() -> None:
        async with Watched(worker_factories.quick) as watched:
            watched.pool.aim(8, COUNTED, 0.0)
            await watched.until(lambda _: sum(len(batch.ended) for batch in watched.batches) >= 400)
            watched.pool.aim(0, COUNTED, 0.0)
            await watched.until(lambda batch: batch.all_started and batch.in_flight == 0)
            await watched.until(lambda _: True)
            seen: dict[int, str] = {}
            for batch in watched.batches:
                for start in batch.started:
                    assert start.request_id not in seen
                    seen[start.request_id] = "s"
                for bit in batch.decided:
                    seen[bit.request_id] += "d"
                for sample in batch.ended:
                    seen[sample.request_id] += "e"
            assert set(seen.values()) == {"sde"}
            for index in (0, 1):
                mine = sorted(key // INDEX_SPACE for key in seen if key % INDEX_SPACE == index)
                assert mine == list(range(len(mine))), "no request of a worker is missing"

    on_uvloop(scenario)


def test_reports_from_before_an_aim_do_not_end_the_warm_up_of_the_next_level() -> None:
    async def scenario() -> None:
        async with Watched(worker_factories.quick) as watched:
            watched.pool.aim(3, Label(1, Phase.RAMP), 0.0)
            await watched.until(lambda batch: batch.all_started and batch.turned_over == 3)
            watched.pool.aim(4, Label(2, Phase.RAMP), 0.0)
            stale = await watched.pool.poll()
            assert not stale.all_started
            assert stale.turned_over == 0
            await watched.until(lambda batch: batch.all_started and batch.turned_over == 4)

    on_uvloop(scenario)


def test_a_death_breaks_one_batch_and_the_level_is_held_again() -> None:
    async def scenario() -> None:
        async with Watched(worker_factories.first_dies_loaded) as watched:
            watched.pool.aim(2, COUNTED, 0.0)
            batch = await watched.until(lambda batch: bool(batch.broken))
            assert "died" in batch.broken
            watched.pool.aim(2, Label(2, Phase.RAMP), 0.0)
            await watched.until(lambda batch: batch.all_started and batch.turned_over == 2)
            assert [batch.broken for batch in watched.batches if batch.broken] == [
                "a worker process of the load generator died"
            ]
            assert {start.request_id % INDEX_SPACE for start in watched.batches[-1].started} <= {1}

    on_uvloop(scenario)


def test_a_worker_that_lives_without_a_word_is_replaced() -> None:
    async def scenario() -> None:
        async with Watched(worker_factories.first_freezes) as watched:
            watched.pool.aim(2, COUNTED, 0.0)
            await watched.until(lambda batch: bool(batch.broken))
            await watched.until(lambda batch: batch.all_started and batch.turned_over == 2)
            assert len(children()) == 1

    on_uvloop(scenario)


@pytest.mark.parametrize(
    ("levels", "max_level", "kind"),
    [((), 64, ClosedLoop), ((), 512, WorkerPool), ((8, 32), 512, ClosedLoop), ((8, 256), 16, WorkerPool)],
)
def test_few_streams_need_no_processes(levels: tuple[int, ...], max_level: int, kind: type) -> None:
    order = SweepOrder(
        "s", "b", Target("http://127.0.0.1:9/v1", "m"), worker_factories.OBJECTIVES, Workload(),
        Bounds(max_level=max_level), seed=1, levels=levels,
    )  # fmt: skip
    load = generator(order, BackendFacts("m", TokenScale(), forces_length=True), LoadPlan())
    assert isinstance(load, kind if usable_cores() > 1 else ClosedLoop)


def test_death_upon_death_is_an_error_of_ours() -> None:
    async def scenario() -> None:
        async with Watched(worker_factories.dies_at_start) as watched:
            watched.pool.aim(1, COUNTED, 0.0)
            with pytest.raises(GeneratorError, match=f"died {MOST_DEATHS + 1} times"):
                await watched.until(lambda _: False)
        assert children() == []

    on_uvloop(scenario)


def test_what_a_worker_has_to_say_about_its_configuration_arrives() -> None:
    async def scenario() -> None:
        async with Watched(worker_factories.misconfigured) as watched:
            with pytest.raises(ConfigurationError, match=r"The cause\. The remedy\."):
                await watched.until(lambda _: False)

    on_uvloop(scenario)


@pytest.mark.parametrize("make", [worker_factories.deaf, worker_factories.hung])
def test_stop_does_not_wait_for_a_worker_that_does_not_leave(make: WorkerFactory) -> None:
    async def scenario() -> None:
        async with Watched(make) as watched:
            watched.pool.aim(2, COUNTED, 0.0)
            await watched.settled(2)
        assert children() == []

    on_uvloop(scenario)


def test_stop_before_any_worker_is_ready_leaves_nothing() -> None:
    async def scenario() -> None:
        async with Watched(worker_factories.quick, expected_users=8) as watched:
            watched.pool.aim(8, COUNTED, 0.0)
        assert children() == []

    on_uvloop(scenario)


ORPHAN = """
import asyncio, sys
from support import worker_factories
from calibrator.core.records.history import Bounds
from calibrator.core.records.sample import Label, Phase
from calibrator.core.workload.classes import TokenScale, Workload
from calibrator.load.pool import WorkerPool
from calibrator.load.processes import LocalLauncher

async def main():
    pool = WorkerPool(worker_factories.endless, LocalLauncher(), most_workers=2, expected_users=8, users_per_worker=4)
    await pool.start()
    pool.aim(8, Label(1, Phase.COUNTED), 0.0)
    while (await pool.poll()).in_flight < 8:
        await asyncio.sleep(0.02)
    print(*(seat.link.process.pid for seat in pool._seats), flush=True)
    await worker_factories.forever()

asyncio.run(main())
"""


def test_workers_end_when_their_pool_is_killed() -> None:
    tests = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", ORPHAN],
        cwd=tests,
        stdout=subprocess.PIPE,
        env=with_the_tests(),
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 120.0
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, "a worker outlived its pool"
        time.sleep(0.02)


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_messages_are_the_same_whatever_the_split(size: int) -> None:
    heard: list[object] = []
    messages = [Ready(), Aim(1, 5, COUNTED, 0.5), Ready()]
    wire = b"".join(len(data).to_bytes(4, "big") + data for data in map(pickle.dumps, messages))
    channel = Channel(heard.append, lambda: None)
    for start in range(0, len(wire), size):
        channel.data_received(wire[start : start + size])
    assert heard == messages
