"""A program in a real terminal: a pseudo-terminal of a given size, keys pressed, bytes seen."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

CTRL_C = b"\x03"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7])(?:;\d+)*m")
ESCAPE = re.compile(r"\x1b\[[?\d;]*[a-zA-Z]")
WAIT_S = 180.0


@dataclass(slots=True)
class Terminal:
    """`seen` is all that the program wrote so far."""

    process: subprocess.Popen[bytes]
    ours: int
    seen: str = ""
    _pieces: list[bytes] = field(default_factory=list)

    def press(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def read(self, limit_s: float) -> bool:
        """False at the end, or when nothing came within the limit."""
        ready, _, _ = select.select([self.ours], [], [], limit_s)
        try:
            piece = os.read(self.ours, 65536) if ready else b""
        except OSError:  # Linux says so when the last program has closed its side
            piece = b""
        self._pieces.append(piece)
        self.seen = b"".join(self._pieces).decode(errors="replace")
        return bool(piece)

    def read_until(self, pattern: str, limit_s: float = WAIT_S) -> None:
        deadline_s = time.monotonic() + limit_s
        while not re.search(pattern, self.seen):
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, f"did not see {pattern!r} in: {self.plain[-2000:]}"
            assert self.read(left_s), f"ended without {pattern!r}: {self.plain[-2000:]}"

    def end(self, limit_s: float = WAIT_S) -> int:
        """Read to the end; the exit code."""
        deadline_s = time.monotonic() + limit_s
        while self.read(max(0.0, deadline_s - time.monotonic())):
            pass
        return self.process.wait(max(0.1, deadline_s - time.monotonic()))

    @property
    def plain(self) -> str:
        """Without escape sequences."""
        return ESCAPE.sub("", self.seen).replace("\r", "")


@contextmanager
def terminal(
    command: Sequence[str], size: tuple[int, int] = (80, 24), environ: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    """`size`: columns and rows. The program is ended with the block."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
    plain = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "COLUMNS", "LINES"}}
    environment = {**plain, "TERM": "xterm-256color", "PYTHONUTF8": "1", **(environ or {})}
    process = subprocess.Popen(
        command,
        env=environment,
        close_fds=True,
        pass_fds=(theirs,),
        preexec_fn=lambda: os.login_tty(theirs),  # noqa: PLW1509 - one call, of the kernel
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait(WAIT_S)
        os.close(ours)
