"""Server-sent events without I/O: bytes in, events out, the same whatever the split (WHATWG HTML, section 9.2.6).

Lines end with LF, CR or CRLF. A blank line dispatches what `data:` lines collected, joined by LF; `event:` names it;
`id:`, `retry:` and comments are of no use here and dropped. One leading BOM is skipped. What no blank line ended is no
event, as the standard asks.

Events stay bytes: a UTF-8 sequence cut by the network is whole again once its line is, and most events are judged
without decoding (`openai_answer`). A CR ends its line at once; an LF that follows in the next read belongs to it. So no
event waits for a byte it does not need.

Cost: a read without line end is only kept; complete lines are found by one `split`. Bounded by `MAX_EVENT_BYTES`.
"""

from __future__ import annotations

from collections.abc import Callable

MAX_EVENT_BYTES = 4_000_000  # a generous tool call is some 100 KB; more is an attack or a mistake

OnEvent = Callable[[bytes, bytes], None]  # passed with each read: kept here, it would tie every answer into a cycle

_BOM = b"\xef\xbb\xbf"
_LF = 10


class SseError(Exception):
    """The stream breaks the bound on one event."""


class SseDecoder:
    """One stream. `on_event(data, event_type)` is called for each event, in order, inside `feed`."""

    __slots__ = ("_after_cr", "_at_start", "_data", "_data_bytes", "_kept", "_kept_bytes", "_type")

    def __init__(self) -> None:
        self._kept: list[bytes] = []  # pieces of the line that is not complete
        self._kept_bytes = 0
        self._after_cr = False
        self._at_start = True
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._type = b""

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

    def _keep(self, piece: bytes) -> None:
        self._kept.append(piece)
        self._kept_bytes += len(piece)
        if self._kept_bytes > MAX_EVENT_BYTES:
            raise SseError(f"one line of the event stream is longer than {MAX_EVENT_BYTES} bytes")

    def _line(self, line: bytes, on_event: OnEvent) -> None:
        if not line:
            data, event_type = self._data, self._type
            if data:
                self._data = []
                self._data_bytes = 0
                self._type = b""
                on_event(data[0] if len(data) == 1 else b"\n".join(data), event_type)
            elif event_type:
                self._type = b""
        elif line.startswith(b"data:"):
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            self._data_bytes += len(line)
            if self._data_bytes > MAX_EVENT_BYTES:
                raise SseError(f"one event is longer than {MAX_EVENT_BYTES} bytes")
        elif line.startswith(b"event:"):
            self._type = line[6:].removeprefix(b" ")
        elif line == b"data":
            self._line(b"data:", on_event)
        elif line == b"event":
            self._type = b""
