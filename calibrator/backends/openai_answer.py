"""Reads one response of an OpenAI-compatible server as it arrives, and stamps what a user would notice.

A *token event* is an event with generated text of any kind: `delta.content`, `reasoning`, `reasoning_content`,
`tool_calls`, or `text` of plain completions. A role-only or empty chunk is none; a finish chunk may be one. If a
response finishes without any text, its finish is the only event and counts as its first token.

Good is only: status 200, no `error` in any event, and a `finish_reason`, or usage that proves the answer complete: as
many tokens as were asked for, or a usage chunk without choices, which closes an answer. `[DONE]` is not needed for that
(some engines never send it), but after it nothing can go wrong any more. Usage comes in a last chunk without choices,
in the finish chunk or in every chunk: the last one counts, and is decoded once, at the end. Zero is no count: a prompt
has tokens, and so has an answer with text.

Stream or document is decided by the first byte of the body, for the content type is often wrong: `{`, `[` and `<` begin
a document, whatever was asked for.

Cost. An event in mid-answer differs from the one before in its text only. So the first token event is decoded as JSON;
if its bytes show a marker like `"content":"`, later events with the same marker are judged by substring tests alone
(`_is_plain_token`). That is sound: inside a JSON string every quote is escaped, so the marker's bytes cannot be text.
Whatever the tests do not prove is decoded. What is kept per event is one float.
"""

from __future__ import annotations

import contextlib
import json
import re
from array import array
from collections.abc import Callable
from itertools import pairwise
from math import ceil
from typing import Any

from calibrator.backends.engine_words import (
    as_object,
    clean,
    error_code,
    error_text,
    is_error,
    quota_words,
    said_error,
)
from calibrator.backends.http1 import Ending, Headers
from calibrator.backends.sse import SseDecoder, SseError
from calibrator.core.records.sample import REFUSALS, Failure, FailureKind, Fault, Flight, ProbeRequest, Sample

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024  # of an answer that is not streamed
MAX_DETAIL_BYTES = 2048  # of an error's text
MAX_SHOWN_BYTES = 200  # of what should not have come

_BLANK = b"\xef\xbb\xbf \t\r\n"  # a BOM and white space
_DOCUMENTS = b"{[<"
_ANSWER = re.compile(rb'"(choices|delta|content|text)"')
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
        self._headers: Headers = {}  # of a refusal
        self._document: bytearray | None = bytearray()  # None: an event stream
        self._is_decided = not request.stream  # whether a stream or a document comes
        self._sse = SseDecoder()
        self._failure: Failure | None = None
        self._finish_reason: str | None = None
        self._done_s: float | None = None
        self._usage_source: bytes | None = None
        self._usage_closes = False  # the last one came in a chunk without choices
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
        self._is_decided = self._is_decided or status != 200
        if status == 429:
            self._headers = headers
        if 300 <= status < 400:
            self._location = headers.get(b"location", b"?").decode("latin-1")

    def on_body(self, data: bytes, at_s: float) -> None:
        if not self._is_decided:
            data = self._decide(data)
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

    def _decide(self, data: bytes) -> bytes:
        """Before the first byte that tells nothing is done; with it all bytes so far are handed on."""
        seen = bytes(self._document or b"") + data
        first = seen.lstrip(_BLANK)[:1]
        if not first:
            return data
        self._is_decided = True
        self._document = bytearray() if first in _DOCUMENTS else None
        return seen

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
        event = as_object(data)
        if event is None:
            if event_type == b"error":
                self._fail_in_words(clean(data), None)
            else:
                words = f"an event that is not a JSON object: {_shown(data)}"
                self._fail(FailureKind.PROTOCOL, words, fault=Fault.NO_EVENTS)
            return
        if is_error(event) or event_type == b"error":
            self._fail_as_said(event)
            return
        choice = _first_choice(event)
        if event.get("usage"):
            self._usage_source, self._usage_closes = data, choice is None
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

    def _fail(self, kind: FailureKind, detail: str, status: int | None = None, fault: Fault | None = None) -> None:
        if self._failure is None and self._done_s is None:
            self._failure = Failure(kind, detail, status, fault)

    def _fail_as_said(self, event: dict[str, Any]) -> None:
        code, words = error_code(event), said_error(event)
        quota = quota_words(words, json.dumps(event), self._headers) if code == 429 else None
        if quota is None:
            self._fail_in_words(words, code)
        else:
            self._fail(FailureKind.QUOTA, quota, code)

    def _fail_in_words(self, words: str, code: int | None) -> None:
        """An error after the first token broke an answer off; by its code it may still be a refusal or our mistake."""
        failure = Failure(FailureKind.ERROR_EVENT, words, code)
        if self._stamps and code not in REFUSALS and not failure.is_our_mistake:
            self._fail(FailureKind.TRUNCATED, f"broke off: {words}", code)
        else:
            self._fail(failure.kind, words, code)

    # --------------------------------------------------------------------------------------------- sample
    def sample(self, ending: Ending) -> Sample:
        """The sample of the ended request."""
        if not ending.cancelled and self._status == 200:
            self._read_rest(in_order=ending.failure is None)
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
            token_reads=1 + sum(later > earlier for earlier, later in pairwise(stamps)) if stamps else 0,
            prompt_tokens=_count(usage, "prompt_tokens") or None,
            completion_tokens=self._completion_tokens(usage),
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
        if self._done_s is not None and self._is_complete:
            return None
        if ending.failure is not None or self._is_complete:
            return ending.failure
        rest = self._sse.undispatched
        if self._document is None and not self._events:
            words = f"no event in the stream, but: {_shown(rest)}" if rest else "no event in the stream"
            return Failure(FailureKind.PROTOCOL, words, 200, Fault.NO_EVENTS)
        instead = f"; what came instead: {_shown(rest)}" if rest else ""
        return Failure(FailureKind.TRUNCATED, f"ended without a finish_reason{instead}")

    @property
    def _is_complete(self) -> bool:
        """By its finish_reason, or by usage."""
        if self._finish_reason is not None:
            return True
        tokens = self._completion_tokens(self._usage())
        return tokens is not None and (self._usage_closes or tokens >= self._request.output_tokens)

    def _said_failure(self) -> Failure | None:
        if self._failure is not None:
            return self._failure
        if self._location:
            return Failure(FailureKind.STATUS, f"redirects to {self._location}", self._status)
        if self._status not in (0, 200):
            body = bytes(self._document or b"")
            words = error_text(body)
            quota = quota_words(words, body.decode("utf-8", "replace"), self._headers) if self._status == 429 else None
            if quota is not None:
                return Failure(FailureKind.QUOTA, quota, self._status)
            return Failure(FailureKind.STATUS, words, self._status)
        if self._finish_reason in _ABANDONED:
            return Failure(FailureKind.ERROR_EVENT, f"the engine gave up: finish_reason '{self._finish_reason}'")
        return None

    def _read_rest(self, *, in_order: bool) -> None:
        """What can be read at the end only; not `in_order`: the connection broke."""
        if not self._is_decided:  # a stream was asked for, and not a letter came
            self._document = None
        if self._document is not None:
            if in_order:
                self._read_document(bytes(self._document))
            return
        if in_order:
            with contextlib.suppress(SseError):
                self._sse.end(self._on_event)
        said = as_object(self._sse.undispatched)
        if said is not None and is_error(said):  # in the middle of a stream, without the form of an event
            self._fail_as_said(said)

    def _read_document(self, body: bytes) -> None:
        answer = as_object(body)
        if answer is None:
            is_stream = body.lstrip(_BLANK).startswith((b"data:", b"event:"))
            words = "one document was asked for, a stream came" if is_stream else "the answer is not a JSON object"
            fault = Fault.STREAMED if is_stream else None
            self._fail(FailureKind.PROTOCOL, f"{words}: {_shown(body)}", 200, fault)
            return
        if is_error(answer):
            self._fail_as_said(answer)
            return
        choice = _first_choice(answer)
        if choice is None:
            self._fail(FailureKind.PROTOCOL, f"the answer has no choices: {_shown(body)}", 200)
        elif self._request.stream:
            self._fail(FailureKind.PROTOCOL, "a stream was asked for, one document came", 200, Fault.NOT_STREAMED)
        else:
            self._finish_reason = choice.get("finish_reason")
            self._usage_source = body

    def _usage(self) -> dict[str, Any]:
        if self._usage_source is None:
            return {}
        usage = json.loads(self._usage_source).get("usage")
        return usage if isinstance(usage, dict) else {}

    def _completion_tokens(self, usage: dict[str, Any]) -> int | None:
        return _count(usage, "completion_tokens") or None


def gap_quantiles(stamps: array[float], quantiles: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    """Higher-rank order statistic of the gaps: the smallest gap that at least a share `q` of them do not exceed."""
    gaps = sorted(later - earlier for earlier, later in pairwise(stamps))
    if not gaps:
        return ()
    return tuple((q, gaps[min(len(gaps), max(1, ceil(q * len(gaps) - 1e-9))) - 1]) for q in quantiles)


def _shown(data: bytes) -> str:
    """Its beginning, unless it is part of an answer: completions end in no record and no log."""
    return "part of an answer" if _ANSWER.search(data) else clean(data[:MAX_SHOWN_BYTES])


def _first_choice(event: dict[str, Any]) -> dict[str, Any] | None:
    choices = event.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def _count(usage: Any, key: str) -> int | None:
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
