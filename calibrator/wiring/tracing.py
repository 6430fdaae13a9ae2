"""Whether sweeps are traced, and the sweep runner that does it.

| `tracing.endpoint` | `OTEL_EXPORTER_OTLP_ENDPOINT` or `..._TRACES_ENDPOINT` | extra `otel` | |
|---|---|---|---|
| given | any | installed | traces go to `tracing.endpoint` |
| given | any | missing | refused: somebody waits for traces |
| - | set | installed | traces go there, unless `OTEL_SDK_DISABLED=true` or `OTEL_TRACES_EXPORTER=none` |
| - | set | missing | none, logged once: such variables are often set for a whole cluster |
| - | - | any | none |

Only OTLP over HTTP is spoken: with `OTEL_EXPORTER_OTLP_PROTOCOL=grpc` the address is another server's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import structlog

from calibrator import __version__
from calibrator.clock import SystemClock
from calibrator.core.publish.snapshot import Progress
from calibrator.core.records.sweep import SweepOutcome, SweepRecord
from calibrator.errors import CalibratorError, ConfigurationError
from calibrator.ports.clock import Clock
from calibrator.ports.sweeps import Permit, SweepListener, SweepOrder, SweepRunner, SweepTracer, forever
from calibrator.service.backend.outcome import begun
from calibrator.settings.sections.tracing import TracingSettings
from calibrator.telemetry.otlp import OtlpTracer

SIGNAL, ALL = "OTEL_EXPORTER_OTLP_TRACES", "OTEL_EXPORTER_OTLP"


def sweep_tracer(settings: TracingSettings, environ: Mapping[str, str], clock: Clock) -> SweepTracer | None:
    """None: nobody wants traces. Raises ConfigurationError."""
    if settings.endpoint is not None:
        return OtlpTracer(clock, __version__, settings.endpoint)
    if not (environ.get(f"{SIGNAL}_ENDPOINT") or environ.get(f"{ALL}_ENDPOINT")) or _is_off(environ):
        return None
    try:
        _require_http(environ)
        return OtlpTracer(clock, __version__)
    except ConfigurationError as error:
        structlog.get_logger().warning("no traces of sweeps", why=str(error))
        return None


def _is_off(environ: Mapping[str, str]) -> bool:
    wanted = environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    return environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or wanted != "otlp"


def _require_http(environ: Mapping[str, str]) -> None:
    protocol = environ.get(f"{SIGNAL}_PROTOCOL") or environ.get(f"{ALL}_PROTOCOL") or "http/protobuf"
    if protocol != "http/protobuf":
        raise ConfigurationError(
            f"{ALL}_PROTOCOL is {protocol}, and only http/protobuf is spoken.", "Give tracing.endpoint."
        )


@contextmanager
def traced(runner: SweepRunner, settings: TracingSettings, environ: Mapping[str, str]) -> Iterator[SweepRunner]:
    """For a program that runs one sweep. Raises ConfigurationError."""
    tracer = sweep_tracer(settings, environ, SystemClock())
    try:
        yield TracedRunner(runner, tracer, settings.sampled_probes_ratio)
    finally:
        if tracer is not None:
            tracer.close()


class TracedRunner:
    """Port `SweepRunner`: another one, and a trace of every sweep however it ends."""

    def __init__(self, runner: SweepRunner, tracer: SweepTracer | None, sampled_probes_ratio: float = 0.0) -> None:
        self._runner = runner
        self._tracer = tracer
        self._sampled_probes_ratio = sampled_probes_ratio

    async def run(self, order: SweepOrder, listener: SweepListener, permit: Permit = forever) -> SweepRecord:
        order = replace(order, sampled_probes_ratio=self._sampled_probes_ratio)
        if self._tracer is None:
            return await self._runner.run(order, listener, permit)
        recorder = _NewestRecord(listener, begun(order))
        try:
            record = await self._runner.run(order, recorder, permit)
        except asyncio.CancelledError:
            self._tracer.ended(replace(recorder.newest, outcome=SweepOutcome.INTERRUPTED, reason="cut off"))
            raise
        except CalibratorError as error:
            failed = replace(recorder.newest, outcome=SweepOutcome.ERROR, reason=error.cause, remedy=error.remedy)
            self._tracer.ended(failed)
            raise
        self._tracer.ended(record)
        return record


class _NewestRecord:
    """Port `SweepListener`: passes on, and keeps the newest record."""

    def __init__(self, listener: SweepListener, newest: SweepRecord) -> None:
        self._listener = listener
        self.newest = newest

    def progress(self, progress: Progress) -> None:
        self._listener.progress(progress)

    def partial(self, record: SweepRecord) -> None:
        self.newest = record
        self._listener.partial(record)
