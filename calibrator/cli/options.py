"""Options of the commands that have many: one frozen dataclass per command, whose fields are the options.

A field declares everything once: name, type, help, group and default, which is that of the policy behind it. `takes`
turns the dataclass into the parameters of a typer command.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from calibrator.core.publish.recommendation import PublishPolicy
from calibrator.core.records.history import Bounds
from calibrator.core.records.objective import format_duration
from calibrator.core.search.burst_mode import BurstMode
from calibrator.core.workload.classes import Workload, WorkloadClass

BACKEND, WORKLOAD, SEARCH, RESULT = "The backend", "What the probes look like", "Search and budgets", "The result"
APIS, OUTPUTS = ("chat", "completions"), ("table", "json", "jsonl")
REQUESTS_PER_LEVEL = 200  # of --levels; a search has budgets instead
_BOUNDS, _CLASS, _WORKLOAD, _POLICY = Bounds(), WorkloadClass(), Workload(), PublishPolicy(fallback_cap=1)
Options = TypeVar("Options")


def takes(kind: type[Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Decorates a command that takes `kind`: typer sees its fields as parameters."""
    hints = get_type_hints(kind, include_extras=True)
    parameters = [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(kind)  # type: ignore[arg-type]  # `type[DataclassInstance]` is private to typeshed
    ]

    def decorate(verb: Callable[[Options], None]) -> Callable[..., None]:
        def command(**given: Any) -> None:
            verb(kind(**given))

        command.__name__, command.__doc__ = verb.__name__, verb.__doc__
        command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # what `inspect.signature` reads
        return command

    return decorate


def one_of(*choices: str) -> Callable[[str], list[str]]:
    """Completion for a shell."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def _option(group: str, words: str, *names: str, choices: tuple[str, ...] = (), least: int | None = None) -> Any:
    """`names`: only if the option is not called like its field."""
    complete = one_of(*choices) if choices else None
    return typer.Option(*names, help=words, rich_help_panel=group, autocompletion=complete, min=least)


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """The command line of `calibrator sweep`, as it was typed."""

    url: Annotated[str, _option(BACKEND, "Base URL of an OpenAI-compatible server, ending in /v1.")]
    model: Annotated[str, _option(BACKEND, "Model name, as the server knows it.")]
    objectives: Annotated[
        list[str],
        _option(
            SEARCH,
            "The SLA, repeatable: metric (ttft, ttfc, itl, tpot, e2e), quantile, limit; e.g. 'ttft p99 <= 500ms' "
            "or 'e2e p95 <= 20s for prompts <= 1024 tokens'.",
            "--objective",
        ),
    ]
    api: Annotated[str, _option(BACKEND, "chat or completions.", choices=APIS)] = "chat"
    api_key_env: Annotated[str | None, _option(BACKEND, "Environment variable that holds the API key.")] = None
    api_key_file: Annotated[Path | None, _option(BACKEND, "File that holds the API key.")] = None
    api_key_in: Annotated[str, _option(BACKEND, "Where the key is sent: bearer, header:NAME or query:NAME.")] = "bearer"
    header_env: Annotated[
        list[str] | None,
        _option(BACKEND, "Additional header as NAME=VARIABLE, with the variable that holds its value; repeatable."),
    ] = None
    ca_file: Annotated[Path | None, _option(BACKEND, "CA bundle for a private certificate authority.")] = None
    client_cert_file: Annotated[Path | None, _option(BACKEND, "Client certificate (PEM).", "--client-cert")] = None
    client_key_file: Annotated[
        Path | None, _option(BACKEND, "Private key of the client certificate (PEM).", "--client-key")
    ] = None
    metrics_url: Annotated[str | None, _option(BACKEND, "URL of the engine's metrics, if not at /metrics.")] = None
    prompt_tokens: Annotated[int, _option(WORKLOAD, "Prompt length in tokens.")] = _CLASS.prompt_tokens
    output_tokens: Annotated[int, _option(WORKLOAD, "Output length in tokens; enforced if the engine supports it.")] = (
        _CLASS.output_tokens
    )
    spread_ratio: Annotated[
        float, _option(WORKLOAD, "Vary both lengths uniformly by up to this ratio, up and down.", "--spread")
    ] = _CLASS.spread_ratio
    prompt_sigma: Annotated[
        float, _option(WORKLOAD, "Above 0: lognormal prompt lengths with this standard deviation of the logarithm.")
    ] = _CLASS.prompt_sigma
    trace: Annotated[
        Path | None, _option(WORKLOAD, "JSON Lines file of recorded lengths; replaces the four options above.")
    ] = None
    max_prompt_tokens: Annotated[int | None, _option(WORKLOAD, "Longer prompts are cut to this length.", least=1)] = (
        _CLASS.max_prompt_tokens
    )
    prefix_reuse_ratio: Annotated[
        float, _option(WORKLOAD, "Share of prompt tokens that should hit the engine's prefix cache.", "--prefix-reuse")
    ] = _WORKLOAD.prefix_reuse_ratio
    stream: Annotated[bool, _option(WORKLOAD, "Stream the responses; without streaming only e2e can be judged.")] = (
        _CLASS.stream
    )
    seed: Annotated[int, _option(WORKLOAD, "Random seed of prompts and lengths.")] = 1
    min_level: Annotated[int, _option(SEARCH, "Lowest level.", "--min")] = _BOUNDS.min_level
    max_level: Annotated[int, _option(SEARCH, "Highest level that may be probed.", "--max")] = _BOUNDS.max_level
    requests: Annotated[
        int | None,
        _option(
            SEARCH,
            f"Request budget (default {_BOUNDS.requests}), plus {_BOUNDS.requests_per_level} per unit of the highest "
            f"level tried. With --levels: requests per level (default {REQUESTS_PER_LEVEL}).",
        ),
    ] = None
    duration: Annotated[str, _option(SEARCH, "Time budget, e.g. 20m.")] = format_duration(_BOUNDS.duration_s)
    overload: Annotated[str, _option(SEARCH, "Budget of time above the SLA, e.g. 2m.")] = format_duration(
        _BOUNDS.overload_s
    )
    levels: Annotated[
        str | None, _option(SEARCH, "Measure exactly these levels, e.g. 8,32,64, instead of searching.")
    ] = None
    burst: Annotated[
        BurstMode,
        _option(
            SEARCH, "Test simultaneous arrivals after the search; enforce: lower the capacity until they meet the SLA."
        ),
    ] = BurstMode.OFF
    safety_margin_ratio: Annotated[
        float, _option(RESULT, "Ratio subtracted from the capacity to get the cap.", "--safety-margin")
    ] = _POLICY.safety_margin_ratio
    output: Annotated[
        str, _option(RESULT, "table, json or jsonl; JSON is the only thing on stdout.", choices=OUTPUTS)
    ] = OUTPUTS[0]
    save: Annotated[Path | None, _option(RESULT, "Also write the result to this file, for calibrator report.")] = None


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """The command line of `calibrator simulate`, as it was typed."""

    backends: Annotated[int, typer.Option(help="Number of synthetic backends.")] = 600
    seed: Annotated[int, typer.Option(help="Random seed of the backends; printed with the table.")] = 1
    families: Annotated[str, typer.Option(help="core, or all: adds shallow curves and curves with holes.")] = "core"
    recalibrations: Annotated[
        int, typer.Option(help="Further sweeps of each backend after the first, with drift between them.")
    ] = 0
    stress: Annotated[
        str, typer.Option(help="none, correlation (0.9) or falling (capacity drops by 25 % during the sweep).")
    ] = "none"
    workers: Annotated[int, typer.Option(help="Number of processes.")] = 2
    replay: Annotated[Path | None, typer.Option(help="Replay a recorded sweep (JSON file) instead.")] = None
    output: Annotated[str, typer.Option(help="table or json.")] = "table"
