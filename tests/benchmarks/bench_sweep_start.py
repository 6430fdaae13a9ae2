"""From "start" to the first request of a sweep: under a second, its own process included; and on to the first probe.

python tests/benchmarks/bench_sweep_start.py      (part of `make bench`)

The first request is the first byte that the backend sees: a socket that notes the time and never answers. The first
probe follows the polite looks at the backend (`Inspector`), which take as long as the backend takes to answer them, and
the start of a worker process: seen at the simulated engine, by the sweep's own progress.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from statistics import median

import uvloop

from calibrator.core.publish.snapshot import Progress
from calibrator.core.records.history import Bounds
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sweep import SweepRecord
from calibrator.core.workload.classes import Workload, WorkloadClass
from calibrator.ports.load import LoadPlan
from calibrator.ports.sweeps import SweepOrder, Target
from calibrator.wiring.embedded import EmbeddedEngine
from calibrator.wiring.sweeps import sweep_runner

RUNS = 5
LIMIT_S = 1.0
MOST_S = 30.0  # to wait for anything


@dataclass
class Listener:
    probing: asyncio.Event

    def progress(self, progress: Progress) -> None:
        if progress.in_flight > 0:
            self.probing.set()

    def partial(self, record: SweepRecord) -> None: ...


async def until(url: str, happened: asyncio.Event, listener: Listener) -> float:
    """Seconds from the order to the event; then the sweep is cancelled."""
    workload = Workload((WorkloadClass("short", 1.0, 64, 16),))
    order = SweepOrder(
        "s", "b", Target(url, "simulated"), (parse_objective("ttft p99 <= 500ms"),), workload, Bounds(), seed=1
    )
    begun_s = time.monotonic()
    running = asyncio.create_task(sweep_runner(LoadPlan()).run(order, listener))
    async with asyncio.timeout(MOST_S):
        await happened.wait()
    took_s = time.monotonic() - begun_s
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return took_s


async def to_first_request() -> float:
    seen = asyncio.Event()

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(1):
            seen.set()
        writer.close()

    server = await asyncio.start_server(note, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return await until(f"http://127.0.0.1:{port}/v1", seen, Listener(asyncio.Event()))


async def to_first_probe(url: str) -> float:
    listener = Listener(asyncio.Event())
    return await until(f"{url}/v1", listener.probing, listener)


async def measure() -> tuple[float, float]:
    requests_s = [await to_first_request() for _ in range(RUNS)]
    async with EmbeddedEngine("small") as url:
        probes_s = [await to_first_probe(url) for _ in range(RUNS)]
    print(f"first request after {median(requests_s):.2f} s (worst {max(requests_s):.2f})")
    print(f"first probe seen after {median(probes_s):.2f} s (worst {max(probes_s):.2f})")
    return median(requests_s), median(probes_s)


def test_bench_sweep_start() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        first_request_s, _ = runner.run(measure())
    print(f"{'within' if first_request_s < LIMIT_S else 'beyond'} the {LIMIT_S:g} s that a start may take")


if __name__ == "__main__":
    test_bench_sweep_start()
