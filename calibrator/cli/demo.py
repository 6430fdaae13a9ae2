"""`calibrator demo`: the whole product on one machine, in one command.

A simulated LLM engine runs in a process of its own; the real service runs here, sweeps it, and goes on serving.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from pathlib import Path

from rich.console import Console
from rich.live import Live

from calibrator.cli import display
from calibrator.cli.serve import configure_logging
from calibrator.cli.sweep import exit_code
from calibrator.core.snapshot import BackendView
from calibrator.core.sweep_record import LevelReport, SweepRecord
from calibrator.settings import Settings, parse_settings
from calibrator.wiring.embedded import EmbeddedEngine, demo_workload
from calibrator.wiring.service import RunningService, running_service, until_told_to_stop

BACKEND = "demo"
LOOK_S = 0.25
FALLBACK_CAP = 4


async def demo(*, once: bool, port: int, parameters: str, objective: str) -> int:
    """Exit code of the sweep with `once`; else 0 when told to stop."""
    console = Console(highlight=False, soft_wrap=True)
    configure_logging("warning", "console")
    told = asyncio.create_task(until_told_to_stop())
    async with contextlib.AsyncExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="calibrator-demo-")))
        engine_url = await stack.enter_async_context(EmbeddedEngine(parameters))
        console.print(f"Simulated engine '{parameters}' at {engine_url}")
        settings = _settings(state, engine_url, parameters, port, objective)
        service = await stack.enter_async_context(running_service(settings, os.environ))
        console.print(f"Service at {service.url}; SLA: {objective}\n")
        watching = asyncio.create_task(_watch(console, service, objective))
        await asyncio.wait({watching, told}, return_when=asyncio.FIRST_COMPLETED)
        if not watching.done():
            watching.cancel()
            return 130
        record = watching.result()
        _explain(console, service, record)
        if not once:
            console.print("Serving until Ctrl-C.")
            await told
        told.cancel()
        return exit_code(record) if once else 0


def _settings(state: Path, engine_url: str, parameters: str, port: int, objective: str) -> Settings:
    return parse_settings(
        {
            "listen": {"host": "127.0.0.1", "port": port},
            "store": {"path": str(state / "calibrator.db")},
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


async def _watch(console: Console, service: RunningService, objective: str) -> SweepRecord:
    """Show the sweep until it ends: a live table on a terminal, one line a level elsewhere."""
    shown: set[tuple[int, int]] = set()
    live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
    with live or contextlib.nullcontext():
        while True:
            await asyncio.sleep(LOOK_S)
            view = _view(service)
            levels = await _levels_so_far(service, view)
            if live is not None:
                live.update(display.running(view.progress, levels, (objective,)))
            else:
                _print_new(console, levels, objective, shown)
            if view.last_sweep is not None:
                record = await service.operator.sweep(view.last_sweep.sweep_id)
                if record is not None:
                    return record


async def _levels_so_far(service: RunningService, view: BackendView) -> tuple[LevelReport, ...]:
    if view.progress is None:
        return ()
    record = await service.operator.sweep(view.progress.sweep_id)
    return () if record is None else record.levels


def _print_new(console: Console, levels: tuple[LevelReport, ...], objective: str, shown: set[tuple[int, int]]) -> None:
    for level in levels:
        if (level.concurrency, level.n) not in shown:
            shown.add((level.concurrency, level.n))
            console.print(display.plain_level(level, (objective,)), markup=False)


def _explain(console: Console, service: RunningService, record: SweepRecord) -> None:
    view = _view(service)
    published = view.recommendation
    display.result(console, record, published.cap if record.capacity is not None else None)
    base = f"{service.url}/v1/backends/{BACKEND}"
    console.print(f"\nPublished cap: [bold]{published.cap}[/bold] ({published.state.value}). Gateways poll it:")
    console.print(f"  curl {base}/cap", markup=False)
    console.print(f"More: {service.url}/  {base}/sweeps  {service.url}/metrics", markup=False)
