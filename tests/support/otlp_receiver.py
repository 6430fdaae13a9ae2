"""A real OTLP/HTTP receiver: what a collector would take, parsed with OpenTelemetry's own protocol."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan

from support.service_process import wait_for


@dataclass
class Receiver:
    url: str = ""
    requests: list[tuple[str, str, ResourceSpans]] = field(default_factory=list)  # path, authorization, spans

    def spans(self) -> list[ProtoSpan]:
        return [span for _, _, group in self.requests for scope in group.scope_spans for span in scope.spans]

    def wait_for_spans(self, names: set[str]) -> dict[str, list[ProtoSpan]]:
        """By name, once each of these has arrived."""

        def look() -> dict[str, list[ProtoSpan]] | None:
            found: dict[str, list[ProtoSpan]] = {}
            for span in self.spans():
                found.setdefault(span.name, []).append(span)
            return found if names <= found.keys() else None

        return wait_for(look, f"spans {names} arrive")


def attributes(holder: Any) -> dict[str, Any]:
    """Of a span or a resource, as plain values."""
    found = {}
    for pair in holder.attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        found[pair.key] = [one.string_value for one in value.values] if kind == "array_value" else value
    return found


@contextmanager
def otlp_receiver() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.headers["content-type"] == "application/x-protobuf"
            asked = ExportTraceServiceRequest.FromString(body)
            for group in asked.resource_spans:
                receiver.requests.append((self.path, self.headers.get("authorization", ""), group))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_port}"
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            serving.join()
