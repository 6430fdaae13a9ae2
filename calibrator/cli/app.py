"""Command-line verbs: options, help and exit codes; the work is done in the modules beside this one.

An expected failure is one sentence of cause and one of remedy on stderr, and the exit code of its class (`errors`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from calibrator import __version__
from calibrator.core.burst import BurstMode
from calibrator.errors import CalibratorError, ExitCode

app = typer.Typer(
    name="calibrator",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Find how many requests an LLM backend may have in flight before P99 latency breaks its SLA, and publish it.",
    epilog="Exit codes: 0 calibrated, 2 configuration, 3 unreachable or unauthorised, 4 inconclusive, 5 infeasible, "
    "130 interrupted.",
)


def main() -> None:
    """Entry point of the console script."""
    try:
        app(standalone_mode=True)
    except CalibratorError as error:
        fail(error)


def fail(error: CalibratorError) -> None:
    """Cause and remedy on stderr, exit code of the error's class."""
    print(f"calibrator: {error}", file=sys.stderr)  # noqa: T201 - the terminal is this module's job
    raise SystemExit(int(error.exit_code))


def run(coroutine: Coroutine[Any, Any, int]) -> None:
    """Run a verb on uvloop and exit with its code. Ctrl-C cancels it once, a second one ends at once."""
    import asyncio

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(coroutine)
    except (KeyboardInterrupt, asyncio.CancelledError):
        code = int(ExitCode.INTERRUPTED)
    raise typer.Exit(code)


def _show_version(value: bool) -> None:  # noqa: FBT001 - typer's callback signature
    if value:
        typer.echo(f"calibrator {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


@app.command()
def sweep(
    url: Annotated[str, typer.Option(help="Base URL of an OpenAI-compatible server, ending in /v1.")],
    model: Annotated[str, typer.Option(help="Model name, as the server knows it.")],
    objective: Annotated[list[str], typer.Option(help="Repeatable, e.g. 'ttft p99 <= 500ms'.")],
    levels: Annotated[
        str | None, typer.Option(help="Measure exactly these levels, e.g. 8,32,64, without a search.")
    ] = None,
    requests: Annotated[int | None, typer.Option(help="Requests per level (with --levels), else the budget.")] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Prompt length of the probes.")] = 256,
    output_tokens: Annotated[int, typer.Option(help="Output length of the probes, forced where the engine can.")] = 64,
    spread: Annotated[float, typer.Option(help="Spread of both lengths around their value, as a ratio.")] = 0.0,
    prompt_sigma: Annotated[float, typer.Option(help="Above 0: prompt lengths are lognormal, with this log-sd.")] = 0.0,
    trace: Annotated[
        Path | None, typer.Option(help="JSON Lines of recorded lengths, instead of the four options above.")
    ] = None,
    prefix_reuse: Annotated[float, typer.Option(help="Ratio of prompt tokens for the prefix cache to find.")] = 0.0,
    api: Annotated[str, typer.Option(help="chat or completions.")] = "chat",
    stream: Annotated[bool, typer.Option(help="Stream the answers; without it only e2e can be judged.")] = True,
    min_level: Annotated[int, typer.Option("--min", help="Lowest level.")] = 1,
    max_level: Annotated[int, typer.Option("--max", help="Highest level that may be probed.")] = 512,
    burst: Annotated[
        BurstMode, typer.Option(help="Simultaneous arrivals after the search; enforce: lower the capacity to them.")
    ] = BurstMode.OFF,
    duration: Annotated[str, typer.Option(help="Time budget, e.g. 20m.")] = "20m",
    overload: Annotated[str, typer.Option(help="Budget of time above the SLA, e.g. 120s.")] = "120s",
    safety_margin: Annotated[float, typer.Option(help="Ratio taken off the capacity for the cap.")] = 0.1,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the API key.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File that holds the API key.")] = None,
    ca_file: Annotated[Path | None, typer.Option(help="CA bundle for a private certificate authority.")] = None,
    client_cert: Annotated[Path | None, typer.Option(help="Client certificate (PEM).")] = None,
    client_key: Annotated[Path | None, typer.Option(help="Key of the client certificate (PEM).")] = None,
    metrics_url: Annotated[str | None, typer.Option(help="The engine's metrics, if not at /metrics.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of prompts and lengths.")] = 1,
    output: Annotated[str, typer.Option(help="table, json or jsonl; json goes to stdout alone.")] = "table",
) -> None:
    """Measure one backend once: search for its capacity, or measure given levels.

    Example: calibrator sweep --url http://127.0.0.1:8000/v1 --model m --objective 'ttft p99 <= 500ms'
    """
    from calibrator.cli import sweep as verb

    options = verb.SweepOptions(
        url=url,
        model=model,
        objectives=tuple(objective),
        levels=levels,
        requests=requests,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        spread_ratio=spread,
        prompt_sigma=prompt_sigma,
        trace=trace,
        prefix_reuse_ratio=prefix_reuse,
        burst=burst,
        api=api,
        stream=stream,
        min_level=min_level,
        max_level=max_level,
        duration=duration,
        overload=overload,
        safety_margin_ratio=safety_margin,
        api_key_env=api_key_env,
        api_key_file=api_key_file,
        ca_file=ca_file,
        client_cert_file=client_cert,
        client_key_file=client_key,
        metrics_url=metrics_url,
        seed=seed,
        output=output,
    )
    _guarded(lambda: verb.sweep(options))


@app.command()
def serve(
    config: Annotated[Path, typer.Option("--config", "-c", help="The YAML configuration.")],
) -> None:
    """Run the service: sweep on schedule, publish caps, answer gateways."""
    from calibrator.cli import serve as verb

    _guarded(lambda: verb.serve(config))


@app.command()
def check(
    config: Annotated[Path, typer.Option("--config", "-c", help="The YAML configuration.")],
) -> None:
    """Validate a configuration, print what is in force (secrets redacted) and what a sweep will cost."""
    from calibrator.cli import serve as verb

    try:
        verb.check(config)
    except CalibratorError as error:
        fail(error)


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="Exit after the sweep, with its exit code.")] = False,
    port: Annotated[int, typer.Option(help="Port of the service; 0 chooses a free one.")] = 8300,
    parameters: Annotated[str, typer.Option(help="Parameter set of the simulated engine.")] = "seed",
    objective: Annotated[str, typer.Option(help="The SLA of the demo.")] = "ttft p99 <= 300ms",
) -> None:
    """See it work: a simulated LLM engine, one sweep, and the cap being served until Ctrl-C."""
    from calibrator.cli import demo as verb

    _guarded(lambda: verb.demo(once=once, port=port, parameters=parameters, objective=objective))


@app.command()
def selftest(
    streams: Annotated[str, typer.Option(help="Numbers of streams to hold.")] = "1,64,256,1024",
    seconds: Annotated[float, typer.Option(help="How long each is measured.")] = 2.0,
    output: Annotated[str, typer.Option(help="table or json.")] = "table",
) -> None:
    """Measure what this machine's load generator can do: events a second, added latency, CPU."""
    from calibrator.cli import selftest as verb

    _guarded(lambda: verb.selftest(streams, seconds, output))


@app.command()
def simulate(
    backends: Annotated[int, typer.Option(help="Number of synthetic backends.")] = 600,
    seed: Annotated[int, typer.Option(help="Seed of the backends; printed with the table.")] = 1,
    families: Annotated[str, typer.Option(help="core, or all: also shallow curves and holes.")] = "core",
    recalibrations: Annotated[int, typer.Option(help="Sweeps after the first of each backend, with drift.")] = 0,
    stress: Annotated[str, typer.Option(help="none, correlation (0.9) or falling (by 25 % in mid-sweep).")] = "none",
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    replay: Annotated[Path | None, typer.Option(help="Replay a recorded sweep instead: a JSON file.")] = None,
    output: Annotated[str, typer.Option(help="table or json.")] = "table",
) -> None:
    """Judge the search on synthetic backends of known capacity, beside doubling and bisection."""
    from calibrator.cli import simulate as verb

    options = verb.SimulateOptions(
        backends=backends,
        seed=seed,
        families=families,
        output=output,
        recalibrations=recalibrations,
        stress=stress,
        workers=workers,
    )
    try:
        verb.simulate(options) if replay is None else verb.replay(replay, output)
    except CalibratorError as error:
        fail(error)


@app.command()
def report(
    sweep: Annotated[str, typer.Argument(help="File of `sweep --output json`, or a sweep's address in a service.")],
    kind: Annotated[str, typer.Option("--format", help="html, md or json.")] = "html",
    compare: Annotated[str | None, typer.Option(help="An earlier sweep to stand beside it; likewise.")] = None,
    to: Annotated[Path | None, typer.Option(help="File to write; without it, stdout.")] = None,
    token_env: Annotated[str | None, typer.Option(help="Variable that holds the service's read token.")] = None,
) -> None:
    """Make a report of a sweep: one self-contained file with the curve, the conditions and the evidence.

    Example: calibrator report http://127.0.0.1:8300/v1/backends/demo/sweeps/ID --to report.html
    """
    from calibrator.cli import report as verb

    try:
        verb.write_report(sweep, kind, compare, to, token_env)
    except CalibratorError as error:
        fail(error)


def _guarded(make: Callable[[], Coroutine[Any, Any, int]]) -> None:
    try:
        run(make())
    except CalibratorError as error:
        fail(error)
