"""The event stream decoder gives the events of the standard, whatever the split of its bytes."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrator.backends.sse import SseDecoder, SseError

Events = list[tuple[bytes, bytes]]


def decode(*chunks: bytes) -> Events:
    events: Events = []
    decoder = SseDecoder()
    for chunk in chunks:
        decoder.feed(chunk, lambda data, event_type: events.append((data, event_type)))
    return events


def is_whole(value: bytes) -> bool:
    """From brace to brace, and as many open as close, or JSON all the same."""
    if not (value.startswith(b"{") and value.endswith(b"}")):
        return value == b"[DONE]"
    try:
        return isinstance(json.loads(value), dict)
    except ValueError:
        return value.count(b"{") == value.count(b"}")


def reference(stream: bytes) -> Events:
    """The standard's own algorithm on the whole stream at once, with what the decoder takes beside it."""
    events: Events = []
    data, event_type, comment = b"", b"", b""
    for line in re.split(rb"\r\n|\r|\n", stream.removeprefix(b"\xef\xbb\xbf"))[:-1]:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if data:
                events.append((data[:-1], event_type))
            elif event_type == b"error":
                events.append((comment, event_type))
            data, event_type, comment = b"", b"", b""
        elif name == b"data" and not data and is_whole(value):
            events.append((value, event_type))
            event_type = b""
        elif name == b"data":
            data += value + b"\n"
        elif line.startswith(b"error:"):
            data, event_type = data + value + b"\n", b"error"
        elif name == b"event":
            event_type = value
        elif line.startswith(b":"):
            comment = line[1:].strip()
    return events


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [(b"a", b"")]),
        (b"data: a\r\n\r\n", [(b"a", b"")]),
        (b"data: a\r\r", [(b"a", b"")]),
        (b"data:a\n\n", [(b"a", b"")]),  # the blank is optional
        (b"data:  a\n\n", [(b" a", b"")]),  # and only one is
        (b"data: a\ndata: b\n\n", [(b"a\nb", b"")]),
        (b"data\n\n", [(b"", b"")]),  # a field without colon
        (b"data:\ndata:\n\n", [(b"\n", b"")]),
        (b": ping\n\ndata: a\n\n", [(b"a", b"")]),
        (b"event: error\ndata: a\n\ndata: b\n\n", [(b"a", b"error"), (b"b", b"")]),
        (b"event: x\n\ndata: b\n\n", [(b"b", b"")]),  # a name without data is forgotten
        (b"id: 1\nretry: 3\nother: x\ndata: a\n\n", [(b"a", b"")]),
        (b"\xef\xbb\xbfdata: a\n\n", [(b"a", b"")]),
        (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [(b"a", b"")]),  # a BOM only counts at the start
        (b"data: a\n", []),  # no blank line, no event
        (b'data: [{"a":1}\ndata: ]\n\n', [(b'[{"a":1}\n]', b"")]),
        (b'data: {"a":\ndata: {}\ndata: }\n\n', [(b'{"a":\n{}\n}', b"")]),
        (b'data: {"a":1}\ndata: {"b":2}\ndata: [DONE]\n', [(b'{"a":1}', b""), (b'{"b":2}', b""), (b"[DONE]", b"")]),
        (b'data: {"a":"{"}\ndata: {"b":2}\n', [(b'{"a":"{"}', b""), (b'{"b":2}', b"")]),  # a brace in a text
        (b'data: {\ndata: "a": 1\ndata: }\n\n', [(b'{\n"a": 1\n}', b"")]),  # over several lines, as the standard says
        (b'error: {"code":400}\n\ndata: [DONE]\n\n', [(b'{"code":400}', b"error"), (b"[DONE]", b"")]),
        (b"event: error\n: gone\n\ndata: x\n\n", [(b"gone", b"error"), (b"x", b"")]),
        (b"event: ping\n: gone\n\n", []),
        (b"", []),
    ],
)
def test_events_of_a_stream(stream: bytes, events: Events) -> None:
    assert decode(stream) == events
    assert reference(stream) == events


def test_an_event_waits_for_no_byte_it_does_not_need() -> None:
    """With CR as line end, the event is out before the LF that may follow."""
    assert decode(b"data: a\r\n\r") == [(b"a", b"")]
    assert decode(b"data: a\r\n\r", b"\ndata: b\r\n\r\n") == [(b"a", b""), (b"b", b"")]


PIECES = [
    b"data: ",
    b"data:",
    b"data",
    b"event: error",
    b"error: ",
    b": c",
    b"[DONE]",
    b"x\xc3\xa4\xe2\x82\xac",
    b"{}",
    b" ",
    b"\xef\xbb\xbf",
]
ENDS = [b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r\r"]


@given(
    st.lists(st.sampled_from(PIECES + ENDS), max_size=30).map(b"".join),
    st.lists(st.integers(0, 200), max_size=12),
)
def test_any_split_gives_the_events_of_the_standard(stream: bytes, cuts: list[int]) -> None:
    places = sorted({min(cut, len(stream)) for cut in cuts})
    chunks = [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]
    expected = reference(stream)
    assert decode(*chunks) == expected
    assert decode(*(stream[i : i + 1] for i in range(len(stream)))) == expected


@pytest.mark.parametrize(
    "piece", [b"data: " + b"x" * 3_000_000 + b"\n", b"data:\n" * 450_000, b"x" * 3_000_000], ids=["few", "many", "line"]
)
def test_one_event_is_bounded(piece: bytes) -> None:
    assert decode(piece) == []
    with pytest.raises(SseError):
        decode(piece, piece)


@pytest.mark.parametrize(
    ("chunks", "events", "left"),
    [
        ([b'data: {"a":1}'], [(b'{"a":1}', b"")], b""),  # nothing ended the line, but the stream is over
        ([b"data: [DONE]"], [(b"[DONE]", b"")], b""),
        ([b'data: {"a":'], [], b'{"a":'),
        ([b"event: error\n: gone"], [(b"gone", b"error")], b""),
        ([b'error: {"code":1}'], [(b'{"code":1}', b"error")], b""),
        ([b"upstream connect ", b"error\nreset"], [], b"upstream connect error\nreset"),
        ([b'data: {"a":1}\n\n{"error":"x"}'], [(b'{"a":1}', b"")], b'{"error":"x"}'),
        ([b": ping\nid: 7\nretry: 1\n\n"], [], b""),
        ([b"y" * 5000], [], b"y" * 2048),
    ],
)
def test_what_is_left_at_the_end_is_an_event_or_is_kept(chunks: list[bytes], events: Events, left: bytes) -> None:
    seen: Events = []
    decoder = SseDecoder()
    for chunk in chunks:
        decoder.feed(chunk, lambda data, event_type: seen.append((data, event_type)))
    decoder.end(lambda data, event_type: seen.append((data, event_type)))
    assert seen == events
    assert decoder.undispatched == left
