"""Who gets traces, and that a sweep's trace is told however it ends."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import structlog
from support.otlp_receiver import otlp_receiver
from support.scripted_server import scripted
from support.sweep_entries import order, progress_of, record_of
from support.virtual_time import run_virtual
from support.wire import GOOD_BODY, ROLE, chunked

from calibrator.clock import LoopClock
from calibrator.core.publish.snapshot import Progress
from calibrator.core.records.sample import Label, Phase
from calibrator.core.records.sweep import SweepOutcome, SweepRecord
from calibrator.core.report.spans import ProbeTrace
from calibrator.core.workload.classes import TokenScale
from calibrator.errors import UnreachableError
from calibrator.ports.backend import BackendFacts
from calibrator.ports.sweeps import Permit, SweepListener, SweepOrder, Target, forever
from calibrator.settings.sections.tracing import TracingSettings
from calibrator.telemetry.otlp import OtlpTracer
from calibrator.wiring.generator import closed_loop
from calibrator.wiring.tracing import TracedRunner, sweep_tracer, traced

COLLECTOR = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


class Told:
    """Port `SweepTracer`."""

    def __init__(self) -> None:
        self.records: list[SweepRecord] = []

    def ended(self, record: SweepRecord) -> None:
        self.records.append(record)

    def close(self) -> None: ...


class RecordingListener:
    """Port `SweepListener`."""

    def __init__(self) -> None:
        self.told: list[Progress | SweepRecord] = []

    def progress(self, progress: Progress) -> None:
        self.told.append(progress)

    def partial(self, record: SweepRecord) -> None:
        self.told.append(record)


class Sweeps:
    """Port `SweepRunner`: tells a partial record, then ends as asked."""

    def __init__(self, end: Callable[[SweepOrder], SweepRecord]) -> None:
        self._end = end
        self.orders: list[SweepOrder] = []

    async def run(self, order: SweepOrder, listener: SweepListener, permit: Permit = forever) -> SweepRecord:
        self.orders.append(order)
        listener.progress(progress_of(order, 4))
        listener.partial(record_of(order, None, "so far"))
        return self._end(order)


def calibrated(order: SweepOrder) -> SweepRecord:
    return record_of(order, SweepOutcome.CALIBRATED)


def raising(error: BaseException) -> Callable[[SweepOrder], SweepRecord]:
    def end(_: SweepOrder) -> SweepRecord:
        raise error

    return end


def test_an_ended_sweep_is_told_and_its_listener_hears_everything() -> None:
    told, heard = Told(), RecordingListener()
    record = run_virtual(TracedRunner(Sweeps(calibrated), told).run(order(), heard))
    assert told.records == [record]
    assert heard.told == [progress_of(order(), 4), record_of(order(), None, "so far")]


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (asyncio.CancelledError(), SweepOutcome.INTERRUPTED, "cut off"),
        (UnreachableError("Gone.", "Look."), SweepOutcome.ERROR, "Gone."),
    ],
)
def test_a_sweep_that_is_cut_off_or_fails_is_told_with_what_it_had(
    error: BaseException, outcome: SweepOutcome, reason: str
) -> None:
    told = Told()

    async def scenario() -> None:
        with pytest.raises(type(error)):
            await TracedRunner(Sweeps(raising(error)), told).run(order(), RecordingListener())

    run_virtual(scenario())
    (record,) = told.records
    assert (record.outcome, record.reason, record.requests) == (outcome, reason, 1)


@pytest.mark.parametrize("tracer", [None, Told()], ids=["untold", "told"])
def test_probes_are_sampled_as_configured_with_and_without_a_tracer(tracer: Told | None) -> None:
    sweeps = Sweeps(calibrated)
    run_virtual(TracedRunner(sweeps, tracer, 0.25).run(order(), RecordingListener()))
    assert sweeps.orders[0].sampled_probes_ratio == 0.25


def test_probes_carry_the_trace_of_their_sweep_and_level() -> None:
    """From the order to the wire."""

    async def heads() -> list[bytes]:
        async with scripted([chunked(ROLE, GOOD_BODY)]) as server:
            target = Target(f"http://127.0.0.1:{server.port}/v1", "m")
            sampled = replace(order(), target=target, sampled_probes_ratio=1.0)
            load = closed_loop(sampled, BackendFacts("m", TokenScale(), forces_length=True), 0, 1)
            await load.start()
            load.aim(1, Label(3, Phase.COUNTED), 0.0)
            await server.asked.wait()
            await load.stop()
            return server.requests

    (sent,) = set(re.findall(rb"(?im)^traceparent: (\S+)", b"".join(asyncio.run(heads()))))
    assert sent.decode() == ProbeTrace("s1", 1.0).traceparent(0, 3)
    assert sent.endswith(b"-01")


# ------------------------------------------------------------------------------------------------------ who gets them
def test_a_program_of_one_sweep_sends_its_trace_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with otlp_receiver() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        with traced(Sweeps(calibrated), TracingSettings(), os.environ) as runner:
            run_virtual(runner.run(order(), RecordingListener()))
        assert {span.name for span in collector.spans()} == {"sweep", "preflight"}


@pytest.mark.parametrize(
    ("environ", "is_wanted"),
    [
        ({}, False),
        (COLLECTOR, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"}, True),
        (COLLECTOR | {"OTEL_SDK_DISABLED": "true"}, False),
        (COLLECTOR | {"OTEL_TRACES_EXPORTER": "none"}, False),
        (COLLECTOR | {"OTEL_TRACES_EXPORTER": "otlp"}, True),
        (COLLECTOR | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, False),
    ],
)
def test_the_variables_of_the_standard_decide(environ: dict[str, str], is_wanted: bool) -> None:  # noqa: FBT001 - a case
    tracer = sweep_tracer(TracingSettings(), environ, LoopClock())
    assert isinstance(tracer, OtlpTracer) == is_wanted
    if tracer is not None:
        tracer.close()


def test_our_own_setting_needs_no_variable() -> None:
    tracer = sweep_tracer(TracingSettings(endpoint="http://127.0.0.1:9"), {}, LoopClock())
    assert isinstance(tracer, OtlpTracer)
    tracer.close()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "only http/protobuf is spoken"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1", "max_queue_size"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "x", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"),
    ],
)
def test_a_variable_that_is_no_use_is_said_once_and_does_not_keep_the_service_down(
    variable: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with structlog.testing.capture_logs() as logs:
        assert sweep_tracer(TracingSettings(), COLLECTOR | {variable: value}, LoopClock()) is None
    (line,) = logs
    assert words in line["why"]


WITHOUT_THE_EXTRA = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(name)

import calibrator.wiring.service

print("loaded" if "opentelemetry" in sys.modules else "not loaded")
sys.meta_path.insert(0, Missing())
from calibrator.clock import SystemClock
from calibrator.errors import ConfigurationError
from calibrator.settings.sections.tracing import TracingSettings
from calibrator.wiring.tracing import sweep_tracer

assert sweep_tracer(TracingSettings(), {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:1"}, SystemClock()) is None
try:
    sweep_tracer(TracingSettings(endpoint="http://x:1"), {}, SystemClock())
except ConfigurationError as error:
    print(error.remedy)
"""


def test_without_the_extra_the_variables_are_passed_over_and_the_setting_is_refused() -> None:
    """In an interpreter that cannot find it; one that could has not loaded it before somebody wants traces."""
    answer = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_EXTRA], capture_output=True, text=True, timeout=180, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[0] == "not loaded", "a third of a second, in each process"
    assert "the OpenTelemetry SDK is not installed" in answer.stdout
    assert "pip install 'calibrator[otel]'" in answer.stdout.splitlines()[-1]


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="endpoint"):
        TracingSettings(endpoint="otel-collector:4318")
