"""The simulated engine in a process of its own, for `calibrator demo`."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from dataclasses import fields
from multiprocessing.connection import Connection as Pipe

from calibrator.backends.simulated.parameters import PARAMETER_SETS, WORKLOADS
from calibrator.backends.simulated.server import run_server
from calibrator.core.workload.classes import WorkloadClass
from calibrator.errors import ConfigurationError, GeneratorError

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 3.0


def demo_workload(parameters: str) -> dict[str, object]:
    """The traffic that a parameter set is meant for, as a configuration spells it."""
    elsewhere = ("sizes", "max_prompt_tokens")  # from a trace file, and of the whole workload
    written = [field.name for field in fields(WorkloadClass) if field.name not in elsewhere]
    return {"classes": [{name: getattr(one, name) for name in written} for one in WORKLOADS[parameters].classes]}


class EmbeddedEngine:
    """`async with EmbeddedEngine("seed") as url:` serves until the block ends."""

    def __init__(self, parameters: str) -> None:
        if parameters not in PARAMETER_SETS:
            raise ConfigurationError(
                f"There is no parameter set '{parameters}'.", f"Choose one of {', '.join(sorted(PARAMETER_SETS))}."
            )
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe(duplex=False)
        self._theirs = theirs
        self._process = context.Process(target=_serve, args=(parameters, theirs), name="simulated-engine", daemon=True)

    async def __aenter__(self) -> str:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._process.start)
        self._theirs.close()
        if not await loop.run_in_executor(None, self._ours.poll, START_TIMEOUT_S):
            await self.__aexit__(None, None, None)
            raise GeneratorError("The simulated engine did not start.", "See its traceback above.")
        return f"http://127.0.0.1:{self._ours.recv()}"

    async def __aexit__(self, *_: object) -> None:
        def end() -> None:
            self._process.terminate()
            self._process.join(STOP_TIMEOUT_S)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()

        await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, end))


def _serve(parameters: str, pipe: Pipe) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the demo ends us in its own order
    run_server(PARAMETER_SETS[parameters], host="127.0.0.1", port=0, ready=pipe.send)
