"""The timed client of OpenAI-compatible servers (ports `Backend` and `Connection`): chat and plain completions.

What a probe asks for, and why:

| field | why |
|---|---|
| `max_tokens` | the class's output length |
| `ignore_eos`, `min_tokens` | if the engine supports them, responses get the planned length (llama.cpp: the first) |
| `temperature: 1` | the sampling path of real traffic; greedy decoding falls into loops that some engines cut |
| `stream_options.include_usage` | the server counts the tokens: engines merge several into one chunk |

What a server rejects of them is left out, or sent under another name (`negotiation`).

Headers identify us (`User-Agent`, `X-Request-ID`), so that probes can be told from live requests. `traceparent` carries
the trace of the sweep and the span of the level (`core.report.spans`). It is not sampled unless configured: a probe
leaves its ID in the logs without filling a tracing store.

The body is built before the clock starts; the request leaves in one write. The prompt is never logged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from urllib.parse import quote

from calibrator import __version__
from calibrator.backends.http1 import Timeouts
from calibrator.backends.http1_client import Endpoint, Http1Client, endpoint
from calibrator.backends.openai_answer import Answer
from calibrator.core.records.sample import Flight, ProbeRequest, Sample
from calibrator.core.report.spans import ProbeTrace
from calibrator.errors import ConfigurationError
from calibrator.ports.backend import Adjustment, Connection
from calibrator.ports.sweeps import Target

PATHS = {"chat": "/chat/completions", "completions": "/completions"}
LEAST_SECRET = 4  # characters; a header such as `x-tenant: a` would blacken every word


class OpenAIBackend:
    """Port `Backend`. `now` is the monotonic clock whose seconds stand in every Sample."""

    def __init__(
        self,
        target: Target,
        *,
        now: Callable[[], float],
        forces_length: bool,
        stall_timeout_s: float,
        total_timeout_s: float,
        connect_timeout_s: float = 5.0,
        trace: ProbeTrace | None = None,
        adjustments: Sequence[Adjustment] = (),
    ) -> None:
        """`trace` None: a trace that nobody else knows."""
        self._server = endpoint(
            target.url,
            ca_file=target.ca_file,
            client_cert_file=target.client_cert_file,
            client_key_file=target.client_key_file,
            host_name=target.host_name,
        )
        self._dialect = _Dialect(target, self._server, adjustments, forces_length=forces_length, trace=trace)
        self._now = now
        self._patience = Timeouts(connect_timeout_s, stall_timeout_s, total_timeout_s)

    def connect(self) -> Connection:
        return OpenAIConnection(Http1Client(self._server, self._now, self._patience), self._dialect, self._now)

    async def close(self) -> None:
        """Connections belong to their users, who abort them; nothing is shared."""


class OpenAIConnection:
    """Port `Connection`."""

    def __init__(self, client: Http1Client, dialect: _Dialect, now: Callable[[], float]) -> None:
        self._client = client
        self._dialect = dialect
        self._now = now

    async def send(self, request: ProbeRequest, on_start: Callable[[Flight], None]) -> Sample:
        payload = self._dialect.encode(request)
        answer = Answer(request, on_start, wanted_s=self._now())
        return self._dialect.discreet(answer.sample(await self._client.request(payload, answer)))

    def abort(self) -> None:
        self._client.abort()


class _Dialect:
    """Turns a ProbeRequest into bytes."""

    def __init__(
        self,
        target: Target,
        server: Endpoint,
        adjustments: Sequence[Adjustment],
        *,
        forces_length: bool,
        trace: ProbeTrace | None,
    ) -> None:
        if target.api not in PATHS:
            raise ConfigurationError(f"'{target.api}' is not an API.", f"Choose one of: {', '.join(PATHS)}.")
        self._target = target
        self._adjustments = tuple(adjustments)
        self._forces_length = forces_length
        self._run = os.urandom(4).hex() if trace is None else trace.sweep_id
        self._trace = trace or ProbeTrace(self._run)
        head = [
            f"POST {server.target(PATHS[target.api], target.key_query)} HTTP/1.1",
            f"Host: {server.authority}",
            f"User-Agent: calibrator/{__version__}",
            "Accept-Encoding: identity",
            "Content-Type: application/json",
        ]
        head.extend(f"{name}: {value}" for name, value in target.credentials)
        if any(not line.isascii() or not line.isprintable() for line in head):
            raise ConfigurationError(
                "The URL, the API key or a header holds characters that cannot stand in a request.",
                "Check them for line ends, blanks and non-ASCII letters.",
            )
        self._head = "\r\n".join(head)

    def discreet(self, sample: Sample) -> Sample:
        """A server that rejects our key may quote it, and its message ends up in records, the API and logs."""
        failure = sample.failure
        if failure is None:
            return sample
        detail = failure.detail
        for secret in sorted(self._target.secrets, key=len, reverse=True):
            shown = "[our API key]" if secret == self._target.api_key else "[our header]"
            if len(secret) >= LEAST_SECRET or secret == self._target.api_key:
                detail = detail.replace(secret, shown).replace(quote(secret, safe=""), shown)
        return sample if detail == failure.detail else replace(sample, failure=replace(failure, detail=detail))

    def encode(self, request: ProbeRequest) -> bytes:
        fields: dict[str, object] = {"model": self._target.model}
        if self._target.api == "chat":
            fields["messages"] = [{"role": "user", "content": request.text}]
        else:
            fields["prompt"] = request.text
        fields |= {"max_tokens": request.output_tokens, "temperature": 1, "stream": request.stream}
        if request.stream:
            fields["stream_options"] = {"include_usage": True}
        if self._forces_length:
            fields |= {"ignore_eos": True, "min_tokens": request.output_tokens}
        for one in self._adjustments:
            value = fields.pop(one.parameter, None)
            if value is not None and one.sent_as is not None:
                fields[one.sent_as] = value
        body = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
        head = (
            f"{self._head}\r\n"
            f"Accept: {'text/event-stream' if request.stream else 'application/json'}\r\n"
            f"X-Request-ID: calibrator-{self._run}-{request.request_id}\r\n"
            f"traceparent: {self._trace.traceparent(request.request_id, request.label.stage)}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode("ascii") + body
