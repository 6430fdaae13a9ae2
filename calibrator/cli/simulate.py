"""`calibrator simulate`: the search against synthetic backends of known capacity, or against a recorded history.

Only the result goes to stdout. Each worker process simulates backends; a backend depends only on its seed and index, so
the table does not depend on the number of workers.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from calibrator import __version__
from calibrator.cli.options import SimulateOptions
from calibrator.core.records.history import Bounds, History
from calibrator.core.search.policy import next_step
from calibrator.core.search.steps import Conclusion, Step
from calibrator.core.simulation.backends import CORE, Family
from calibrator.core.simulation.figures import Figure, figures, groups
from calibrator.core.simulation.runs import Result, Stress, simulate_cold, simulate_recalibrations
from calibrator.errors import ConfigurationError

FAMILIES = {"core": CORE, "all": tuple(Family)}
_HEADINGS = {
    "requests_mean": "requests",
    "minutes_median": "minutes",
    "error_median_ratio": "error",
    "within_15pct_ratio": "within 15 %",
    "unsafe_ratio": "unsafe",
    "over_twice_allowance_ratio": "p > 2 %",
    "requests_above_ratio": "above N*",
    "seconds_above_mean": "s above",
    "seconds_hard_mean": "s hard",
    "highest_probed_p95": "highest",
    "certified_ratio": "certified",
    "requests_bound_mean": "bound",
}
_LEGEND = """\
requests: mean number sent, including warm-up and followers. minutes: median, simulated. error, within 15 %: capacity
found compared with the true one N*. unsafe: found > 1.1 N*. p > 2 %: true exceedance at the capacity found. above N*:
share of requests. s above, s hard: seconds above N*, and with more than 5 % exceedances. highest: highest level probed
/ N*, 95th percentile. bound: requests that any policy needs to be within 15 % (Wald). Second line: 95 % intervals."""


def simulate(options: SimulateOptions) -> None:
    """Simulate and print. Raises ConfigurationError."""
    if (
        options.families not in FAMILIES
        or options.output not in {"table", "json"}
        or options.stress not in list(Stress)
    ):
        raise ConfigurationError(
            f"'{options.families}', '{options.output}' or '{options.stress}' is not an option.",
            "Use --families core or all, --output table or json, --stress none, correlation or falling.",
        )
    if options.backends < 1 or options.workers < 1 or options.recalibrations < 0:
        raise ConfigurationError("Backends and workers must be at least 1.", "Try --backends 60.")
    tables = _play(options)
    if options.output == "json":
        _out(json.dumps(_document(options, tables), indent=2))
    else:
        _show(options, tables)


Tables = list[tuple[str, str, list[Result], dict[str, Figure]]]  # policy, group


def _play(options: SimulateOptions) -> Tables:
    families, bounds, stress = FAMILIES[options.families], Bounds(), Stress(options.stress)
    plays: list[Callable[[int], list[Result]]] = [
        functools.partial(simulate_cold, options.seed, families=families, stress=stress, bounds=bounds)
    ]
    if options.recalibrations:
        plays.append(
            functools.partial(
                simulate_recalibrations,
                options.seed,
                families=families,
                count=options.recalibrations,
                bounds=bounds,
            )
        )
    tables: Tables = []
    for play in plays:
        results = _each(play, options)
        for policy in dict.fromkeys(result.policy for result in results):
            of_policy = [result for result in results if result.policy == policy]
            for group, members in groups(of_policy, families):
                tables.append((policy, group, members, figures(members)))
    return tables


def _each(play: Callable[[int], list[Result]], options: SimulateOptions) -> list[Result]:
    indices = range(options.backends)
    if options.workers == 1:
        return [result for index in indices for result in play(index)]
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        return [result for results in pool.imap(play, indices, chunksize=8) for result in results]


def _document(options: SimulateOptions, tables: Tables) -> dict[str, object]:
    return {
        "software": __version__,
        "seed": options.seed,
        "backends": options.backends,
        "families": options.families,
        "stress": options.stress,
        "recalibrations": options.recalibrations,
        "results": [
            {
                "policy": policy,
                "group": group,
                "sweeps": len(members),
                **{name: figure.value for name, figure in table.items()},
                "intervals": {name: [figure.low, figure.high] for name, figure in table.items()},
            }
            for policy, group, members, table in tables
        ],
    }


def _show(options: SimulateOptions, tables: Tables) -> None:
    stress = "" if options.stress == Stress.NONE else f", stress: {options.stress}"
    title = f"{options.backends} synthetic backends, seed {options.seed}{stress}"
    table = Table(title=title, title_justify="left", header_style="bold", expand=False)
    table.add_column("policy, families")
    for heading in _HEADINGS.values():
        table.add_column(heading, justify="right")
    for policy, group, members, row in tables:
        cells = [f"{_cell(name, row[name].value)}\n[dim]{_interval(name, row[name])}[/dim]" for name in _HEADINGS]
        table.add_row(f"{policy}\n[dim]{group}, {len(members)} sweeps[/dim]", *cells)
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(table)
    console.print(_LEGEND, highlight=False)


def _cell(name: str, value: float) -> str:
    if name.endswith("_ratio"):
        return f"{value * 100:.1f} %"
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _interval(name: str, figure: Figure) -> str:
    return f"{_cell(name, figure.low).removesuffix(' %')}-{_cell(name, figure.high).removesuffix(' %')}"


def _out(text: str) -> None:
    print(text)  # noqa: T201 - the terminal is this module's job


# --------------------------------------------------------------------------------------------------------------- replay
def replay(file: Path, output: str) -> None:
    """What the current policy would have done at each point of a recorded sweep."""
    history, bounds = read_history(file)
    steps = replayed(history, bounds)
    if output == "json":
        _out(json.dumps([_step_document(history, index, step) for index, step in enumerate(steps)], indent=2))
        return
    table = Table(title=f"Replay of {file.name}", title_justify="left", header_style="bold")
    for heading in ("", "measured", "n", "exceeded", "the policy would have chosen"):
        table.add_column(heading)
    for index, step in enumerate(steps):
        stage = history.stages[index] if index < len(history.stages) else None
        parts = () if stage is None else stage.evidence
        table.add_row(
            str(index + 1),
            "" if stage is None else str(stage.level),
            ", ".join(str(part.n) for part in parts),
            ", ".join(str(part.exceedances) for part in parts),
            _in_words(step),
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def replayed(history: History, bounds: Bounds) -> Sequence[Step]:
    """One step per prefix: before the first stage, after it, ... after the last."""
    prefixes = (replace(history, stages=history.stages[:count]) for count in range(len(history.stages) + 1))
    return [next_step(prefix, bounds) for prefix in prefixes]


def read_history(file: Path) -> tuple[History, Bounds]:
    """A history, alone or in the document of a sweep, and the bounds of that sweep (or the defaults).

    Raises ConfigurationError, also for other versions.
    """
    try:
        document = json.loads(file.read_text())
        inside = document.get("history", document) if isinstance(document, dict) else document
        history = TypeAdapter(History).validate_python(inside, strict=False)
        conditions = document.get("provenance") or {}
        return history, TypeAdapter(Bounds).validate_python(conditions.get("bounds") or {})
    except OSError as error:
        raise ConfigurationError(
            f"{file} cannot be read: {error.strerror}.", "Use the file of a recorded sweep."
        ) from error
    except (ValidationError, ValueError) as error:
        cause = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ConfigurationError(
            f"{file} does not contain the history of a sweep ({cause}).", "Use a sweep's document with its history."
        ) from error


def _in_words(step: Step) -> str:
    if isinstance(step, Conclusion):
        capacity = "no capacity" if step.capacity is None else f"capacity {step.capacity.estimate}"
        return f"end, {step.grade or step.outcome}, {capacity}: {step.reason}"
    return f"level {step.level} ({step.test}): {step.reason}"


def _step_document(history: History, index: int, step: Step) -> dict[str, object]:
    measured = history.stages[index].level if index < len(history.stages) else None
    if isinstance(step, Conclusion):
        capacity = None if step.capacity is None else step.capacity.estimate
        return {"measured": measured, "ends": True, "grade": step.grade, "capacity": capacity, "reason": step.reason}
    return {"measured": measured, "ends": False, "level": step.level, "test": step.test, "reason": step.reason}
