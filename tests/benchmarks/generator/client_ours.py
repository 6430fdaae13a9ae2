"""Our engine, as a sweep uses it: client_ours.py PORT STREAMS SECONDS PROCESSES. Prints one JSON line.

No peer's package may be needed here: it runs in calibrator's own environment. CPU counts from the first request on, in
all processes together. `reasons` are those of the audit of a sweep: not empty, the level would not be judged.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from functools import partial

import numpy as np
import uvloop

from calibrator.core.records.history import Bounds
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sample import Label, Phase
from calibrator.core.workload.classes import TokenScale, Workload, WorkloadClass
from calibrator.load.pool import WorkerPool
from calibrator.load.processes import LocalLauncher
from calibrator.ports.backend import BackendFacts
from calibrator.ports.load import LoadGenerator
from calibrator.ports.sweeps import SweepOrder, Target
from calibrator.service.sweep.generator_audit import GeneratorAudit
from calibrator.wiring.generator import closed_loop

RAMP, COUNTED = Label(1, Phase.RAMP), Label(1, Phase.COUNTED)
OBJECTIVES = (parse_objective("ttft p99 <= 100ms"),)  # the server keeps it: its own P99 is some 67 ms
FACTS = BackendFacts("m", TokenScale(), forces_length=True)


def generator(port: int, streams: int, processes: int) -> LoadGenerator:
    order = SweepOrder(
        sweep_id="bench",
        backend="truth",
        target=Target(f"http://127.0.0.1:{port}/v1", "m"),
        objectives=OBJECTIVES,
        workload=Workload((WorkloadClass("short", 1.0, 32, 50),)),
        bounds=Bounds(),
        seed=1,
    )
    if processes == 1:
        return closed_loop(order, FACTS, 0, 1)
    make = partial(closed_loop, order, FACTS)
    each = max(1, -(-streams // processes))
    return WorkerPool(make, LocalLauncher(), most_workers=processes, expected_users=streams, users_per_worker=each)


async def main(port: int, streams: int, seconds: float, processes: int) -> None:
    load = generator(port, streams, processes)
    await load.start()
    while (await load.poll()).processes < processes:  # noqa: ASYNC110 - the port is polled
        await asyncio.sleep(0.02)
    begun_s = time.monotonic()
    load.aim(streams, COUNTED, 0.3)
    samples, spent_s, watch = [], 0.0, GeneratorAudit()
    while time.monotonic() < begun_s + seconds:
        await asyncio.sleep(0.05)
        batch = await load.poll()
        samples += batch.ended
        spent_s += batch.cpu_s
        watch.add(batch, counted=batch.all_started)
    await load.stop()
    ttft = [sample.ttft_s for sample in samples if sample.ttft_s is not None]
    residence_s = float(np.median([sample.duration_s for sample in samples]))
    gaps = [dict(sample.gaps_s)[0.99] for sample in samples if sample.gaps_s]
    result = {
        "requests": len(samples),
        "failed": sum(sample.failure is not None for sample in samples),
        "events": sum(sample.token_events for sample in samples),
        "ttft_p50_s": float(np.quantile(ttft, 0.5)),
        "ttft_p99_s": float(np.quantile(ttft, 0.99)),
        "widest_gap_s": float(np.median(gaps)),
        "reasons": watch.audit(streams, OBJECTIVES, residence_s).reasons,
        "cpu_s": spent_s,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(*map(int, sys.argv[1:5])))
