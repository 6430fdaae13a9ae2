"""How true and how cheap is the generator? Against a server that knows the truth, beside its peers, in turns.

    python tests/benchmarks/bench_generator.py [--clients ours-1,aiperf] [--repeats 3] [--seconds 8] [--output FILE]

For each load (streams x token events a second) every client runs once, then all again, `--repeats` times; the table has
the medians. Errors are what the client reports less what the server's log says about the same requests. CPU per event
is the slope against the load of one stream, so that starting up costs nobody anything:
(CPU at the load - CPU at one stream) / (events at the load - events at one stream); with start: all CPU over all
events. CPU counts all processes of the client. Held is the mean number of requests that the server had in flight, from
a second after the first one on.

Replication are installed from their packages into environments of their own below `--folder`. Needs a C compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
import venv
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent / "generator"))

from peers import CLIENTS, Client, Meter, Reported, Task

SOURCES = Path(__file__).parent / "generator"
TTFT_MIN_MS, TTFT_MEAN_MS, EVENTS = 20, 30, 50
SETTLE_S = 1.0
LOADS = ((1, 50), (64, 50), (256, 50), (256, 200), (1024, 20))


@dataclass(frozen=True, slots=True)
class Truth:
    """What the server's log says."""

    requests: int
    events: int
    ttft_p50_s: float
    ttft_p99_s: float
    itl_p99_s: float
    widest_gap_s: float  # median over the requests
    held: float


@dataclass(frozen=True, slots=True)
class Run:
    client: str
    streams: int
    events_per_s: int  # of each stream
    cpu_s: float = 0.0
    truth: Truth | None = None
    reported: Reported | None = None
    failure: str = ""


def compile_sources(folder: Path) -> None:
    for name in ("truth_server", "bound_client"):
        command = ["cc", "-O2", "-Wall", "-Wextra", "-o", str(folder / name), str(SOURCES / f"{name}.c"), "-lm"]
        subprocess.run(command, check=True)


def environment(folder: Path, client: Client) -> str:
    """The client's Python; its environment is made once."""
    if not client.packages:
        return sys.executable
    home = folder / "environments" / client.name
    python = home / "bin" / "python"
    if not python.exists():
        print(f"Installing {client.name} ...", flush=True)
        venv.create(home, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *client.packages]
        subprocess.run(command, check=True)
    return str(python)


@contextmanager
def truth_server(folder: Path, seed: int, events_per_s: int) -> Iterator[int]:
    words = (0, seed, TTFT_MIN_MS, TTFT_MEAN_MS, events_per_s, EVENTS, folder / "truth.log")
    process = subprocess.Popen([folder / "truth_server", *map(str, words)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def read_truth(folder: Path, port: int, seconds: int) -> Truth:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/log", timeout=30.0) as answer:
        answer.read()
    data = (folder / "truth.log").read_bytes()
    n, m = (int(count) for count in np.frombuffer(data, "i8", 2))
    rows = np.frombuffer(data, "f8", 5 * n, 16).reshape(n, 5)
    gaps = np.frombuffer(data, "f4", m, 16 + 40 * n)
    rows = rows[rows[:, 1] > 0.0]
    whole = rows[rows[:, 3] == EVENTS]  # clients report what ended
    ttft_s = whole[:, 1] - whole[:, 0]
    since_s = rows[:, 0].min() + SETTLE_S
    until_s = rows[:, 0].min() + seconds - 0.5
    inside_s = np.minimum(rows[:, 2], until_s) - np.maximum(rows[:, 0], since_s)
    return Truth(
        requests=len(rows),
        events=int(rows[:, 3].sum()),
        ttft_p50_s=float(np.quantile(ttft_s, 0.5)),
        ttft_p99_s=float(np.quantile(ttft_s, 0.99)),
        itl_p99_s=float(np.quantile(gaps, 0.99)),
        widest_gap_s=float(np.median(whole[:, 4])),
        held=float(np.maximum(inside_s, 0.0).sum() / (until_s - since_s)),
    )


def run_once(folder: Path, client: Client, load: tuple[int, int], repeat: int, seconds: int) -> Run:
    streams, events_per_s = load
    files = folder / f"{client.name}-{streams}x{events_per_s}-{repeat}-{os.getpid()}"
    files.mkdir(parents=True)
    with truth_server(folder, repeat + 1, events_per_s) as port:
        meter = Meter()
        try:
            reported = client.run(Task(port, streams, seconds, environment(folder, client), files, meter))
            time.sleep(0.2)  # the server notices the connections that the client closed
            truth = read_truth(folder, port, seconds)
        except Exception as error:  # noqa: BLE001 - a peer may fail in any way; the row says so
            return Run(client.name, streams, events_per_s, failure=f"{type(error).__name__}: {error}"[-200:])
    return Run(client.name, streams, events_per_s, meter.cpu_s, truth, reported)


# ------------------------------------------------------------------------------------------------------------- table
def medians(runs: list[Run]) -> list[dict[str, object]]:
    """One row a load and client."""
    groups: dict[tuple[int, int, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.streams, run.events_per_s, run.client].append(run)
    return [summary(group, groups.get((*LOADS[0], name), [])) for (_, _, name), group in groups.items()]


def summary(group: list[Run], idle: list[Run]) -> dict[str, object]:
    good = [(run.reported, run.truth, run.cpu_s) for run in group if run.reported is not None and run.truth is not None]
    first = group[0]
    row: dict[str, object] = {"client": first.client, "streams": first.streams, "rate": first.events_per_s}
    if not good:
        return {**row, "failure": first.failure}
    events = statistics.median(truth.events for _, truth, _ in good)
    still = [(run.cpu_s, run.truth.events) for run in idle if run.truth is not None]
    slope: float | None = None
    if still and first.streams > 1:
        idle_cpu_s, idle_events = (statistics.median(values) for values in zip(*still, strict=True))
        spent_s = statistics.median(cpu_s for _, _, cpu_s in good) - idle_cpu_s
        slope = spent_s / (events - idle_events) * 1e6 if events > idle_events else None
    return {
        **row,
        "held": statistics.median(truth.held for _, truth, _ in good),
        "events": events,
        "truth_ttft_p99_s": statistics.median(truth.ttft_p99_s for _, truth, _ in good),
        "ttft_p50_error_s": _error([(said.ttft_p50_s, truth.ttft_p50_s) for said, truth, _ in good]),
        "ttft_p99_error_s": _error([(said.ttft_p99_s, truth.ttft_p99_s) for said, truth, _ in good]),
        "itl_p99_error_s": _error(
            [(said.itl_p99_s, truth.itl_p99_s) for said, truth, _ in good]
            + [(said.widest_gap_s, truth.widest_gap_s) for said, truth, _ in good]
        ),
        "cpu_us_per_event": slope,
        "whole_cpu_us_per_event": statistics.median(cpu_s / truth.events for _, truth, cpu_s in good) * 1e6,
        "marked": any(said.says_it_is_saturated for said, _, _ in good),
        "runs": len(good),
    }


def _error(pairs: list[tuple[float | None, float]]) -> float | None:
    known = [said - true for said, true in pairs if said is not None]
    return statistics.median(known) if known else None


def show(rows: list[dict[str, object]], seconds: int) -> None:
    table = Table(title="Medians; errors against the server's own log, in ms", title_justify="left")
    for name in (
        "load",
        "client",
        "held",
        "events/s",
        "true ttft p99",
        "p50 err",
        "p99 err",
        "gap err",
        "us/event",
        "with start",
    ):
        table.add_column(name, justify="left" if name == "client" else "right")
    for row in sorted(rows, key=lambda row: (row["streams"], row["rate"], list(CLIENTS).index(str(row["client"])))):
        load = f"{row['streams']} x {row['rate']}"
        if "failure" in row:
            table.add_row(load, str(row["client"]), "-", "-", "-", "-", "-", "-", "-", f"failed: {row['failure']}"[:40])
            continue
        held, events = float(str(row["held"])), float(str(row["events"]))
        keys = ("truth_ttft_p99_s", "ttft_p50_error_s", "ttft_p99_error_s", "itl_p99_error_s")
        cost = row["cpu_us_per_event"]
        table.add_row(
            load,
            f"{row['client']}{' (says: saturated)' if row['marked'] else ''}",
            f"{held:.1f}",
            f"{events / seconds:.0f}",
            *(_ms(row[key]) for key in keys),
            "-" if cost is None else f"{float(str(cost)):.1f}",
            f"{float(str(row['whole_cpu_us_per_event'])):.1f}",
        )
    Console(width=130).print(table)


def _ms(value: object) -> str:
    return "-" if value is None else f"{float(str(value)) * 1e3:.1f}"


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--clients", default=",".join(CLIENTS))
    words.add_argument("--loads", default=",".join(f"{streams}x{rate}" for streams, rate in LOADS))
    words.add_argument("--repeats", type=int, default=3)
    words.add_argument("--seconds", type=int, default=8)
    words.add_argument("--folder", type=Path, default=Path("build/bench-generator"))
    words.add_argument("--output", type=Path, default=None, help="default: FOLDER/generator.json")
    options = words.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    compile_sources(folder)
    loads = [(int(streams), int(rate)) for streams, rate in (word.split("x") for word in options.loads.split(","))]
    clients = [CLIENTS[name] for name in options.clients.split(",")]
    for client in clients:
        environment(folder, client)
    runs = []
    for repeat in range(options.repeats):
        for load in loads:
            for client in clients:
                run = run_once(folder, client, load, repeat, options.seconds)
                runs.append(run)
                print(f"{load[0]} x {load[1]}, {client.name}: {run.failure or 'done'}", flush=True)
    rows = medians(runs)
    document = {
        "cores": os.cpu_count(),
        "seconds": options.seconds,
        "rows": rows,
        "runs": [asdict(run) for run in runs],
    }
    (options.output or folder / "generator.json").write_text(json.dumps(document, indent=1))
    show(rows, options.seconds)


if __name__ == "__main__":
    main()
