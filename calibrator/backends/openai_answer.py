"""Reads one response of an OpenAI-compatible server as it arrives, and stamps what a user would notice.

A *token event* is an event with generated text of any kind: `delta.content`, `reasoning`, `reasoning_content`,
`tool_calls`, or `text` of plain completions. A role-only or empty chunk is none; a finish chunk may be one. If a
response finishes without any text, its finish is the only event and counts as its first token.

Good is only: status 200, no `error` in any event, a `finish_reason`. `[DONE]` is not needed for that (some engines
never send it), but after it nothing can go wrong any more. Usage comes in a last chunk without choices, in the finish
chunk or in every chunk: the last one counts, and is decoded once, at the end.

Cost. An event in mid-answer differs from the one before in its text only. So the first token event is decoded as JSON;
if its bytes show a marker like `"content":"`, later events with the same marker are judged by substring tests alone
(`_is_plain_token`). That is sound: inside a JSON string every quote is escaped, so the marker's bytes cannot be text.
Whatever the tests do not prove is decoded. What is kept per event is one float.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from itertools import pairwise
from math import ceil
from typing import Any

from calibrator.backends.http1 import Ending, Headers
from calibrator.backends.sse import SseDecoder, SseError
from calibrator.core.records.sample import Failure, FailureKind, Flight, ProbeRequest, Sample

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024  # of an answer that is not streamed
MAX_DETAIL_BYTES = 2048  # of an error's text

_TOKEN_KEYS = ("content", "reasoning_content", "reasoning", "text")
_ABANDONED = ("abort", "error")  # finish reasons by which an engine says that it gave up


class Answer:
    """Sink of one request (`http1.Sink`), and the maker of its Sample."""

    def __init__(self, request: ProbeRequest, on_start: Callable[[Flight], None], wanted_s: float) -> None:
        self._request = request
        self._on_start = on_start
        self._wanted_s = wanted_s
        self._flight: Flight | None = None
        self._connect_s = 0.0
        self._status = 0
        self._location = ""
        self._document: bytearray | None = bytearray()  # None: an event stream
        self._sse = SseDecoder()
        self._failure: Failure | None = None
        self._finish_reason: str | None = None
        self._done_s: float | None = None
        self._usage_source: bytes | None = None
        self._marker = self._empty_marker = b""
        self._arrived_s = 0.0
        self._stamps = array("d")
        self._events = 0

    # ----------------------------------------------------------------------------------------------- sink
    def on_start(self, started_s: float, connect_s: float) -> None:
        self._connect_s = connect_s
        if self._flight is None:
            self._flight = Flight(self._request, started_s)
            self._on_start(self._flight)
        else:  # the one retry: nothing has been stamped, the clock restarts
            self._flight.started_s = started_s

    def on_head(self, status: int, headers: Headers) -> None:
        self._status = status
        content_type = headers.get(b"content-type", b"").lower()
        is_document = not self._request.stream or b"json" in content_type or b"html" in content_type
        if status == 200 and not is_document:
            self._document = None
        if 300 <= status < 400:
            self._location = headers.get(b"location", b"?").decode("latin-1")

    def on_body(self, data: bytes, at_s: float) -> None:
        document = self._document
        if document is None:
            self._arrived_s = at_s
            try:
                self._sse.feed(data, self._on_event)
            except SseError as error:
                self._fail(FailureKind.PROTOCOL, str(error))
        else:
            room = (MAX_DOCUMENT_BYTES if self._status == 200 else MAX_DETAIL_BYTES) - len(document)
            if room > 0:
                document += data[:room]

    # --------------------------------------------------------------------------------------------- events
    def _on_event(self, data: bytes, event_type: bytes) -> None:
        if self._is_plain_token(data) and not event_type:
            self._token()
        elif data.strip() == b"[DONE]":
            self._done_s = self._arrived_s
        else:
            self._on_odd_event(data, event_type)

    def _is_plain_token(self, data: bytes) -> bool:
        """True only if the bytes prove: text of the known kind, no finish, no usage, no error."""
        marker = self._marker
        return (
            marker != b""
            and marker in data
            and data.endswith(b"}")
            and self._empty_marker not in data
            and (b'"finish_reason":null' in data or b'"finish_reason": null' in data or b'"finish_reason"' not in data)
            and b'"error"' not in data
            and (b'"usage"' not in data or b'"usage":null' in data or b'"usage": null' in data)
        )

    def _on_odd_event(self, data: bytes, event_type: bytes) -> None:
        self._events += 1
        try:
            event = json.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            kind = FailureKind.ERROR_EVENT if event_type == b"error" else FailureKind.PROTOCOL
            said = _clean(data) if event_type == b"error" else "an event that is not a JSON object"
            self._fail(kind, said)
            return
        if event.get("error") or event.get("object") == "error" or event_type == b"error":
            self._fail(FailureKind.ERROR_EVENT, error_message(event), _error_code(event))
            return
        if event.get("usage"):
            self._usage_source = data
        choice = _first_choice(event)
        if choice is None:
            return
        finished = choice.get("finish_reason")
        if self._has_text(choice, data) or (finished and not self._stamps):
            self._token()
        if finished:
            self._finish_reason = str(finished)

    def _has_text(self, choice: dict[str, Any], data: bytes) -> bool:
        delta = choice.get("delta")
        source = delta if isinstance(delta, dict) else choice
        if self._flight is not None and self._flight.first_content_s is None:
            content = source.get("content") or source.get("text")
            if content:
                self._flight.first_content_s = self._arrived_s
        for key in _TOKEN_KEYS:
            if source.get(key):
                self._learn_marker(key, data)
                return True
        return bool(source.get("tool_calls"))

    def _learn_marker(self, key: str, data: bytes) -> None:
        # Until the first content, only a content marker will do: the quick tests do not see which kind came first.
        if self._flight is None or self._flight.first_content_s is None:
            return
        for colon in (":", ": "):
            marker = f'"{key}"{colon}"'.encode()
            if marker in data:
                self._marker, self._empty_marker = marker, marker + b'"'
                return

    def _token(self) -> None:
        if not self._stamps and self._flight is not None:
            self._flight.first_token_s = self._arrived_s
        self._stamps.append(self._arrived_s)

    def _fail(self, kind: FailureKind, detail: str, status: int | None = None) -> None:
        if self._failure is None and self._done_s is None:
            self._failure = Failure(kind, detail, status)

    # --------------------------------------------------------------------------------------------- sample
    def sample(self, ending: Ending) -> Sample:
        """The sample of the ended request."""
        if not ending.cancelled and ending.failure is None and self._status == 200 and self._document is not None:
            self._read_document(bytes(self._document))
        request, flight = self._request, self._flight
        started_s = ending.at_s if flight is None else flight.started_s
        failure = None if ending.cancelled else self._failure_at(ending)
        usage = self._usage()
        stamps = self._stamps
        return Sample(
            request_id=request.request_id,
            label=request.label,
            class_name=request.class_name,
            stream=request.stream,
            wanted_prompt_tokens=request.prompt_tokens,
            wanted_output_tokens=request.output_tokens,
            started_s=started_s,
            duration_s=(ending.at_s if self._done_s is None else self._done_s) - started_s,
            ttft_s=stamps[0] - started_s if stamps else None,
            ttfc_s=None if flight is None or flight.first_content_s is None else flight.first_content_s - started_s,
            last_token_s=stamps[-1] - started_s if stamps else None,
            gaps_s=gap_quantiles(stamps, request.gap_quantiles),
            token_events=len(stamps),
            prompt_tokens=_count(usage, "prompt_tokens"),
            completion_tokens=_count(usage, "completion_tokens"),
            cached_tokens=_count(usage.get("prompt_tokens_details"), "cached_tokens"),
            failure=failure,
            cancelled=ending.cancelled,
            connect_s=self._connect_s,
            send_delay_s=max(0.0, started_s - self._wanted_s - self._connect_s),
        )

    def _failure_at(self, ending: Ending) -> Failure | None:
        """The server's own words first, then how the wire ended, then what is missing."""
        said = self._said_failure()
        if said is not None:
            return said
        if self._done_s is not None and self._finish_reason is not None:
            return None
        if ending.failure is not None or self._finish_reason is not None:
            return ending.failure
        if self._document is None and not self._events:
            return Failure(FailureKind.PROTOCOL, "no event in the stream", 200)
        return Failure(FailureKind.TRUNCATED, "ended without a finish_reason")

    def _said_failure(self) -> Failure | None:
        if self._failure is not None:
            return self._failure
        if self._location:
            return Failure(FailureKind.STATUS, f"redirects to {self._location}", self._status)
        if self._status not in (0, 200):
            return Failure(FailureKind.STATUS, error_text(bytes(self._document or b"")), self._status)
        if self._finish_reason in _ABANDONED:
            return Failure(FailureKind.ERROR_EVENT, f"the engine gave up: finish_reason '{self._finish_reason}'")
        return None

    def _read_document(self, body: bytes) -> None:
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            self._fail(FailureKind.PROTOCOL, "the answer is not a JSON object", 200)
            return
        if answer.get("error") or answer.get("object") == "error":
            self._fail(FailureKind.ERROR_EVENT, error_message(answer), _error_code(answer))
            return
        choice = _first_choice(answer)
        if choice is None:
            self._fail(FailureKind.PROTOCOL, "the answer has no choices", 200)
        elif self._request.stream:
            self._fail(FailureKind.PROTOCOL, "a stream was asked for, one document came", 200)
        else:
            self._finish_reason = choice.get("finish_reason")
            self._usage_source = body

    def _usage(self) -> dict[str, Any]:
        if self._usage_source is None:
            return {}
        usage = json.loads(self._usage_source).get("usage")
        return usage if isinstance(usage, dict) else {}


def gap_quantiles(stamps: array[float], quantiles: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    """Higher-rank order statistic of the gaps: the smallest gap that at least a share `q` of them do not exceed."""
    gaps = sorted(later - earlier for earlier, later in pairwise(stamps))
    if not gaps:
        return ()
    return tuple((q, gaps[min(len(gaps), max(1, ceil(q * len(gaps) - 1e-9))) - 1]) for q in quantiles)


def error_text(body: bytes) -> str:
    """The server's message out of an error body; else the start of the body itself."""
    try:
        parsed = json.loads(body)
    except ValueError:
        parsed = None
    return error_message(parsed) if isinstance(parsed, dict) else _clean(body)


def error_message(parsed: dict[str, Any]) -> str:
    """`error.message`, `error`, `message` or `detail`: the four places where engines put it."""
    error = parsed.get("error")
    if isinstance(error, dict):
        error = error.get("message") or error.get("type") or json.dumps(error)
    said = error or parsed.get("message") or parsed.get("detail") or json.dumps(parsed)
    return _clean(str(said).encode())


def _clean(text: bytes) -> str:
    """One line, printable, bounded."""
    return " ".join(text[:MAX_DETAIL_BYTES].decode("utf-8", "replace").split())[:MAX_DETAIL_BYTES] or "no text"


def _error_code(event: dict[str, Any]) -> int | None:
    error = event.get("error")
    code = error.get("code") if isinstance(error, dict) else event.get("code")
    return code if isinstance(code, int) and not isinstance(code, bool) else None


def _first_choice(event: dict[str, Any]) -> dict[str, Any] | None:
    choices = event.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def _count(usage: Any, key: str) -> int | None:
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
