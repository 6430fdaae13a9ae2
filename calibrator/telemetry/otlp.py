"""Traces of sweeps to an OpenTelemetry collector over OTLP/HTTP (port `SweepTracer`).

The SDK is the optional extra `otel`, and is imported only here, when traces are configured. It reads its own
variables (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_TRACES_SAMPLER`, ...).

A span is put into the SDK's bounded queue, and a thread of the SDK sends it: a collector that is down, slow or silent
costs lost spans and a line in the log. At the end it gets `CLOSE_LIMIT_S` for what is left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import structlog

from calibrator.core.records.sweep import SweepRecord
from calibrator.core.report.spans import Span, SweepTrace, sweep_trace
from calibrator.errors import ConfigurationError
from calibrator.ports.clock import Clock

CLOSE_LIMIT_S = 1.0
PATH = "/v1/traces"


class OtlpTracer:
    """Port `SweepTracer`."""

    def __init__(self, clock: Clock, software_version: str, endpoint: str | None = None) -> None:
        """`endpoint`: base URL of the collector; None: what the SDK's variables say. Raises ConfigurationError."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise ConfigurationError(
                "Traces are asked for, but the OpenTelemetry SDK is not installed.",
                "Install the extra: pip install 'calibrator[otel]'; or take tracing.endpoint out.",
            ) from None
        self._clock = clock
        self._ids = _given_ids()
        ours = Resource({"service.name": "calibrator", "service.version": software_version})
        resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())  # the variables win
        try:
            self._exporter = OTLPSpanExporter(endpoint=None if endpoint is None else endpoint.rstrip("/") + PATH)
            provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
            self._processor = BatchSpanProcessor(self._exporter)
        except ValueError as error:
            raise ConfigurationError(
                f"The OpenTelemetry SDK refuses a variable: {error}", "Correct or unset that OTEL_... variable."
            ) from None
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("calibrator", software_version)

    def ended(self, record: SweepRecord) -> None:
        try:
            self._put(sweep_trace(record, self._clock.wall()))
        except Exception:  # noqa: BLE001 - whatever the SDK does, a sweep does not fail for its trace
            structlog.get_logger().exception("no trace of a sweep", sweep=record.sweep_id)

    def _put(self, trace: SweepTrace) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        root = self._begin(trace.trace_id, trace.root, Context())
        inside = set_span_in_context(root, Context())
        for child in trace.children:
            self._begin(trace.trace_id, child, inside).end(_nanoseconds(child.ended_at))
        root.end(_nanoseconds(trace.root.ended_at))

    def _begin(self, trace_id: int, span: Span, context: Any) -> Any:
        from opentelemetry.trace import Status, StatusCode

        self._ids.trace_id, self._ids.span_id = trace_id, span.span_id
        begun = self._tracer.start_span(
            span.name, context, attributes=span.attributes, start_time=_nanoseconds(span.started_at)
        )
        if span.error:
            begun.set_status(Status(StatusCode.ERROR, span.error))
        return begun

    def close(self) -> None:
        """Send pending spans within `CLOSE_LIMIT_S`; blocks. The SDK's own limit is half a minute."""
        last: Callable[[], None] = self._processor.shutdown
        sending = threading.Thread(target=last, name="last-spans", daemon=True)
        sending.start()
        sending.join(CLOSE_LIMIT_S)
        if sending.is_alive():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # the SDK's; ends the waiting between two tries


def _given_ids() -> Any:
    """The SDK's id generator whose next ids are set from outside."""
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Given(RandomIdGenerator):
        trace_id = span_id = 0

        def generate_trace_id(self) -> int:
            return self.trace_id

        def generate_span_id(self) -> int:
            return self.span_id

    return Given()


def _nanoseconds(at: float) -> int:
    return int(at * 1e9)
