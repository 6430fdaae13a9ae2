"""`calibrator serve` and `calibrator check`."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path

import structlog
import yaml
from rich.console import Console

from calibrator.core.records.objective import format_duration
from calibrator.core.search.cost import sweep_cost
from calibrator.settings import Settings, backend_plans, load_settings, redacted
from calibrator.settings.plans import one_token, token_keys
from calibrator.web.http.auth import fingerprint
from calibrator.wiring.generator import require_parts
from calibrator.wiring.guard_check import guard_lines
from calibrator.wiring.logs import configure_logs, log_plan
from calibrator.wiring.server.process import set_limits
from calibrator.wiring.server.tls import server_context
from calibrator.wiring.service import running_service, until_signalled


async def serve(config: Path) -> int:
    """Run until SIGTERM or SIGINT; then end probes, save state, answer open requests, exit 0."""
    settings = load_settings(config, os.environ)
    configure_logs(log_plan(settings, os.environ))
    set_limits()
    log = structlog.get_logger()
    async with running_service(settings, os.environ) as service:
        log.info("serving", url=service.url, backends=sorted(settings.backends))
        await until_signalled()
        log.info("stopping")
    gc.freeze()  # spares a last garbage collection at exit, which takes seconds on a busy machine
    return 0


def check(config: Path) -> None:
    """Print the effective settings and the cost of a sweep. Raises ConfigurationError with every problem found."""
    settings = load_settings(config, os.environ)
    require_parts(settings.load.value())
    if settings.listen.tls is not None:
        server_context(settings.listen.tls)
    costs = cost_lines(settings)  # finds missing secrets before anything is printed
    guards = asyncio.run(guard_lines(backend_plans(settings, os.environ)))
    console = Console(highlight=False, soft_wrap=True)
    console.print("# Effective configuration (secrets redacted)")
    console.print(yaml.safe_dump(redacted(settings), sort_keys=False), markup=False)
    console.print("# Cost of a sweep")
    for line in costs:
        console.print(line, markup=False)
    console.print("# What the guard monitors between sweeps")
    for line in guards:
        console.print(line, markup=False)
    if fingerprints := token_lines(settings):
        console.print("# Fingerprints of the tokens, as in the audit log")
        for line in fingerprints:
            console.print(line, markup=False)
    console.print(f"{config} is valid.")


def token_lines(settings: Settings) -> list[str]:
    found = {key: one_token(key, reference, os.environ) for key, reference in token_keys(settings).items()}
    return [f"{key}: {fingerprint(text)}" for key, text in found.items()]


def cost_lines(settings: Settings) -> list[str]:
    lines = []
    for plan in backend_plans(settings, os.environ):
        cost = sweep_cost(plan.bounds, plan.objectives, plan.workload)
        lines.append(
            f"{plan.name}: about {cost.requests_expected} requests, at most {cost.requests_bound}; "
            f"at most {cost.prompt_tokens_bound} prompt and {cost.output_tokens_bound} output tokens; "
            f"at most {format_duration(plan.bounds.duration_s)} every {format_duration(plan.schedule.every_s)}"
        )
    return lines
