"""Workers on many machines: a Ray actor for each, spread over the nodes of a cluster (optional extra `[ray]`).

    launch:  actor placed (SPREAD, one core) ─▶ same release? ─▶ node tested once ─▶ worker started ─▶ pool

When: one machine cannot hold the level. `calibrator selftest` shows what it can do; beyond some ten thousand token
events per second and core, more cores are needed, and beyond the cores or network of one machine, more machines. Not
otherwise: connecting takes seconds, and the workers share their nodes with whatever else runs there.

**Nodes.** Ray starts an actor when a core is free, and an autoscaler adds nodes for it; `place_s` bounds the wait. Each
node is tested before its first worker: the generator against a server on that node's own loopback. A node whose own
error is material against the objectives is rejected by name (`judge` raises), because it makes its share of the
requests look slow, and the pool cannot tell which they are.

**Messages.** Those of the pool are sent in order, one call after another; those of the worker arrive through a call
that waits. A lost node, a lost actor and a killed worker all end that call, so the pool sees a single kind of death.

**Time.** No clock is shared: see `remote_clock`.

Ray is imported when the first worker is launched, in a thread, where it cannot take Python's handler of SIGTERM.

Caller: `pool.WorkerPool`, through wiring.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import logging
import os
import pickle
import signal
import threading
from collections.abc import Callable
from typing import Any

from calibrator import __version__
from calibrator.core.generator_rating import SelfTest
from calibrator.errors import CalibratorError, ConfigurationError, GeneratorError, UnreachableError
from calibrator.load.messages import Failed
from calibrator.load.processes import usable_cores
from calibrator.load.ray_outpost import NodeTest, Outpost

LOCAL = "local"  # an address that starts Ray on this machine, for trying out
TEST_S = 60.0  # a node's self-test takes a few seconds
GONE_S = 2.0  # for an actor to clear up after its worker has gone; then it is killed

Judge = Callable[[str, SelfTest], None]  # (node, what it can do): raises CalibratorError to refuse it


def require_ray() -> None:
    """Raises ConfigurationError if the extra is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigurationError(
            "load.kind is ray, but Ray is not installed.", "Install it: pip install 'calibrator[ray]'."
        )


class RayLink:
    """Port `pool.Link`."""

    def __init__(self, ray: Any, actor: Any, on_message: Callable[[Any], None], on_lost: Callable[[], None]) -> None:
        self._ray = ray
        self._actor = actor
        self._on_message = on_message
        self._on_lost = on_lost
        self._unsaid: list[object] = []
        self._has_words = asyncio.Event()
        self._talking = asyncio.create_task(self._talk())
        self._listening = asyncio.create_task(self._listen())

    def send(self, message: object) -> None:
        self._unsaid.append(message)
        self._has_words.set()

    def kill(self) -> None:
        self._ray.kill(self._actor)

    async def let_go(self) -> None:
        self._talking.cancel()
        with contextlib.suppress(TimeoutError, self._ray.exceptions.RayError):
            async with asyncio.timeout(GONE_S):
                await self._actor.close.remote()
        self.kill()
        self._listening.cancel()
        await asyncio.gather(self._talking, self._listening, return_exceptions=True)

    async def _talk(self) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):  # `_listen` notices the same death and reports it
            while True:
                await self._has_words.wait()
                self._has_words.clear()
                words, self._unsaid = self._unsaid, []
                await self._actor.tell.remote(words)

    async def _listen(self) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):
            while (words := await self._actor.hear.remote()) is not None:
                for word in words:
                    self._on_message(word)
        self._on_lost()


class RayLauncher:
    """Port `pool.Launcher`. `node_test` must be picklable."""

    shares_clock = False

    def __init__(self, address: str, *, place_s: float, node_test: NodeTest, judge: Judge) -> None:
        self._address = address
        self._place_s = place_s
        self._node_test = pickle.dumps(node_test)
        self._judge = judge
        self._ray: Any = None
        self._is_ours = False  # the connection to the cluster
        self._connecting = asyncio.Lock()
        self._tests: dict[str, asyncio.Task[None]] = {}  # by node

    async def launch(self, on_message: Callable[[Any], None], on_lost: Callable[[], None]) -> RayLink:
        ray = await self._connected()
        actor = ray.remote(Outpost).options(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD").remote()
        try:
            node = await self._place_of(actor)
            if node not in self._tests:
                self._tests[node] = asyncio.create_task(self._tested(node, actor))
            await asyncio.shield(self._tests[node])
            _raise_if_failed(await actor.open.remote())
        except BaseException as error:
            ray.kill(actor)
            if isinstance(error, ray.exceptions.RayError):
                raise _translated(error) from None
            raise
        return RayLink(ray, actor, on_message, on_lost)

    async def close(self) -> None:
        for test in self._tests.values():
            test.cancel()
        await asyncio.gather(*self._tests.values(), return_exceptions=True)
        if self._is_ours:
            self._is_ours = False
            await asyncio.get_running_loop().run_in_executor(None, self._ray.shutdown)

    async def _place_of(self, actor: Any) -> str:
        try:
            async with asyncio.timeout(self._place_s):
                node, release = await actor.place.remote()
        except TimeoutError:
            raise GeneratorError(
                f"No node of the Ray cluster had a free core within {self._place_s:g} s.",
                "Add nodes, or ask for fewer workers (load.workers).",
            ) from None
        if release != __version__:
            raise ConfigurationError(
                f"Node {node} runs calibrator {release}, this is {__version__}.", "Use the same image everywhere."
            )
        return str(node)

    async def _tested(self, node: str, actor: Any) -> None:
        """Once per node, before its first worker; further workers wait, so that nothing disturbs the test."""
        try:
            async with asyncio.timeout(TEST_S):
                result = await actor.test.remote(self._node_test)
        except TimeoutError:
            raise GeneratorError(
                f"The self-test of node {node} did not end within {TEST_S:g} s.", "Check what else runs there."
            ) from None
        _raise_if_failed(result)
        self._judge(node, result)

    async def _connected(self) -> Any:
        async with self._connecting:
            if self._ray is None:
                self._ray, self._is_ours = await asyncio.get_running_loop().run_in_executor(
                    None, _connect, self._address
                )
                _take_sigterm_back()
        return self._ray


def _take_sigterm_back() -> None:
    """Ray's core installs a SIGTERM handler below Python's that ends the process: restore Python's."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _raise_if_failed(result: object) -> None:
    if isinstance(result, Failed):
        raise result.error


def _connect(address: str) -> tuple[Any, bool]:
    """Ray, connected, and whether we connected it."""
    require_ray()
    ray = importlib.import_module("ray")
    if ray.is_initialized():
        return ray, False
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options |= {"num_cpus": usable_cores(), "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise UnreachableError(
            f"There is no Ray cluster at '{address}': {str(error).splitlines()[0]}.",
            "Start one, or correct load.ray_address.",
        ) from None
    return ray, True


def _translated(error: Exception) -> CalibratorError:
    """Any error of Ray before a worker runs."""
    text = str(error)
    if "ModuleNotFoundError" in text and "calibrator" in text:
        return ConfigurationError(
            "A node of the Ray cluster cannot import calibrator.", "Use an image that has it, on every node."
        )
    return GeneratorError(f"Ray could not start a worker: {text.strip().splitlines()[-1]}.", "See Ray's own log.")
