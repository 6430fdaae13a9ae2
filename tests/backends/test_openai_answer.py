"""One answer: what counts as a token, every failure form, usage wherever it comes, stamps and gaps."""

from __future__ import annotations

import asyncio
import json
import math
from array import array
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.virtual_time import run_virtual
from support.wire import DONE, FINISH, GOOD_BODY, HELLO, ROLE, USAGE, MemoryTransport, chunk, event, head, probe, sized
from support.wire import usage as tokens

from calibrator.backends.http1 import Http1Connection, Timeouts
from calibrator.backends.openai_answer import Answer, gap_quantiles
from calibrator.core.records.sample import Failure, FailureKind, Fault, Flight, Sample


def play(*reads: bytes, stream: bool = True, closes: bool = False) -> Sample:
    """Read number i arrives at second i + 1; then the peer closes, if it does."""

    async def run() -> Sample:
        loop = asyncio.get_running_loop()
        connection = Http1Connection(loop.time, Timeouts(5.0, 30.0, 300.0))
        MemoryTransport(connection)
        for number, data in enumerate(reads):
            loop.call_at(number + 1.0, connection.data_received, data)
        if closes:
            loop.call_at(len(reads) + 1.0, connection.eof_received)
        answer = Answer(probe(stream=stream), lambda _flight: None, 0.0)
        return answer.sample(await connection.exchange(b"x", answer, 0.0))

    return run_virtual(run())


def play_events(*events: bytes) -> Sample:
    """Head at second 1, each event one second later, end of the stream with the last."""
    body = b"".join(events)
    return play(head("200 OK", "text/event-stream", f"Content-Length: {len(body)}"), *events)


def test_a_good_answer() -> None:
    sample = play_events(ROLE, HELLO, HELLO, HELLO, FINISH, USAGE, DONE)
    assert sample.completed
    assert (sample.ttft_s, sample.ttfc_s, sample.last_token_s, sample.duration_s) == (3.0, 3.0, 5.0, 8.0)
    assert (sample.token_events, sample.prompt_tokens, sample.completion_tokens) == (3, 7, 3)
    assert sample.tpot_s == 1.0
    assert sample.gaps_s == ((0.5, 1.0), (0.9, 1.0), (0.99, 1.0))


def text_chunk(text: str, finish: str | None = None) -> bytes:
    return event({"object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": finish}]})


TOOL = {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}


@pytest.mark.parametrize(
    ("events", "ttft_s", "ttfc_s", "token_events"),
    [
        ([ROLE, HELLO], 3.0, 3.0, 1),
        ([chunk({"role": "assistant", "content": None}), HELLO], 3.0, 3.0, 1),  # llama.cpp's first chunk
        ([chunk({"role": "assistant", "content": "hi"})], 2.0, 2.0, 1),
        ([chunk({"reasoning_content": "so"}), HELLO], 2.0, 3.0, 2),
        ([chunk({"reasoning": "so"}), chunk({"reasoning": "so"}), HELLO, HELLO], 2.0, 4.0, 4),
        ([chunk({"reasoning": "so", "content": ""}), HELLO], 2.0, 3.0, 2),
        ([chunk({"reasoning": "so"}), chunk({"reasoning": "so", "content": "x"})], 2.0, 3.0, 2),
        ([ROLE, chunk(TOOL), chunk(TOOL)], 3.0, None, 2),
        ([text_chunk(""), text_chunk("a"), text_chunk("b")], 3.0, 3.0, 2),
        ([HELLO, ROLE, HELLO, chunk({"content": None}), chunk({})], 2.0, 2.0, 2),  # empty chunks between tokens
        ([b": ping\n\n", b"event: x\n\n", HELLO], 4.0, 4.0, 1),
        ([HELLO, chunk({"content": 'a "content":"" b'}), chunk({"content": '"finish_reason":"stop"'})], 2.0, 2.0, 3),
        ([HELLO, chunk({"content": "\\"}), chunk({"content": "error"}), chunk({"content": "\u20ac"})], 2.0, 2.0, 4),
        ([HELLO + HELLO, HELLO], 2.0, 2.0, 3),  # two events in one read: both arrived then
    ],
)
def test_what_counts_as_a_token(events: list[bytes], ttft_s: float, ttfc_s: float | None, token_events: int) -> None:
    sample = play_events(*events, FINISH)
    assert sample.completed
    assert (sample.ttft_s, sample.ttfc_s, sample.token_events) == (ttft_s, ttfc_s, token_events)


def test_a_finish_chunk_may_carry_the_last_token() -> None:
    sample = play_events(HELLO, HELLO, chunk({"content": "x"}, finish="length"))
    assert (sample.token_events, sample.last_token_s, sample.failure) == (3, 4.0, None)


def test_an_answer_without_text_has_its_finish_as_first_token() -> None:
    sample = play_events(ROLE, FINISH)
    assert (sample.ttft_s, sample.ttfc_s, sample.token_events, sample.failure) == (3.0, None, 1, None)


DELTAS = st.fixed_dictionaries(
    {}, optional={key: st.none() | st.text(max_size=8) for key in ("content", "reasoning_content", "reasoning", "role")}
)
SPELLINGS = [(ascii_only, marks) for ascii_only in (True, False) for marks in ((",", ":"), (", ", ": "))]
EXTRAS = st.fixed_dictionaries({}, optional={"usage": st.none() | st.just(tokens()), "error": st.none()})


@given(st.lists(st.tuples(DELTAS, EXTRAS), max_size=12), st.sampled_from(SPELLINGS))
def test_the_quick_tests_never_differ_from_decoding(
    deltas: list[tuple[dict[str, str | None], dict[str, object]]], spelling: tuple[bool, tuple[str, str]]
) -> None:
    """Whatever spelling of JSON: tokens, first content and usage are those of a plain decoder."""
    answer = Answer(probe(), lambda _flight: None, 0.0)
    answer.on_start(0.0, 0.0)
    answer.on_head(200, {b"content-type": b"text/event-stream"})
    wanted: list[float] = []
    first_content = usage_at = None
    for at_s, (delta, extra) in enumerate(deltas, start=1):
        payload = {"choices": [{"delta": delta, "finish_reason": None}], **extra}
        text = json.dumps(payload, ensure_ascii=spelling[0], separators=spelling[1])
        answer.on_body(f"data: {text}\n\n".encode(), float(at_s))
        if delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning"):
            wanted.append(float(at_s))
        if delta.get("content") and first_content is None:
            first_content = float(at_s)
        if extra.get("usage"):
            usage_at = at_s
    assert list(answer._stamps) == wanted
    assert answer._flight is not None
    assert answer._flight.first_content_s == first_content
    assert answer._flight.first_token_s == (wanted[0] if wanted else None)
    assert (answer._usage_source is not None) == (usage_at is not None)


@pytest.mark.parametrize(
    "events",
    [
        [HELLO, FINISH, USAGE, DONE],
        [HELLO, FINISH, USAGE],  # no [DONE]
        [HELLO, chunk({}, finish="stop", usage=tokens())],  # inside the finish chunk (transformers)
        [chunk({"content": "x"}, usage=tokens(7, 1)), chunk({"content": "x"}, "length", usage=tokens()), DONE],
        [chunk({"content": "x"}, usage=None), FINISH, USAGE, DONE],
    ],
)
def test_usage_is_taken_wherever_it_comes(events: list[bytes]) -> None:
    sample = play_events(*events)
    assert (sample.failure, sample.prompt_tokens, sample.completion_tokens) == (None, 7, 3)


def test_usage_details_and_nonsense_in_usage() -> None:
    cached = {"prompt_tokens": 9, "completion_tokens": -1, "prompt_tokens_details": {"cached_tokens": 4}}
    sample = play_events(HELLO, chunk({}, finish="stop", usage=cached))
    assert (sample.prompt_tokens, sample.completion_tokens, sample.cached_tokens) == (9, None, 4)
    sample = play_events(HELLO, chunk({}, finish="stop", usage=["x"]))
    assert (sample.failure, sample.prompt_tokens) == (None, None)


REFUSAL = {"error": {"message": "queue is full", "type": "Service Unavailable", "code": 503}}


@pytest.mark.parametrize(
    ("events", "failure"),
    [
        ([event(REFUSAL), DONE], Failure(FailureKind.ERROR_EVENT, "queue is full", 503)),
        ([ROLE, HELLO, event(REFUSAL), DONE], Failure(FailureKind.ERROR_EVENT, "queue is full", 503)),
        ([HELLO, event(REFUSAL), FINISH, DONE], Failure(FailureKind.ERROR_EVENT, "queue is full", 503)),
        (
            [HELLO, chunk({"content": "x"}, error=REFUSAL["error"]), FINISH],
            Failure(FailureKind.ERROR_EVENT, "queue is full", 503),
        ),
        ([event({"object": "error", "message": "no", "code": 400})], Failure(FailureKind.ERROR_EVENT, "no", 400)),
        ([event({"error": "no"})], Failure(FailureKind.ERROR_EVENT, "no")),
        ([b"event: error\ndata: overloaded\n\n"], Failure(FailureKind.ERROR_EVENT, "overloaded")),
        # llama.cpp until September 2025: a field of its own, then [DONE]
        ([b'error: {"code":400,"message":"too long"}\n\n', DONE], Failure(FailureKind.ERROR_EVENT, "too long", 400)),
        # a proxy that hands on an engine's error without the form of an event, at once and in mid-answer
        ([b'{"error":{"code":400,"message":"too long"}}'], Failure(FailureKind.ERROR_EVENT, "too long", 400)),
        ([ROLE, b'{"error":{"code":503,"message":"full"}}\n'], Failure(FailureKind.ERROR_EVENT, "full", 503)),
        # Dynamo: the reason stands in a comment
        ([ROLE, b"event: error\n: gave up\n\n", DONE], Failure(FailureKind.ERROR_EVENT, "gave up")),
        ([HELLO, b"event: error\n: gave up\n\n", DONE], Failure(FailureKind.TRUNCATED, "broke off: gave up")),
        (
            [b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"hot"}}\n\n'],
            Failure(FailureKind.ERROR_EVENT, "hot", 529),
        ),
        (
            [event({"message": "busy", "type": "Overloaded", "code": 529, "object": "error"})],
            Failure(FailureKind.ERROR_EVENT, "busy", 529),
        ),
        (
            [event({"error": {"message": "too long", "code": "context_length_exceeded"}})],
            Failure(FailureKind.ERROR_EVENT, "too long", 400),
        ),
        (
            [HELLO, event({"error": {"message": "engine died", "code": 500}}), DONE],
            Failure(FailureKind.TRUNCATED, "broke off: engine died", 500),
        ),
        (
            [event({"error": {"message": "30 requests per minute", "code": 429}})],
            Failure(FailureKind.QUOTA, "30 requests per minute", 429),
        ),
        (
            [event({"error": {"message": "too many concurrent requests", "code": 429}})],
            Failure(FailureKind.ERROR_EVENT, "too many concurrent requests", 429),
        ),
        (
            [HELLO, chunk({}, finish="abort")],
            Failure(FailureKind.ERROR_EVENT, "the engine gave up: finish_reason 'abort'"),
        ),
        ([ROLE, HELLO], Failure(FailureKind.TRUNCATED, "ended without a finish_reason")),
        ([ROLE, HELLO, DONE], Failure(FailureKind.TRUNCATED, "ended without a finish_reason")),
        (
            [HELLO, FINISH[:-4]],
            Failure(FailureKind.TRUNCATED, "ended without a finish_reason; what came instead: part of an answer"),
        ),
        (
            [HELLO, b"upstream reset\n"],
            Failure(FailureKind.TRUNCATED, "ended without a finish_reason; what came instead: upstream reset"),
        ),
        ([b"\n\n"], Failure(FailureKind.PROTOCOL, "no event in the stream", 200, Fault.NO_EVENTS)),
        (
            [b"hello world"],
            Failure(FailureKind.PROTOCOL, "no event in the stream, but: hello world", 200, Fault.NO_EVENTS),
        ),
        (
            [b"data: {]\n\n", FINISH],
            Failure(FailureKind.PROTOCOL, "an event that is not a JSON object: {]", None, Fault.NO_EVENTS),
        ),
        (
            [b"data: [1]\n\n", FINISH],
            Failure(FailureKind.PROTOCOL, "an event that is not a JSON object: [1]", None, Fault.NO_EVENTS),
        ),
        (
            [b"data: \xff\xfe\n\n", FINISH],
            Failure(FailureKind.PROTOCOL, "an event that is not a JSON object: \ufffd\ufffd", None, Fault.NO_EVENTS),
        ),
    ],
)
def test_failures_inside_a_200_stream(events: list[bytes], failure: Failure) -> None:
    assert play_events(*events).failure == failure


def test_an_endless_line_is_a_protocol_failure() -> None:
    failure = play_events(b"data: " + b"x" * 4_100_000, FINISH).failure
    assert failure is not None
    assert failure.kind is FailureKind.PROTOCOL


@pytest.mark.parametrize(
    ("status", "content_type", "body", "detail"),
    [
        ("503 Service Unavailable", "application/json", json.dumps(REFUSAL).encode(), "queue is full"),
        ("400 Bad Request", "application/json", b'{"object":"error","message":"too long"}', "too long"),
        ("422 Unprocessable Entity", "application/json", b'{"detail":"Unexpected fields"}', "Unexpected fields"),
        ("404 Not Found", "text/html", b"<h1>Not\n  Found</h1>", "<h1>Not Found</h1>"),
        ("500 Internal Server Error", "text/event-stream", b"data: x\n\n", "data: x"),
        ("429 Too Many Requests", "text/plain", b"", "no text"),
        ("502 Bad Gateway", "text/plain", b"x" * 100_000, "x" * 2048),
    ],
)
def test_any_status_but_200_is_a_failure_with_the_servers_words(
    status: str, content_type: str, body: bytes, detail: str
) -> None:
    sample = play(sized(body, status, content_type))
    assert sample.failure == Failure(FailureKind.STATUS, detail, int(status[:3]))
    assert (sample.ttft_s, sample.token_events) == (None, 0)


def test_a_redirect_is_not_followed_and_says_where_to() -> None:
    sample = play(sized(b"", "307 Temporary Redirect", "text/plain", "Location: https://elsewhere/v1"))
    assert sample.failure == Failure(FailureKind.STATUS, "redirects to https://elsewhere/v1", 307)


@pytest.mark.parametrize("content_type", ["application/json", "text/html; charset=utf-8", "text/event-stream", ""])
def test_a_document_where_a_stream_was_asked_for(content_type: str) -> None:
    failure = play(sized(b"<html></html>", "200 OK", content_type)).failure
    assert failure == Failure(FailureKind.PROTOCOL, "the answer is not a JSON object: <html></html>", 200)
    failure = play(sized(json.dumps(REFUSAL).encode(), "200 OK", content_type)).failure
    assert failure == Failure(FailureKind.ERROR_EVENT, "queue is full", 503)
    failure = play(sized(b'{"choices":[{"message":{}}]}', "200 OK", content_type)).failure
    assert failure is not None
    assert (failure.kind, failure.fault) == (FailureKind.PROTOCOL, Fault.NOT_STREAMED)


@pytest.mark.parametrize("content_type", ["text/plain", "application/json", "text/html", ""])
@pytest.mark.parametrize("before", [b"", b"\n\n", b"\xef\xbb\xbf", b": hello\n\n"])
def test_a_stream_under_a_wrong_content_type_is_still_read(content_type: str, before: bytes) -> None:
    sample = play(
        head("200 OK", content_type, f"Content-Length: {len(before + GOOD_BODY)}"), before[:1], before[1:], GOOD_BODY
    )
    assert (sample.failure, sample.token_events, sample.completion_tokens) == (None, 3, 3)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_events_that_a_single_newline_ends_are_stamped_when_they_come(end: bytes) -> None:
    lines = [part.strip() + end for part in (ROLE, HELLO, HELLO, HELLO, FINISH, USAGE, DONE)]
    sample = play_events(*lines)
    assert sample.completed
    assert (sample.ttft_s, sample.last_token_s, sample.token_events, sample.tpot_s) == (3.0, 5.0, 3, 1.0)


@pytest.mark.parametrize(
    ("events", "failure"),
    [
        ([HELLO * 4, event({"choices": [], "usage": tokens(7, 4)}), DONE], None),  # closes the answer
        ([HELLO * 4, chunk({}, usage=tokens(7, 4)), DONE], None),  # as many as were asked for
        ([HELLO * 3, chunk({}, usage=tokens(7, 3)), DONE], FailureKind.TRUNCATED),  # in mid-answer
        ([HELLO * 4, DONE], FailureKind.TRUNCATED),
        ([HELLO * 4, chunk({}, usage=tokens(0, 0)), DONE], FailureKind.TRUNCATED),
    ],
)
def test_usage_may_prove_an_answer_complete_where_no_finish_reason_does(
    events: list[bytes], failure: FailureKind | None
) -> None:
    found = play_events(*events).failure
    assert (None if found is None else found.kind) is failure


def test_zero_usage_is_no_count() -> None:
    sample = play_events(HELLO, FINISH, event({"choices": [], "usage": tokens(0, 0)}))
    assert (sample.failure, sample.prompt_tokens, sample.completion_tokens) == (None, None, None)


@pytest.mark.parametrize(
    ("reads", "token_reads"),
    [
        ([ROLE, HELLO, HELLO, HELLO, FINISH], 3),
        ([ROLE + HELLO + HELLO + HELLO + FINISH], 1),
        ([ROLE + HELLO + HELLO, HELLO + FINISH], 2),
        ([ROLE, DONE], 0),
    ],
)
def test_reads_that_bring_tokens_are_counted(reads: list[bytes], token_reads: int) -> None:
    assert play_events(*reads).token_reads == token_reads


@pytest.mark.parametrize(
    ("status", "more", "body", "kind"),
    [
        (429, ("Retry-After: 12",), b"slow down", FailureKind.QUOTA),
        (429, ("x-ratelimit-remaining-requests: 0",), b"slow down", FailureKind.QUOTA),
        (429, ("anthropic-ratelimit-requests-reset: 1",), b"slow down", FailureKind.QUOTA),
        (429, (), b'{"error":{"message":"Rate limit reached: 3 requests per min (RPM)"}}', FailureKind.QUOTA),
        (429, (), b'{"error":{"message":"You exceeded your current quota"}}', FailureKind.QUOTA),
        (429, (), b"slow down", FailureKind.STATUS),
        (429, ("Retry-After: 1",), b'{"error":{"message":"full","code":"concurrency_cap"}}', FailureKind.STATUS),
        (429, ("Retry-After: 1",), b"Limit type: max_parallel_requests", FailureKind.STATUS),
        (503, ("Retry-After: 1",), b"loading", FailureKind.STATUS),
        (529, (), b'{"message":"Service temporarily overloaded","type":"Overloaded","code":529}', FailureKind.STATUS),
    ],
)
def test_a_quota_is_told_from_a_refusal_because_of_load(
    status: int, more: tuple[str, ...], body: bytes, kind: FailureKind
) -> None:
    failure = play(sized(body, f"{status} X", "application/json", *more)).failure
    assert failure is not None
    assert (failure.kind, failure.status, failure.is_refusal) == (kind, status, True)
    assert all(header in failure.detail.lower() for header in map(str.lower, more)) == (
        kind is FailureKind.QUOTA or not more
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "bad value", "param": "min_tokens"}}, "bad value (min_tokens)"),
        ({"error": {"message": "bad 'min_tokens'", "param": "min_tokens"}}, "bad 'min_tokens'"),
        ({"detail": [{"loc": ["body", "seed"], "msg": "extra"}, {"loc": ["body", "x"], "msg": "no"}]},
         "body.seed: extra; body.x: no"),
        ({"message": {"detail": [{"loc": ["body", "seed"], "msg": "extra"}]}}, "body.seed: extra"),
        ([{"error": {"message": "Unknown name", "code": 400}}], "Unknown name"),
        ({"error": "overloaded", "error_type": "overloaded"}, "overloaded"),
    ],
)  # fmt: skip
def test_the_servers_words_are_found_wherever_they_stand(body: object, words: str) -> None:
    failure = play(sized(json.dumps(body).encode(), "400 Bad Request", "application/json")).failure
    assert failure == Failure(FailureKind.STATUS, words, 400)


def test_another_compression_than_gzip_is_named() -> None:
    failure = play(sized(b"\x00", "200 OK", "text/event-stream", "Content-Encoding: br")).failure
    assert failure is not None
    assert (failure.kind, failure.fault) == (FailureKind.PROTOCOL, Fault.ENCODING)
    assert "content-encoding br" in failure.detail


def test_a_tls_alert_in_answer_to_plain_http_is_told_as_such() -> None:
    failure = play(b"\x15\x03\x01\x00\x02\x02\x46").failure
    assert failure is not None
    assert failure.fault is Fault.TLS_PORT


def test_headers_that_come_with_the_first_token_only() -> None:
    """llama.cpp: nothing at all while the request waits; the wait is part of the time to first token."""
    sample = play(sized(ROLE + HELLO + FINISH))
    assert (sample.failure, sample.ttft_s) == (None, 1.0)


def test_after_done_nothing_can_go_wrong() -> None:
    """The stream is complete; how the connection ends is of no interest, and the clock has stopped."""
    framed = [b"%x\r\n%b\r\n" % (len(part), part) for part in (HELLO, FINISH, DONE)]
    sample = play(head("200 OK", "text/event-stream", "Transfer-Encoding: chunked"), *framed, closes=True)
    assert (sample.failure, sample.duration_s) == (None, 4.0)
    sample = play(head("200 OK", "text/event-stream", "Transfer-Encoding: chunked"), *framed[:2], closes=True)
    assert sample.failure is not None
    assert sample.failure.kind is FailureKind.TRUNCATED


def document(**more: object) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "length"}
    return json.dumps({"object": "chat.completion", "choices": [choice], "usage": tokens(), **more}).encode()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (document(), None),
        (document(error=REFUSAL["error"]), FailureKind.ERROR_EVENT),
        (document(choices=[{"message": {}, "finish_reason": None}]), FailureKind.TRUNCATED),
        (document(choices=[]), FailureKind.PROTOCOL),
        (b"[]", FailureKind.PROTOCOL),
        (b"<html></html>", FailureKind.PROTOCOL),
        (GOOD_BODY, FailureKind.PROTOCOL),
    ],
)
def test_an_answer_that_is_not_streamed_has_only_an_end(body: bytes, kind: FailureKind | None) -> None:
    sample = play(sized(body, "200 OK", "application/json"), stream=False)
    assert (sample.failure.kind if sample.failure else None) is kind
    assert (sample.ttft_s, sample.duration_s) == (None, 1.0)
    if kind is None:
        assert (sample.prompt_tokens, sample.completion_tokens, sample.e2e_s) == (7, 3, 1.0)


@given(st.lists(st.floats(0, 100), max_size=40), st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.999]))
def test_gap_quantiles_are_the_smallest_gap_that_enough_gaps_do_not_exceed(gaps: list[float], quantile: float) -> None:
    stamps = array("d", [0.0])
    for gap in gaps:
        stamps.append(stamps[-1] + gap)
    real = sorted(b - a for a, b in pairwise(stamps))
    found = gap_quantiles(stamps, (quantile,))
    if not real:
        assert found == ()
    else:
        enough = math.ceil(quantile * len(real) - 1e-9)
        assert found == ((quantile, min(gap for gap in real if sum(other <= gap for other in real) >= enough)),)


def test_a_flight_is_shown_once_and_restarted_in_place() -> None:
    flights: list[Flight] = []
    answer = Answer(probe(), flights.append, 0.0)
    answer.on_start(1.0, 0.0)
    answer.on_start(2.0, 0.5)
    assert [flight.started_s for flight in flights] == [2.0]
