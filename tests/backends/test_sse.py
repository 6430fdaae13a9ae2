"""The event stream decoder gives the events of the standard, whatever the split of its bytes."""

from __future__ import annotations

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


def reference(stream: bytes) -> Events:
    """The standard's own algorithm, on the whole stream at once."""
    events: Events = []
    data, event_type = b"", b""
    for line in re.split(rb"\r\n|\r|\n", stream.removeprefix(b"\xef\xbb\xbf"))[:-1]:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if data:
                events.append((data[:-1], event_type))
            data, event_type = b"", b""
        elif name == b"data":
            data += value + b"\n"
        elif name == b"event":
            event_type = value
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


PIECES = [b"data: ", b"data:", b"data", b"event: error", b": c", b"x\xc3\xa4\xe2\x82\xac", b"{}", b" ", b"\xef\xbb\xbf"]
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
