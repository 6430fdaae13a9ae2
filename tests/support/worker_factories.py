"""Generators for worker processes; a worker imports this module by name."""

from __future__ import annotations

import asyncio
import os
import signal

from calibrator.clock import LoopClock, SystemClock
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sample import ProbeRequest
from calibrator.core.workload.classes import PromptFactory, TokenScale, Workload
from calibrator.errors import ConfigurationError
from calibrator.load.closed_loop import ClosedLoop
from calibrator.ports.backend import BackendFacts
from calibrator.ports.load import LoadGenerator
from support.scripted_backend import Answer, ScriptedBackend, ScriptedConnection

OBJECTIVES = (parse_objective("ttft p99 <= 10s"),)
FACTS = BackendFacts("s", TokenScale(), forces_length=True)


def _loop(backend: ScriptedBackend, index: int, step: int) -> ClosedLoop:
    prompts = PromptFactory(Workload(), TokenScale(), seed=index, first_id=index, id_step=step)
    return ClosedLoop(backend, prompts, OBJECTIVES, LoopClock())


def quick(index: int, step: int) -> LoadGenerator:
    """Answers in 50 ms."""
    return _loop(ScriptedBackend(lambda *_: Answer(0.02, 0.05)), index, step)


def endless(index: int, step: int) -> LoadGenerator:
    """Answers that do not end in a test's life."""
    return _loop(ScriptedBackend(lambda *_: Answer(0.02, 3600.0)), index, step)


def misconfigured(index: int, step: int) -> LoadGenerator:
    raise ConfigurationError("The cause.", "The remedy.")


def dies_at_start(index: int, step: int) -> LoadGenerator:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def first_dies_loaded(index: int, step: int) -> LoadGenerator:
    """Worker 0 is killed at its fifth request; all others live."""

    def answer(request: ProbeRequest, _: int) -> Answer:
        if index == 0 and request.request_id >= 4 * step:
            os.kill(os.getpid(), signal.SIGKILL)
        return Answer(0.02, 0.05)

    return _loop(ScriptedBackend(answer), index, step)


def first_freezes(index: int, step: int) -> LoadGenerator:
    """Worker 0 does not come back from its fifth request; all others live."""

    def answer(request: ProbeRequest, _: int) -> Answer:
        if index == 0 and request.request_id >= 4 * step:
            signal.pause()
        return Answer(0.02, 0.05)

    return _loop(ScriptedBackend(answer), index, step)


class _Deaf(ScriptedBackend):
    """Its connections do not react to `abort`."""

    def connect(self) -> ScriptedConnection:
        return _DeafConnection(self)


class _DeafConnection(ScriptedConnection):
    def abort(self) -> None: ...


def deaf(index: int, step: int) -> LoadGenerator:
    return _loop(_Deaf(lambda *_: Answer(0.02, 3600.0)), index, step)


class _Hung(ClosedLoop):
    """Blocks its event loop for good when it is to stop."""

    async def stop(self) -> None:
        await super().stop()
        signal.pause()


def hung(index: int, step: int) -> LoadGenerator:
    prompts = PromptFactory(Workload(), TokenScale(), seed=index, first_id=index, id_step=step)
    return _Hung(ScriptedBackend(lambda *_: Answer()), prompts, OBJECTIVES, SystemClock())


async def forever() -> None:
    await asyncio.Event().wait()
