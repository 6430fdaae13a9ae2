"""`calibrator serve` that kills itself, as kill -9 does, right after its nth write to the database.

`python -m support.killing_serve serve --config FILE`. KILL_AFTER: "n": any n; "n save_sweep": n of these; "0": never.
WRITES names a file that gets a line with the name of each write once it is done.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from calibrator.cli.app import main
from calibrator.wiring import service as wiring

WRITES = frozenset(
    {
        "acquire",
        "renew",
        "release",
        "add_recommendation",
        "save_sweep",
        "save_samples",
        "save_override",
        "save_shares",
        "save_share_report",
        "save_share_table",
        "save_memory",
        "save_activity",
        "interrupt_running_sweeps",
    }
)


class Counting:
    """A port of the store; all of one store share the count."""

    def __init__(self, inner: Any, done: list[str]) -> None:
        self._inner = inner
        self._done = done

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name == "leases":
            return Counting(method, self._done)
        if name not in WRITES:
            return method

        async def counted(*args: Any, **named: Any) -> Any:
            answer = await method(*args, **named)
            self._count(name)
            return answer

        return counted

    def _count(self, name: str) -> None:
        self._done.append(name)
        with Path(os.environ["WRITES"]).open("a") as log:
            log.write(f"{name}\n")
        if os.environ["KILL_AFTER"] in (str(len(self._done)), f"{self._done.count(name)} {name}"):
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    make = wiring.__dict__["make_store"]
    setattr(wiring, "make_store", lambda *given: Counting(make(*given), []))  # noqa: B010 - a seam of this test alone
    main()
