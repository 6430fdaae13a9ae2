"""Traces as a collector gets them, over real HTTP; and collectors that are not there."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from support.otlp_receiver import Receiver, attributes, otlp_receiver
from support.records import sweep

from calibrator.clock import SystemClock
from calibrator.core.report.spans import span_id, sweep_trace, trace_id
from calibrator.telemetry.otlp import CLOSE_LIMIT_S, OtlpTracer


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with otlp_receiver() as receiver:
        yield receiver


def tell(endpoint: str | None) -> None:
    tracer = OtlpTracer(SystemClock(), "1.2.3", endpoint)
    tracer.ended(sweep())
    tracer.close()


def test_a_sweep_arrives_with_its_levels_below_it(receiver: Receiver) -> None:
    tell(receiver.url)
    spans = {span.name: span for span in receiver.spans()}
    assert {path for path, _, _ in receiver.requests} == {"/v1/traces"}
    assert spans.keys() == {"sweep", "preflight", "level", "burst"}
    assert {int.from_bytes(span.trace_id) for span in spans.values()} == {trace_id("s1")}
    root = spans.pop("sweep")
    assert int.from_bytes(root.span_id) == span_id("s1")
    assert root.parent_span_id == b""
    assert {span.parent_span_id for span in spans.values()} == {root.span_id}
    assert int.from_bytes(spans["level"].span_id) == span_id("s1", 0)
    wanted = sweep_trace(sweep(), 0.0)
    assert root.start_time_unix_nano == 100 * 10**9
    assert root.end_time_unix_nano == 160 * 10**9
    assert attributes(root) == {
        key: list(value) if isinstance(value, tuple) else value for key, value in wanted.root.attributes.items()
    }


def test_the_resource_is_ours_unless_the_variables_of_the_standard_say_otherwise(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(receiver.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "caps")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    tell(None)
    (_, nobody, plain), (path, bearer, own) = receiver.requests
    assert attributes(plain.resource)["service.name"] == "calibrator"
    assert attributes(plain.resource)["service.version"] == "1.2.3"
    assert attributes(own.resource)["service.name"] == "caps"
    assert attributes(own.resource)["deployment.environment.name"] == "prod"
    assert (path, nobody, bearer) == ("/v1/traces", "", "Bearer x")


def test_a_sampler_of_the_standard_is_kept_to(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    tell(receiver.url)
    assert receiver.requests == []


def test_a_collector_that_is_down_or_silent_costs_spans_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """Neither telling nor closing waits for it; bounds are those of the contract, not figures."""
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        for endpoint in (f"http://127.0.0.1:{port}", "http://127.0.0.1:9"):
            tracer = OtlpTracer(SystemClock(), "1", endpoint)
            begun_s = time.monotonic()
            for _ in range(100):
                tracer.ended(sweep())
            told_s = time.monotonic() - begun_s
            tracer.close()
            closed_s = time.monotonic() - begun_s - told_s
            assert told_s < 10 * CLOSE_LIMIT_S, "2,400 spans could not have waited for one answer each"
            assert closed_s < 10 * CLOSE_LIMIT_S, "the SDK alone would have waited for half a minute"


def test_telling_never_raises(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = OtlpTracer(SystemClock(), "1", receiver.url)
    monkeypatch.setattr("calibrator.telemetry.otlp.sweep_trace", lambda *_: 1 / 0)
    tracer.ended(sweep())
    tracer.close()
    assert receiver.requests == []
