"""Gateways that have a protocol of their own: their routes, and the port that HAProxy asks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import structlog
from starlette.routing import Route

from calibrator.gateways import envoy_rtds, traefik
from calibrator.gateways.haproxy_agent import HaproxyAgent
from calibrator.ports.clock import Clock
from calibrator.ports.operator import Operator
from calibrator.settings.sections.gateways import GatewaysSettings, HaproxySettings
from calibrator.wiring.server.listening import listen


def gateway_routes(settings: GatewaysSettings, backends: Iterable[str], operator: Operator) -> Sequence[Route]:
    return [*envoy_rtds.routes(operator, settings.envoy.value(backends)), *traefik.routes(operator)]


@asynccontextmanager
async def haproxy_checks(settings: HaproxySettings, operator: Operator, clock: Clock) -> AsyncIterator[None]:
    """Answer agent-checks for as long as the block lasts, if configured. Raises ConfigurationError."""
    if settings.port is None:
        yield
        return
    agent = HaproxyAgent(operator, clock)
    with listen(settings.host, settings.port, "gateways.haproxy") as listener:
        await agent.start(listener)
        host, port = listener.getsockname()[:2]
        structlog.get_logger().info("answering HAProxy's agent-checks", address=f"{host}:{port}")
        try:
            yield
        finally:
            await agent.stop()
