"""`calibrator serve` that kills itself, as kill -9 does, right after its nth write to the database.

`python -m support.killing_serve serve --config FILE`. WRITES names a file that gets a line with the name of each write
once it is done: the method's, `publish_STATE` for a recommendation, `save_ended_sweep` for the last record of a sweep.
KILL_AFTER: a number, of writes; a name, for the first of that name; "never".
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
        "save_checkpoint",
        "save_sweep_status",
        "interrupt_running_sweeps",
    }
)


def named_by_what_it_writes(method: str, given: tuple[Any, ...]) -> str:
    if method == "add_recommendation":
        return f"publish_{given[0].state}"
    return "save_ended_sweep" if method == "save_sweep" and given[0].outcome is not None else method


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
            self._count(named_by_what_it_writes(name, args))
            return answer

        return counted

    def _count(self, name: str) -> None:
        self._done.append(name)
        with Path(os.environ["WRITES"]).open("a") as log:
            log.write(f"{name}\n")
        if os.environ["KILL_AFTER"] in (str(len(self._done)), name):
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    make = wiring.__dict__["make_store"]
    setattr(wiring, "make_store", lambda *given: Counting(make(*given), []))  # noqa: B010 - a seam of this test alone
    main()
