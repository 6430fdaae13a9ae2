"""`calibrator demo`: the whole product on one machine, in one command.

A simulated LLM engine runs in a process of its own; the real service runs here, sweeps it, and keeps serving.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from calibrator.cli import display
from calibrator.cli.screen import SweepScreen
from calibrator.cli.sweep import exit_code
from calibrator.core.publish.snapshot import BackendView
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sweep import SweepOutcome, SweepRecord
from calibrator.settings import Settings, parse_settings
from calibrator.wiring.embedded import EmbeddedEngine, demo_workload
from calibrator.wiring.logs import LogPlan, configure_logs
from calibrator.wiring.service import RunningService, running_service, until_signalled

BACKEND = "demo"
REFRESH_S = 0.25
FALLBACK_CAP = 4
TOKEN_FILE = "operator-token"  # noqa: S105 - the name of a file


async def demo(*, once: bool, port: int, parameters: str, objective: str) -> int:
    """Exit code of the sweep with `once` or if it is interrupted; otherwise 0 after SIGTERM or Ctrl-C."""
    console = Console(highlight=False, soft_wrap=True)
    configure_logs(LogPlan())
    stopping = asyncio.create_task(until_signalled((signal.SIGTERM,)))  # Ctrl-C cancels us
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(stopping.cancel)
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="calibrator-demo-")))
        engine_url = await stack.enter_async_context(EmbeddedEngine(parameters))
        console.print(f"Simulated engine '{parameters}' at {engine_url}")
        token = secrets.token_urlsafe(9)
        (state / TOKEN_FILE).write_text(token)
        settings = _settings(state, engine_url, parameters, port, objective)
        service = await stack.enter_async_context(running_service(settings, os.environ))
        console.print(f"Service and page at {service.url}/; SLA: {objective}")
        console.print(f"To pin the cap or start a sweep there, sign in with {token}\n", markup=False)
        record = await _watched(console, service, objective, stopping)
        _explain(console, service, record)
        if record.outcome is SweepOutcome.INTERRUPTED or once:
            return exit_code(record)
        console.print("Serving until Ctrl-C.")
        with contextlib.suppress(asyncio.CancelledError):
            await stopping
    return 0


def _settings(state: Path, engine_url: str, parameters: str, port: int, objective: str) -> Settings:
    return parse_settings(
        {
            "listen": {"host": "127.0.0.1", "port": port},
            "store": {"path": str(state / "calibrator.db")},
            "auth": {"operator_tokens": [{"file": str(state / TOKEN_FILE)}]},
            "load": {"selftest": False},
            "backends": {
                BACKEND: {
                    "url": f"{engine_url}/v1",
                    "model": "simulated",
                    "objectives": [objective],
                    "fallback_cap": FALLBACK_CAP,
                    "bounds": {"min": 1, "max": 128},
                    "budget": {"requests": 4000, "duration": "2m"},
                    "workload": demo_workload(parameters),
                }
            },
        }
    )


def _view(service: RunningService) -> BackendView:
    return service.operator.snapshot().backends[BACKEND]


async def _watched(
    console: Console, service: RunningService, objective: str, stopping: asyncio.Task[None]
) -> SweepRecord:
    """The record of the sweep; if stopped before its end, what had been measured."""
    watching = asyncio.create_task(_watch(console, service, objective))
    try:
        await asyncio.wait({watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        watching.cancel()
    if watching.done() and not watching.cancelled():
        return watching.result()
    watching.cancel()
    await asyncio.wait({watching})
    partial = await _so_far(service, _view(service))
    if partial is None:
        raise asyncio.CancelledError
    return replace(partial, outcome=SweepOutcome.INTERRUPTED, reason="ended by Ctrl-C")


async def _watch(console: Console, service: RunningService, objective: str) -> SweepRecord:
    """Show the sweep until it ends."""
    with SweepScreen(console, (parse_objective(objective),)) as screen:
        while True:
            await asyncio.sleep(REFRESH_S)
            view = _view(service)
            record = await _so_far(service, view)
            screen.show(view.progress, () if record is None else record.levels)
            if view.last_sweep is not None:
                ended = await service.operator.sweep(view.last_sweep.sweep_id)
                if ended is not None:
                    return ended


async def _so_far(service: RunningService, view: BackendView) -> SweepRecord | None:
    return None if view.progress is None else await service.operator.sweep(view.progress.sweep_id)


def _explain(console: Console, service: RunningService, record: SweepRecord) -> None:
    published = _view(service).recommendation
    display.result(console, record, published.cap if record.capacity is not None else None)
    if record.outcome is SweepOutcome.INTERRUPTED:
        return
    base = f"{service.url}/v1/backends/{BACKEND}"
    console.print(f"\nPublished cap: [bold]{published.cap}[/bold] ({published.state.value}). Gateways poll it:")
    console.print(f"  curl {base}/cap", markup=False)
    console.print("Report of this sweep:")
    console.print(f"  {base}/sweeps/{record.sweep_id}/report", markup=False)
    console.print(f"Page: {service.url}/   Metrics: {service.url}/metrics", markup=False)
