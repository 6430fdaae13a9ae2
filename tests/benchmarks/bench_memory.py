"""What a sweep adds to memory: 100,000 requests x 500 tokens must add less than 200 MB.

python tests/benchmarks/bench_memory.py [requests]      (as `bench_memory` in `make bench`: a tenth of the requests)

Every request takes the whole way of one process: prompt, timed HTTP client (bytes in, 500 stamps, quantiles of their
gaps), closed loop, books, record. Only the socket is missing: the answer is handed over in memory, all events in one
read, and time is virtual, so that a long sweep takes minutes. Growth counts from the end of the warm-up on, in the
kernel's words (VmRSS), together with what the record is worth as a pickle, which is what leaves the process.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.plain_parts import Inspector, Listener, NoTelemetry
from support.virtual_time import run_virtual
from support.wire import FINISH, USAGE, MemoryTransport, chunk, head

from calibrator.backends.http1 import Http1Connection, Timeouts
from calibrator.backends.openai_answer import Answer
from calibrator.clock import LoopClock
from calibrator.core.records.history import Bounds
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sample import Flight, ProbeRequest, Sample
from calibrator.core.records.sweep import SweepRecord
from calibrator.core.workload.classes import PromptFactory, Workload, WorkloadClass
from calibrator.load.closed_loop import ClosedLoop
from calibrator.ports.backend import BackendFacts
from calibrator.ports.load import LoadGenerator
from calibrator.ports.sweeps import SweepOrder, Target
from calibrator.service.sweep.run import SweepParts, run_sweep

TOKENS = 500
LEVEL = 64
RESIDENCE_S = 1.0
LIMIT_MB = 200.0
PART = 10  # of the requests in `make bench`

HEAD = head("200 OK", "text/event-stream", "Transfer-Encoding: chunked")
EVENT = chunk({"content": " word"})
BODY = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*[EVENT] * TOKENS, FINISH, USAGE)) + b"0\r\n\r\n"


def rss_mb() -> float:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024.0


class Wire:
    """Port `Backend` over memory."""

    def __init__(self, clock: LoopClock) -> None:
        self.clock = clock
        self.ended = 0
        self.at_warm_mb = 0.0

    def connect(self) -> WireConnection:
        return WireConnection(self)

    async def close(self) -> None: ...


class WireConnection:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._http = Http1Connection(wire.clock.monotonic, Timeouts(60.0, 300.0, 300.0))
        self._transport = MemoryTransport(self._http)

    async def send(self, request: ProbeRequest, on_start: Callable[[Flight], None]) -> Sample:
        answer = Answer(request, on_start, self._wire.clock.monotonic())
        exchange = asyncio.create_task(self._http.exchange(request.text.encode(), answer, 0.0))
        await asyncio.sleep(RESIDENCE_S)
        self._transport.written = b""  # a socket keeps nothing
        self._http.data_received(HEAD + BODY)
        sample = answer.sample(await exchange)
        assert sample.token_events == TOKENS, sample
        self._wire.ended += 1
        if self._wire.ended == 10 * LEVEL:
            self._wire.at_warm_mb = rss_mb()
        return replace(sample, completion_tokens=TOKENS)

    def abort(self) -> None: ...


def measure(requests: int) -> tuple[float, SweepRecord]:
    """MB added by so many requests."""
    order = SweepOrder(
        "s", "b", Target("http://b/v1", "m"), (parse_objective("ttft p99 <= 2s"), parse_objective("tpot p99 <= 1s")),
        Workload((WorkloadClass("default", 1.0, 256, TOKENS),)), Bounds(duration_s=1e9), seed=1, levels=(LEVEL,),
        requests_per_level=requests,
    )  # fmt: skip

    async def scenario() -> tuple[float, SweepRecord]:
        clock = LoopClock()
        wire = Wire(clock)

        def load(facts: BackendFacts) -> LoadGenerator:
            prompts = PromptFactory(order.workload, facts.token_scale, order.seed)
            return ClosedLoop(wire, prompts, order.objectives, clock)

        record = await run_sweep(order, SweepParts(Inspector(), NoTelemetry(), load, clock), Listener())
        return rss_mb() - wire.at_warm_mb, record

    return run_virtual(scenario())


def show(requests: int) -> float:
    begun_s = time.monotonic()
    added_mb, record = measure(requests)
    assert record.levels[0].n >= requests, record.reason
    print(
        f"{record.requests} requests x {TOKENS} tokens: {added_mb:.1f} MB added, {added_mb / requests * 1e6:.0f} bytes "
        f"a request, the record {len(pickle.dumps(record)) / 1e6:.2f} MB ({time.monotonic() - begun_s:.0f} s)"
    )
    return added_mb


def test_bench_memory() -> None:
    assert show(100_000 // PART) < LIMIT_MB / PART


if __name__ == "__main__":
    raise SystemExit(show(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000) >= LIMIT_MB)
