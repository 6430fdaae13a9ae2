"""`calibrator sweep`: one sweep against any OpenAI-compatible server, no configuration file.

Only the result goes to stdout. Progress goes to stderr: a live view on a terminal; elsewhere one line per level with
the table and nothing with JSON. `--save` writes the whole document, also of an interrupted sweep.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from rich.console import Console

from calibrator.cli import display
from calibrator.cli.options import APIS, OUTPUTS, REQUESTS_PER_LEVEL, SweepOptions
from calibrator.cli.screen import SweepScreen
from calibrator.core.publish.recommendation import replica_cap
from calibrator.core.publish.snapshot import Progress
from calibrator.core.records.history import Bounds, Capacity
from calibrator.core.records.objective import Objective, parse_duration_s, parse_objective
from calibrator.core.records.sweep import SweepOutcome, SweepRecord
from calibrator.core.search.cost import can_certify, judged_share
from calibrator.core.workload.classes import Workload, WorkloadClass
from calibrator.errors import ConfigurationError, ExitCode
from calibrator.ports.load import LoadPlan
from calibrator.ports.sweeps import SweepOrder, Target
from calibrator.settings.sections.tracing import TracingSettings
from calibrator.settings.traces import read_trace
from calibrator.settings.values import header_problem, key_place, secret_parameter, tidy_url
from calibrator.web.wire.documents import level_document, sweep_document
from calibrator.wiring.logs import LogPlan, configure_logs
from calibrator.wiring.sweeps import new_sweep_id, sweep_runner
from calibrator.wiring.tracing import traced

_EXIT = {
    SweepOutcome.CALIBRATED: ExitCode.CALIBRATED,
    SweepOutcome.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
    SweepOutcome.INFEASIBLE: ExitCode.INFEASIBLE,
    SweepOutcome.INTERRUPTED: ExitCode.INTERRUPTED,
    SweepOutcome.CANCELLED: ExitCode.INTERRUPTED,
}


def exit_code(record: SweepRecord) -> int:
    """Exit code of an ended sweep (README, "Commands")."""
    if record.outcome is None or record.outcome is SweepOutcome.ERROR:
        return record.error_exit_code
    return int(_EXIT[record.outcome])


async def sweep(options: SweepOptions) -> int:
    order = order_from(options)
    if options.output not in OUTPUTS:
        raise ConfigurationError(f"'{options.output}' is not an output format.", f"Use one of {', '.join(OUTPUTS)}.")
    _refuse_unwritable(options.save)
    screen = SweepScreen(Console(stderr=True, highlight=False), order.objectives, lines=options.output == "table")
    watcher = _Watcher(screen)
    configure_logs(LogPlan(secrets=order.target.secrets))
    try:
        with traced(sweep_runner(LoadPlan()), TracingSettings(), os.environ) as runner, screen:
            record = await runner.run(order, watcher)
    except asyncio.CancelledError:
        partial = watcher.interrupted()
        if partial is None:
            raise
        record = partial
    cap = _cap(record, options)
    if options.save is not None:
        options.save.write_text(json.dumps(_document(record, cap)) + "\n", encoding="utf-8")
    _print(record, cap, options)
    return exit_code(record)


def _refuse_unwritable(path: Path | None) -> None:
    """Checked before the first request rather than after the last."""
    if path is not None and (path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK)):
        raise ConfigurationError(f"{path} cannot be written.", "Use --save with a file in a writable folder.")


def _cap(record: SweepRecord, options: SweepOptions) -> int | None:
    return replica_cap(record.capacity.estimate, options.safety_margin_ratio) if _is_found(record.capacity) else None


def _is_found(capacity: Capacity | None) -> TypeGuard[Capacity]:
    return capacity is not None and capacity.estimate > 0


def order_from(options: SweepOptions) -> SweepOrder:
    """Raises ConfigurationError, with the option to change, for everything that can be checked before a request."""
    objectives = tuple(parse_objective(text) for text in options.objectives)
    levels = _levels(options.levels)
    bounds = Bounds(
        min_level=options.min_level,
        max_level=options.max_level,
        requests=Bounds().requests if options.requests is None or levels else options.requests,
        duration_s=parse_duration_s(options.duration),
        overload_s=parse_duration_s(options.overload),
    )
    workload = _workload(options)
    _check(options, objectives, bounds, workload, searching=not levels)
    stamp = time.time()
    return SweepOrder(
        sweep_id=new_sweep_id(),
        backend="command-line",
        target=Target(
            url=tidy_url(options.url),
            model=options.model,
            api=options.api,
            api_key=_api_key(options),
            api_key_in=_api_key_in(options.api_key_in),
            headers=tuple(_header(text) for text in options.header_env or ()),
            ca_file=_text(options.ca_file),
            client_cert_file=_text(options.client_cert_file),
            client_key_file=_text(options.client_key_file),
            metrics_url=options.metrics_url,
        ),
        objectives=objectives,
        workload=workload,
        bounds=bounds,
        burst=options.burst,
        seed=options.seed,
        levels=levels,
        requests_per_level=(options.requests or REQUESTS_PER_LEVEL) if levels else 0,
        started_at=stamp,
    )


def _workload(options: SweepOptions) -> Workload:
    if options.trace is not None:
        return Workload(read_trace(options.trace), options.prefix_reuse_ratio).cut(options.max_prompt_tokens)
    only = WorkloadClass(
        prompt_tokens=options.prompt_tokens,
        output_tokens=options.output_tokens,
        stream=options.stream,
        spread_ratio=options.spread_ratio,
        prompt_sigma=options.prompt_sigma,
    )
    return Workload((only,), options.prefix_reuse_ratio).cut(options.max_prompt_tokens)


def _check(
    options: SweepOptions, objectives: tuple[Objective, ...], bounds: Bounds, workload: Workload, *, searching: bool
) -> None:
    for option, url in (("--url", options.url), ("--metrics-url", options.metrics_url)):
        _check_url(option, url)
    if options.api not in APIS:
        raise ConfigurationError(f"'{options.api}' is not an API kind.", "Use --api chat or --api completions.")
    if not 1 <= bounds.min_level <= bounds.max_level:
        raise ConfigurationError(
            f"The bounds {bounds.min_level}..{bounds.max_level} are impossible.", "Use 1 <= --min <= --max."
        )
    if not 0 <= options.safety_margin_ratio < 1:
        raise ConfigurationError("The safety margin is a ratio.", "Use --safety-margin with at least 0 and below 1.")
    if options.requests is not None and options.requests < 1:
        raise ConfigurationError(f"--requests {options.requests} is impossible.", "Use at least 1.")
    unseen = [objective for objective in objectives if judged_share(objective, workload) == 0.0]
    if unseen:
        raise ConfigurationError(
            f"No request of this workload can be judged by '{unseen[0]}'; without streaming only e2e is measured.",
            "Stream, use e2e, or send prompts within the objective's length.",
        )
    if searching and (refusal := can_certify(bounds, objectives, workload)) is not None:
        raise ConfigurationError(refusal)


def _check_url(option: str, url: str | None) -> None:
    if url is not None and "@" in url.partition("?")[0]:
        raise ConfigurationError(f"{option} contains credentials.", "Remove them, and use --api-key-env.")
    if url is not None and not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"'{url}' is not an HTTP URL.", "Write it like http://127.0.0.1:8000/v1.")
    if url is not None and (name := secret_parameter(url)):
        remedy = f"Take it out, and give --api-key-env with --api-key-in query:{name}."
        raise ConfigurationError(f"{option} holds a secret in its query: {name}.", remedy)


def _levels(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        levels = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigurationError(f"'{text}' is not a list of levels.", "Write it like --levels 8,32,64.") from None
    if not levels or min(levels) < 1:
        raise ConfigurationError(f"Levels start at 1, not {min(levels)}.", "Write it like --levels 8,32,64.")
    if len(set(levels)) != len(levels):
        raise ConfigurationError(f"'{text}' lists a level twice.", "List each level once.")
    return levels


def _api_key(options: SweepOptions) -> str | None:
    key: str | None = None
    if options.api_key_file is not None:
        try:
            key = options.api_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise ConfigurationError(f"The API key file cannot be read: {reason}.", "Check --api-key-file.") from None
    elif options.api_key_env is not None:
        key = os.environ.get(options.api_key_env)
        if not key:
            raise ConfigurationError(f"The variable {options.api_key_env} is not set.", "Set it, or change the option.")
    if key is not None and not (key.isascii() and key.isprintable() and key):
        raise ConfigurationError("The API key is empty or not valid in a header.", "Use one line of ASCII.")
    return key


def _api_key_in(text: str) -> str:
    try:
        return key_place(text)
    except ValueError as error:
        raise ConfigurationError(str(error), "Use --api-key-in bearer, header:api-key or query:key.") from None


def _header(text: str) -> tuple[str, str]:
    """`NAME=VARIABLE`: values are never typed, for shells remember them."""
    name, _, variable = text.partition("=")
    if problem := header_problem(name):
        raise ConfigurationError(problem, "Write it like --header-env OpenAI-Organization=ORGANIZATION.")
    value = os.environ.get(variable, "")
    if not value or not (value.isascii() and value.isprintable()):
        raise ConfigurationError(
            f"The variable of --header-env {name} is not set, or not valid in a header.",
            "Set it to a line of ASCII.",
        )
    return name, value


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _print(record: SweepRecord, cap: int | None, options: SweepOptions) -> None:
    if record.outcome is SweepOutcome.ERROR:
        print(f"calibrator: {record.reason} {record.remedy}".rstrip(), file=sys.stderr)  # noqa: T201 - the terminal's
    if options.output == "table":
        if record.levels or record.outcome is not SweepOutcome.ERROR:
            display.result(Console(highlight=False), record, cap)
            _tell_next(record, options)
        return
    if options.output == "json":
        print(json.dumps(_document(record, cap)))  # noqa: T201 - the result is this command's output
        return
    for level in record.levels:
        print(json.dumps({"type": "level", **level_document(level).model_dump(mode="json")}))  # noqa: T201 - likewise
    result = {key: value for key, value in _document(record, cap).items() if key != "levels"}
    print(json.dumps({"type": "result", **result}))  # noqa: T201 - likewise


def _document(record: SweepRecord, cap: int | None) -> dict[str, Any]:
    """The one that the service serves, so that a script written against the one works against the other."""
    return sweep_document(record, cap=cap).model_dump(mode="json")


def _tell_next(record: SweepRecord, options: SweepOptions) -> None:
    """What to do next with the result."""
    console = Console(highlight=False, soft_wrap=True)
    if options.save is not None:
        console.print(f"Saved to {options.save}. For a report: calibrator report {options.save} --to report.html")
    elif record.levels and console.is_terminal:
        console.print("Use --save FILE to keep the result for reports and comparisons.", style="dim")


class _Watcher:
    """Shows progress and keeps the last partial record."""

    def __init__(self, screen: SweepScreen) -> None:
        self._screen = screen
        self._record: SweepRecord | None = None
        self._progress: Progress | None = None

    def progress(self, progress: Progress) -> None:
        self._progress = progress
        self._show()

    def partial(self, record: SweepRecord) -> None:
        self._record = record
        self._show()

    def _show(self) -> None:
        self._screen.show(self._progress, () if self._record is None else self._record.levels)

    def interrupted(self) -> SweepRecord | None:
        """What had been measured by Ctrl-C."""
        if self._record is None:
            return None
        return replace(self._record, outcome=SweepOutcome.INTERRUPTED, ended_at=time.time(), reason="ended by Ctrl-C")
