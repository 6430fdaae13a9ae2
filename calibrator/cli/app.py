"""Commands with their options, help and exit codes; the work is done in the modules beside this one.

An expected failure is one sentence of cause and one of remedy on stderr, with the exit code of its class (`errors`).
Help teaches: options are grouped, examples come last.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from calibrator import __version__
from calibrator.cli.options import SimulateOptions, SweepOptions, one_of, takes
from calibrator.errors import CalibratorError, ExitCode

app = typer.Typer(
    name="calibrator",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find how many requests an LLM backend may have in flight before P99 latency breaks its SLA, and publish it.",
    epilog="Begin with: calibrator demo\n\n"
    "Exit codes: 0 calibrated, 2 configuration, 3 unreachable or unauthorized, 4 inconclusive, 5 infeasible, "
    "130 interrupted.",
)
db = typer.Typer(no_args_is_help=True, help="Manage the database schema.")
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])  # typer exports its subclass alone

MEASURE, SERVE, TRUST = "Measure", "Serve", "Verify"  # groups of commands
app.add_typer(db, name="db", rich_help_panel=SERVE)


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # characters that a terminal cannot show become question marks, not a traceback
    try:
        raise SystemExit(app(standalone_mode=False))
    except CalibratorError as error:
        fail(error)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # typer does not export it
            error.show()
        else:
            _complain(f"{error.format_message().rstrip('.')}. {_where_to_look(error)}")
        raise SystemExit(int(ExitCode.CONFIGURATION)) from None
    except typer.Abort:
        raise SystemExit(int(ExitCode.INTERRUPTED)) from None


def fail(error: CalibratorError) -> None:
    """Cause and remedy on stderr; the exit code of the error's class."""
    _complain(str(error))
    raise SystemExit(int(error.exit_code))


def _complain(words: str) -> None:
    print(f"calibrator: {words}", file=sys.stderr)  # noqa: T201 - the terminal is this module's job


def _where_to_look(error: typer.BadParameter) -> str:
    verb = "calibrator" if error.ctx is None else error.ctx.command_path
    return f"See {verb} --help."


def run(coroutine: Coroutine[Any, Any, int]) -> None:
    """Run a command and exit with its code. The first Ctrl-C cancels it, the second exits immediately."""
    from calibrator.cli import interrupt

    raise typer.Exit(interrupt.run(coroutine))


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


@app.command(
    rich_help_panel=MEASURE,
    epilog="[bold]Examples[/bold]\n\n"
    "The capacity for one SLA, saving the result for a report:\n\n"
    "  calibrator sweep --url http://127.0.0.1:8000/v1 --model m --objective 'ttft p99 <= 500ms' --save sweep.json\n\n"
    "Two objectives, long prompts, ten minutes:\n\n"
    "  calibrator sweep --url http://127.0.0.1:8000/v1 --model m --objective 'ttft p95 <= 2s' "
    "--objective 'tpot p95 <= 60ms' --prompt-tokens 4000 --output-tokens 200 --max 64 --duration 10m\n\n"
    "Exactly three levels, for a curve of your own:\n\n"
    "  calibrator sweep --url http://127.0.0.1:8000/v1 --model m --objective 'ttft p99 <= 500ms' "
    "--levels 8,32,64 --requests 500 --output json\n\n"
    "Ctrl-C ends all probes and shows what was measured; a second Ctrl-C exits immediately. "
    "Exit codes: 0 calibrated, 2 command line, 3 unreachable, 4 inconclusive, 5 infeasible, 130 interrupted.",
)
@takes(SweepOptions)
def sweep(options: SweepOptions) -> None:
    """Measure one backend once: search for its capacity, or measure given levels.

    A sweep is a load test. It drives the backend to the edge of its SLA and, for short moments, over it; budgets limit
    both.
    """
    from calibrator.cli import sweep as verb

    _guarded(lambda: verb.sweep(options))


@app.command(rich_help_panel=SERVE, epilog="Example: calibrator serve --config calibrator.yaml")
def serve(
    config: Annotated[Path, typer.Option("--config", "-c", help="The YAML configuration.")],
) -> None:
    """Run the service: sweep on schedule, publish caps, serve gateways."""
    from calibrator.cli import serve as verb

    _guarded(lambda: verb.serve(config))


@app.command(rich_help_panel=SERVE, epilog="Example: calibrator check --config calibrator.yaml")
def check(
    config: Annotated[Path, typer.Option("--config", "-c", help="The YAML configuration.")],
) -> None:
    """Validate a configuration; print the effective settings (secrets redacted) and the cost of a sweep."""
    from calibrator.cli import serve as verb

    try:
        verb.check(config)
    except CalibratorError as error:
        fail(error)


@app.command(
    rich_help_panel=MEASURE,
    epilog="Example: calibrator demo --parameters long_prompts --objective 'ttft p99 <= 400ms'",
)
def demo(
    once: Annotated[bool, typer.Option("--once", help="Exit after the sweep, with its exit code.")] = False,
    port: Annotated[int, typer.Option(help="Port of the service; 0 chooses a free one.")] = 8300,
    parameters: Annotated[
        str,
        typer.Option(
            help="Simulated engine: seed, small, long_prompts, tight_memory or large.",
            autocompletion=one_of("seed", "small", "long_prompts", "tight_memory", "large"),
        ),
    ] = "seed",
    objective: Annotated[str, typer.Option(help="The SLA of the demo.")] = "ttft p99 <= 300ms",
) -> None:
    """Show how it works: a simulated LLM engine, one sweep, and the cap being served until Ctrl-C."""
    from calibrator.cli import demo as verb

    _guarded(lambda: verb.demo(once=once, port=port, parameters=parameters, objective=objective))


@app.command(rich_help_panel=TRUST, epilog="Example: calibrator selftest --streams 64,256 --seconds 1")
def selftest(
    streams: Annotated[str, typer.Option(help="Numbers of concurrent streams.")] = "1,64,256,1024",
    seconds: Annotated[float, typer.Option(help="Seconds to measure each number of streams.")] = 2.0,
    output: Annotated[str, typer.Option(help="table or json.")] = "table",
) -> None:
    """Measure the load generator on this machine: events per second, added latency, CPU."""
    from calibrator.cli import selftest as verb

    _guarded(lambda: verb.selftest(streams, seconds, output))


@app.command(
    rich_help_panel=TRUST,
    epilog="[bold]Examples[/bold]\n\n  calibrator simulate --backends 100\n\n"
    "What the current policy would have done with a recorded sweep:\n\n  calibrator simulate --replay sweep.json",
)
@takes(SimulateOptions)
def simulate(options: SimulateOptions) -> None:
    """Judge the search on synthetic backends of known capacity, compared with doubling and bisection."""
    from calibrator.cli import simulate as verb

    try:
        verb.simulate(options) if options.replay is None else verb.replay(options.replay, options.output)
    except CalibratorError as error:
        fail(error)


@app.command(
    rich_help_panel=MEASURE,
    epilog="[bold]Examples[/bold]\n\n  calibrator report sweep.json --to report.html\n\n"
    "What has changed since an earlier sweep:\n\n  calibrator report sweep.json --compare earlier.json --format md\n\n"
    "From a running service, where ID is one of /v1/backends/NAME/sweeps:\n\n"
    "  calibrator report http://127.0.0.1:8300/v1/backends/NAME/sweeps/ID --to report.html",
)
def report(
    sweep: Annotated[str, typer.Argument(help="File from sweep --save, or URL of a sweep in a service.")],
    kind: Annotated[
        str, typer.Option("--format", help="html, md or json.", autocompletion=one_of("html", "md", "json"))
    ] = "html",
    compare: Annotated[str | None, typer.Option(help="An earlier sweep to compare with; also a file or a URL.")] = None,
    to: Annotated[Path | None, typer.Option(help="File to write; default: stdout.")] = None,
    token_env: Annotated[str | None, typer.Option(help="Environment variable with the service's read token.")] = None,
) -> None:
    """Render a report of a sweep: one self-contained file with the curve, the conditions and the evidence."""
    from calibrator.cli import report as verb

    try:
        verb.write_report(sweep, kind, compare, to, token_env)
    except CalibratorError as error:
        fail(error)


@app.command(
    rich_help_panel=MEASURE,
    epilog="[bold]Examples[/bold]\n\nFrom a running service, where ID is one of /v1/backends/NAME/sweeps:\n\n  "
    "calibrator export http://127.0.0.1:8300/v1/backends/NAME/sweeps/ID --to samples.jsonl\n\nFrom the database of a "
    "service that is not running:\n\n  calibrator export ID --config calibrator.yaml --format csv",
)
def export(
    sweep: Annotated[str, typer.Argument(help="URL of a sweep in a service, or with --config its ID.")],
    kind: Annotated[
        str, typer.Option("--format", help="jsonl or csv.", autocompletion=one_of("jsonl", "csv"))
    ] = "jsonl",
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The YAML configuration with the store.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="File to write; default: stdout.")] = None,
    token_env: Annotated[str | None, typer.Option(help="Environment variable with the service's read token.")] = None,
) -> None:
    """Write the individual requests of a sweep, one line each, with AIPerf's field names."""
    from calibrator.cli import export as verb

    _guarded(lambda: verb.export(sweep, kind, config, to, token_env))


@db.command("upgrade")
def db_upgrade(
    config: Annotated[Path, typer.Option("--config", "-c", help="The YAML configuration.")],
) -> None:
    """Migrate the database to this release's schema, as every start does. It cannot be undone."""
    from calibrator.cli import database as verb

    _guarded(lambda: verb.upgrade(config))


@db.command("current")
def db_current(
    config: Annotated[Path, typer.Option("--config", "-c", help="The YAML configuration.")],
) -> None:
    """Show the schema version of the database and of this release; change nothing."""
    from calibrator.cli import database as verb

    _guarded(lambda: verb.current(config))


def _guarded(make: Callable[[], Coroutine[Any, Any, int]]) -> None:
    try:
        run(make())
    except CalibratorError as error:
        fail(error)
