"""`calibrator selftest`: what this machine can measure."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial

from rich.console import Console
from rich.table import Table

from calibrator.core.generator_rating import SelfTest, SelfTestLevel
from calibrator.core.report.formats import number
from calibrator.errors import ConfigurationError, ExitCode
from calibrator.ports.load import LoadPlan
from calibrator.wiring.generator import generator
from calibrator.wiring.selftest import run_selftest

OUTPUTS = ("table", "json")
COLUMNS = (
    "streams", "held", "procs", "events/s", "of", "added\np50 ms", "added\np99 ms", "CPU us\n/event", "lag\np99 ms"
)  # fmt: skip


async def selftest(streams: str, seconds: float, output: str) -> int:
    """Raises ConfigurationError for invalid options."""
    if output not in OUTPUTS:
        raise ConfigurationError(f"'{output}' is not an output format.", f"Use one of {', '.join(OUTPUTS)}.")
    if not 0.5 <= seconds <= 60.0:
        raise ConfigurationError(f"{seconds:g} s per number of streams is impossible.", "Use 0.5 to 60.")
    result = await run_selftest(_counts(streams), seconds, partial(generator, plan=LoadPlan()))
    if output == "json":
        print(json.dumps(document(result), indent=2))  # noqa: T201 - the document is the output
    else:
        _show(Console(), result)
    return int(ExitCode.CALIBRATED)


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(word) for word in text.split(","))
    except ValueError:
        counts = ()
    if not counts or not all(1 <= count <= 4096 for count in counts):
        raise ConfigurationError(
            f"'{text}' is not a list of stream counts.", "Write it like 1,64,256, each from 1 to 4096."
        )
    return counts


def document(result: SelfTest) -> dict[str, object]:
    """Unknown values are null."""
    return {
        "cores": result.cores,
        "events_per_s_and_core": number(result.events_per_s_and_core),
        "events_per_s": number(result.events_per_s),
        "levels": [{key: number(value) for key, value in asdict(level).items()} for level in result.levels],
    }


def _show(console: Console, result: SelfTest) -> None:
    table = Table(title="Load generator against a loopback server", title_justify="left", header_style="bold")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for level in result.levels:
        table.add_row(*_cells(level))
    console.print(table)
    each, total = result.events_per_s_and_core, result.events_per_s
    if each is not None and total is not None:
        console.print(
            f"One core can measure about {each:,.0f} token events per second, {result.cores} cores {total:,.0f}."
        )


def _cells(level: SelfTestLevel) -> tuple[str, ...]:
    return (
        str(level.streams),
        f"{level.held:.1f}",
        str(level.processes),
        f"{level.events_per_s:,.0f}",
        f"{level.wanted_events_per_s:,.0f}",
        _milliseconds(level.added_latency_p50_s),
        _milliseconds(level.added_latency_p99_s),
        "-" if level.cpu_us_per_event is None else f"{level.cpu_us_per_event:.1f}",
        _milliseconds(level.loop_lag_p99_s),
    )


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f}"
