"""A sweep of the command line as a trace in a real collector, and what its probes say on the wire."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping

from support.otlp_receiver import attributes, otlp_receiver
from support.scripted_server import scripted
from support.service_process import Engine, run_calibrator, simulated_engine
from support.wire import GOOD_BODY, ROLE, chunked

from calibrator.core.measurement import Bounds
from calibrator.core.objective import parse_objective
from calibrator.core.sample import Label, Phase
from calibrator.core.spans import ProbeTrace
from calibrator.core.workload import TokenScale, Workload
from calibrator.ports import BackendFacts, SweepOrder, Target
from calibrator.wiring.generator import closed_loop


def sweep(engine: Engine, environ: Mapping[str, str]) -> str:
    answer = run_calibrator(
        "sweep", "--url", engine.api_url, "--model", "simulated", "--objective", "ttft p90 <= 5s", "--levels", "1,2",
        "--requests", "8", "--prompt-tokens", "16", "--output-tokens", "4", "--output", "json",
        environ={**environ, "NO_PROXY": "127.0.0.1"},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    return str(json.loads(answer.stdout)["sweep_id"])


def test_a_sweep_becomes_a_trace() -> None:
    assert not any(name.startswith("OTEL_") for name in os.environ)
    with simulated_engine() as engine, otlp_receiver() as collector:
        sweep_id = sweep(engine, {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})
        spans = collector.wait_for_spans({"sweep", "preflight", "level"})
    (root,), (preflight,), levels = spans["sweep"], spans["preflight"], spans["level"]
    assert [attributes(level)["calibrator.concurrency"] for level in levels] == [1, 2]
    assert attributes(root)["calibrator.outcome"] == "calibrated"
    assert all(attributes(level)["calibrator.counted_requests"] == 8 for level in levels)
    moments = [root.start_time_unix_nano, preflight.end_time_unix_nano]
    moments += [at for level in levels for at in (level.start_time_unix_nano, level.end_time_unix_nano)]
    assert moments == sorted(moments)
    assert moments[-1] <= root.end_time_unix_nano
    for visit, level in enumerate(levels, start=1):
        sent = ProbeTrace(sweep_id).traceparent(0, visit)
        assert sent == f"00-{level.trace_id.hex()}-{level.span_id.hex()}-00", "what the probes of this level said"


def test_probes_carry_the_trace_of_their_sweep_and_level() -> None:
    """From the order to the wire."""
    objectives = (parse_objective("ttft p99 <= 1s"),)

    async def heads() -> list[bytes]:
        async with scripted([chunked(ROLE, GOOD_BODY)]) as server:
            target = Target(f"http://127.0.0.1:{server.port}/v1", "m")
            order = SweepOrder(
                "s1", "b", target, objectives, Workload(), Bounds(), seed=1, sampled_probes_ratio=1.0
            )  # fmt: skip
            load = closed_loop(order, BackendFacts("m", TokenScale(), forces_length=True), 0, 1)
            await load.start()
            load.aim(1, Label(3, Phase.COUNTED), 0.0)
            await server.asked.wait()
            await load.stop()
            return server.requests

    (sent,) = set(re.findall(rb"(?im)^traceparent: (\S+)", b"".join(asyncio.run(heads()))))
    assert sent.decode() == ProbeTrace("s1", 1.0).traceparent(0, 3)
    assert sent.endswith(b"-01")
