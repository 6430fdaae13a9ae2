"""Server-sent events without I/O: bytes in, events out, the same whatever the split (WHATWG HTML, section 9.2.6).

Lines end with LF, CR or CRLF. A blank line dispatches what `data:` lines collected, joined by LF; `event:` names it;
`id:` and `retry:` are of no use here and dropped. One leading BOM is skipped.

What servers of this field do beside the standard:

| seen | taken as |
|---|---|
| a JSON object, or `[DONE]`, whole on its `data:` line | an event at the line's end: some send no blank line |
| `error: {...}`, a field that the standard does not know (llama.cpp) | an event of the type `error` |
| `event: error` with a comment and no data (Dynamo) | an event of the type `error`, the comment is its data |
| lines without any field, and what nothing dispatched | no event; kept in `undispatched`, for it is often the reason |

Events stay bytes: a UTF-8 sequence cut by the network is whole again once its line is, and most events are judged
without decoding (`openai_answer`). A CR ends its line at once; an LF that follows in the next read belongs to it. So no
event waits for a byte it does not need.

Cost: a read without line end is only kept; complete lines are found by one `split`. Bounded by `MAX_EVENT_BYTES`.
"""

from __future__ import annotations

import json
from collections.abc import Callable

MAX_EVENT_BYTES = 4_000_000  # a generous tool call is some 100 KB; more is an attack or a mistake
MAX_UNDISPATCHED_BYTES = 2048

OnEvent = Callable[[bytes, bytes], None]  # passed with each read: kept here, it would tie every answer into a cycle

_BOM = b"\xef\xbb\xbf"
_LF = 10
_USELESS = (b"id", b"retry")


class SseError(Exception):
    """The stream breaks the bound on one event."""


class SseDecoder:
    """One stream. `on_event(data, event_type)` is called for each event, in order, inside `feed` and `end`."""

    __slots__ = (
        "_after_cr",
        "_at_start",
        "_comment",
        "_data",
        "_data_bytes",
        "_kept",
        "_kept_bytes",
        "_stray",
        "_type",
    )

    def __init__(self) -> None:
        self._kept: list[bytes] = []  # pieces of the line that is not complete
        self._kept_bytes = 0
        self._after_cr = False
        self._at_start = True
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._type = b""
        self._comment = b""  # of the event that is being collected
        self._stray = b""  # lines without a field

    def feed(self, chunk: bytes, on_event: OnEvent) -> None:
        """Raises SseError when one event grows beyond the bound."""
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk[0] == _LF:
                chunk = chunk[1:]
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n" not in chunk:
            self._keep(chunk)
            return
        lines = chunk.split(b"\n")
        if self._kept:
            lines[0] = b"".join([*self._kept, lines[0]])
            self._kept.clear()
            self._kept_bytes = 0
        rest = lines.pop()
        if self._at_start:
            self._at_start = False
            lines[0] = lines[0].removeprefix(_BOM)
        for line in lines:
            self._line(line, on_event)
        if rest:
            self._keep(rest)

    def end(self, on_event: OnEvent) -> None:
        """The server has ended the stream in order: a last line that is whole counts, though nothing ended it."""
        line, self._kept = b"".join(self._kept), []
        self._line(line.removeprefix(_BOM) if self._at_start else line, on_event)
        if self._type == b"error":
            self._blank(on_event)

    @property
    def undispatched(self) -> bytes:
        """What came and was no event, its beginning."""
        pieces = (self._stray, *self._data, b"".join(self._kept))
        return b"\n".join(piece for piece in pieces if piece)[:MAX_UNDISPATCHED_BYTES]

    def _keep(self, piece: bytes) -> None:
        self._kept.append(piece)
        self._kept_bytes += len(piece)
        if self._kept_bytes > MAX_EVENT_BYTES:
            raise SseError(f"one line of the event stream is longer than {MAX_EVENT_BYTES} bytes")

    def _line(self, line: bytes, on_event: OnEvent) -> None:
        if not line:
            if self._data or self._type or self._comment:
                self._blank(on_event)
        elif line.startswith(b"data:"):
            value = line[6:] if line[5:6] == b" " else line[5:]
            if self._data or not (value.endswith(b"}") or value == b"[DONE]") or not _is_whole(value):
                self._add(value)
            elif self._type:
                event_type, self._type = self._type, b""
                on_event(value, event_type)
            else:
                on_event(value, b"")
        elif line.startswith(b"event:"):
            self._type = line[6:].removeprefix(b" ")
        elif line.startswith(b"error:"):
            self._type = b"error"
            self._add(line[6:].removeprefix(b" "))
        else:
            self._odd_line(line)

    def _blank(self, on_event: OnEvent) -> None:
        data, event_type, comment = self._data, self._type, self._comment
        self._data, self._data_bytes, self._type, self._comment = [], 0, b"", b""
        if data:
            on_event(data[0] if len(data) == 1 else b"\n".join(data), event_type)
        elif event_type == b"error":
            on_event(comment, event_type)

    def _add(self, value: bytes) -> None:
        self._data.append(value)
        self._data_bytes += len(value) + len(b"data:")
        if self._data_bytes > MAX_EVENT_BYTES:
            raise SseError(f"one event is longer than {MAX_EVENT_BYTES} bytes")

    def _odd_line(self, line: bytes) -> None:
        name = line.partition(b":")[0]
        if line == b"data":
            self._add(b"")
        elif line == b"event":
            self._type = b""
        elif not name:
            self._comment = line[1:].strip()[:MAX_UNDISPATCHED_BYTES]
        elif name not in _USELESS and len(self._stray) < MAX_UNDISPATCHED_BYTES:
            self._stray = (self._stray + b"\n" + line if self._stray else line)[:MAX_UNDISPATCHED_BYTES]


def _is_whole(value: bytes) -> bool:
    """Of what ends like one: a JSON object, or `[DONE]`. Braces are counted; those inside of texts cost a decoding."""
    if value.count(b"{") == value.count(b"}"):
        return value.startswith(b"{") or value == b"[DONE]"
    try:
        return isinstance(json.loads(value), dict)
    except ValueError:
        return False
