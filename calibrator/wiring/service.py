"""The long-running service: store, supervisor and HTTP server, started and stopped in the right order.

Stopping (DESIGN section 7): sweeps are cancelled and state is saved *before* the HTTP server begins its own shutdown,
which waits for open requests; long polls are answered at that moment. So uvicorn's own signal handling is switched off.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import structlog
import uvicorn

from calibrator import __version__
from calibrator.clock import SystemClock
from calibrator.ports.operator import Operator
from calibrator.ports.store import Store
from calibrator.settings import Settings, backend_plans
from calibrator.telemetry.scrape import HttpTelemetry
from calibrator.web.app import create_app
from calibrator.wiring.gateways import gateway_routes, haproxy_checks
from calibrator.wiring.generator import require_parts
from calibrator.wiring.logs import LogPlan
from calibrator.wiring.replicas import discovery
from calibrator.wiring.server.connection_guard import guarded_config, watch
from calibrator.wiring.server.fresh_tokens import FreshTokens
from calibrator.wiring.server.listening import listen
from calibrator.wiring.server.tls import ServerTls
from calibrator.wiring.start_selftest import rate_generator
from calibrator.wiring.stores import lease_policy, make_store
from calibrator.wiring.supervision import make_supervisor
from calibrator.wiring.sweeps import new_sweep_id, sweep_runner
from calibrator.wiring.tracing import TracedRunner, sweep_tracer

CLOSE_LIMIT_S = 0.5


@dataclass(frozen=True, slots=True)
class RunningService:
    """A service that answers."""

    url: str
    operator: Operator


class _Server(uvicorn.Server):
    """uvicorn without signal handlers of its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def running_service(settings: Settings, environ: Mapping[str, str]) -> AsyncIterator[RunningService]:
    """Serve for as long as the block lasts. Raises ConfigurationError, StoreError."""
    plans = backend_plans(settings, environ)  # a missing token file, too, ends the start and not the first request
    load = settings.load.value()
    require_parts(load)
    clock = SystemClock()
    tls = None if settings.listen.tls is None else ServerTls(settings.listen.tls, clock)
    listener = listen(settings.listen.host, settings.listen.port)
    store = make_store(settings, environ)
    tracer = sweep_tracer(settings.tracing, environ, clock)
    supervisor = make_supervisor(
        plans,
        runner=TracedRunner(
            sweep_runner(load, LogPlan(settings.log.level, settings.log.format)),
            tracer,
            settings.tracing.sampled_probes_ratio,
        ),
        store=store,
        leases=store.leases,
        holder=f"{socket.gethostname()}-{secrets.token_hex(4)}",
        lease=lease_policy(settings),
        clock=clock,
        telemetry=HttpTelemetry,
        discovery=discovery,
        max_parallel=settings.sweeps.max_parallel,
        draws=random.SystemRandom(),
        new_id=new_sweep_id,
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(listener.close)
        if tracer is not None:
            stack.push_async_callback(asyncio.to_thread, tracer.close)
        await store.open()
        stack.push_async_callback(_close, store)
        await supervisor.start()
        ended = asyncio.Event()
        fresh_tokens = FreshTokens(settings, environ, clock)
        app = create_app(
            supervisor,
            clock=clock,
            operator_tokens=fresh_tokens.operator,
            read_tokens=fresh_tokens.read,
            software_version=__version__,
            is_stopping=ended.is_set,
            extra_routes=gateway_routes(settings.gateways, settings.backends, supervisor),
        )
        await stack.enter_async_context(haproxy_checks(settings.gateways.haproxy, supervisor, clock))
        config = guarded_config(app, proxies=settings.listen.proxies, tls=tls)
        server = _Server(config)
        tasks = [asyncio.create_task(supervisor.run(ended)), asyncio.create_task(watch(server.server_state))]
        if tls is not None:
            tasks.append(asyncio.create_task(tls.follow()))
        if settings.load.selftest:
            report = supervisor.rate_generator
            tasks.append(asyncio.create_task(rate_generator(plans, report, measures_here=load.kind == "processes")))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        host, port = listener.getsockname()[:2]
        try:
            yield RunningService(f"{'http' if tls is None else 'https'}://{host}:{port}", supervisor)
        finally:
            ended.set()
            for task in tasks[1:]:
                task.cancel()
            await supervisor.stop()
            await asyncio.gather(*tasks, return_exceptions=True)
            server.should_exit = True
            await serving
            structlog.get_logger().info("stopped")


async def _close(store: Store) -> None:
    """Everything was written before; a database that hangs must not hold up the end."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_LIMIT_S):
            await store.close()


async def until_signalled(signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT)) -> None:
    """Return at the first of them."""
    loop, signalled = asyncio.get_running_loop(), asyncio.Event()
    for number in signals:
        loop.add_signal_handler(number, signalled.set)
    try:
        await signalled.wait()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
