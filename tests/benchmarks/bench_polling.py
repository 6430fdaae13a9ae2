"""How many polls for the cap one core of the service answers, beside a bare starlette route, while a sweep runs.

python tests/benchmarks/bench_polling.py [--seconds 8] [--rounds 3] [--pollers 2000] [--waiting 1000] [--no-sweep]

Both servers run the same uvicorn, each in a process of its own, pinned to the same core; this one, with the pollers, to
another. The pollers are 2,000 clients of their own names over 64 connections, asking as fast as they are answered, each
with what it has in flight and the ETag it was given; beside them the service holds 1,000 long polls. The bare route
returns constant bytes to the same requests. Rounds alternate, so that both see the machine's other work alike. Last,
the pollers ask once a second each, as they really would.

Judged is a ratio, never a rate: answers per second of the server's own CPU time, service over bare; at least 0.7. The
same by wall time is printed beside it; on a machine with other work it says as much about that work.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.service_process import Service, serving, simulated_engine, write_config

CONNECTIONS = 64
LONG_WAIT_S = 60
WANTED_RATIO = 0.7
SETTLED_RATIO = 0.98
JOIN_ROUNDS = 20
CAP = "/v1/backends/chat/cap"
BARE = """
import asyncio, sys
import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from calibrator.wiring.server.connection_guard import guarded_config
from calibrator.wiring.server.listening import listen

BODY = b"x" * 330  # as long as a cap document

async def answer(request):
    return Response(BODY, media_type="application/json")

with listen("127.0.0.1", 0, "bench") as listener:
    print(listener.getsockname()[1], flush=True)
    app = Starlette(routes=[Route("/v1/backends/{name}/cap", answer)])
    uvicorn.Server(guarded_config(app)).run(sockets=[listener])
"""
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_ETAG = re.compile(rb'etag: ("[^\r]*")', re.IGNORECASE)


@dataclass(slots=True)
class Client:
    """One gateway: its name and the ETag it has."""

    name: str
    etag: bytes = b""

    def request(self, query: str = "") -> bytes:
        known = b"If-None-Match: " + self.etag + b"\r\n" if self.etag else b""
        path = f"{CAP}?client={self.name}&in_flight=3&rejected=0{query}"
        return b"GET " + path.encode() + b" HTTP/1.1\r\nHost: calibrator\r\n" + known + b"\r\n"


@dataclass(slots=True)
class Tally:
    answers: int = 0
    statuses: dict[bytes, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def count(self, status: bytes, took_s: float) -> None:
        self.answers += 1
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.seconds.append(took_s)


class Line:
    """A kept-alive connection, as thin as it can be: the pollers must cost less than the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer

    async def ask(self, client: Client, tally: Tally, query: str = "") -> None:
        begun = time.perf_counter()
        self.writer.write(client.request(query))
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if length is not None:
            await self._reader.readexactly(int(length[1]))
        if (etag := _ETAG.search(head)) is not None:  # the bare route has none: what is asked stays alike
            client.etag = etag[1]
        tally.count(head[9:12], time.perf_counter() - begun)


@asynccontextmanager
async def lines(port: int, count: int) -> AsyncIterator[list[Line]]:
    opened = [Line(*await asyncio.open_connection("127.0.0.1", port)) for _ in range(count)]
    try:
        yield opened
    finally:
        for line in opened:
            line.writer.close()


async def saturate(port: int, clients: list[Client], seconds: float) -> Tally:
    """Every connection asks for its part of the clients in turn, as fast as it is answered."""
    tally, ends_at_s = Tally(), time.perf_counter() + seconds

    async def work(line: Line, mine: list[Client]) -> None:
        while time.perf_counter() < ends_at_s:
            for client in mine:
                await line.ask(client, tally)
                if time.perf_counter() >= ends_at_s:
                    return

    async with lines(port, CONNECTIONS) as opened:
        await asyncio.gather(*(work(line, clients[at::CONNECTIONS]) for at, line in enumerate(opened)))
    return tally


async def all_join(port: int, clients: list[Client]) -> None:
    """Until nearly everybody hears nothing new: on a slow machine a fleet of thousands takes a while to join."""
    for _ in range(JOIN_ROUNDS):
        tally = await saturate(port, clients, 3.0)
        if tally.statuses.get(b"304", 0) > SETTLED_RATIO * tally.answers:
            return
    print("the clients have not all settled; the figures below tell of joins too")


async def pace(port: int, clients: list[Client], seconds: float) -> Tally:
    """Each client once a second."""
    tally, begun = Tally(), time.perf_counter()

    async def work(line: Line, mine: list[Client]) -> None:
        for second in range(int(seconds)):
            for at, client in enumerate(mine):
                due_s = begun + second + at / len(mine)
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                await line.ask(client, tally)

    async with lines(port, CONNECTIONS) as opened:
        await asyncio.gather(*(work(line, clients[at::CONNECTIONS]) for at, line in enumerate(opened)))
    return tally


@asynccontextmanager
async def long_polls(port: int, count: int) -> AsyncIterator[Tally]:
    tally = Tally()

    async def wait_on(line: Line, client: Client) -> None:
        while True:
            await line.ask(client, tally, f"&wait={LONG_WAIT_S}")
            if not client.etag:
                await asyncio.sleep(1.0)  # a joiner, told to ask again

    async with lines(port, count) as opened:
        tasks = [asyncio.create_task(wait_on(line, Client(f"waiting-{at}"))) for at, line in enumerate(opened)]
        try:
            yield tally
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def cpu_s(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def pin(pid: int, core: int) -> None:
    with contextlib.suppress(OSError):  # fewer cores than wanted: the ratio still is one
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})


@contextmanager
def bare_server() -> Iterator[tuple[int, int]]:
    """Port and process id."""
    with subprocess.Popen([sys.executable, "-c", BARE], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline()), process.pid
        finally:
            process.terminate()


@contextmanager
def service(*, sweep: bool) -> Iterator[Service]:
    """Swept again and again, or never. The cap leaves each client more than it says it has in flight."""
    with tempfile.TemporaryDirectory() as folder, simulated_engine("small") as engine:
        backend = {
            "url": engine.api_url, "model": "simulated", "objectives": ["ttft p99 <= 500ms"], "fallback_cap": 16000,
            "cap": {"max": 20000}, "publish": "shadow", "every": "6h",
            "workload": {"classes": [{"prompt_tokens": 128, "output_tokens": 32}]},
        }  # fmt: skip
        if not sweep:
            backend["windows"] = [{"days": ["mon"], "from": "00:00", "to": "00:01"}]
        config = write_config(Path(folder), {"backends": {"chat": backend}})
        with serving(config) as running:
            yield running


async def measure(options: argparse.Namespace) -> float:
    cores = sorted(os.sched_getaffinity(0))
    pin(os.getpid(), cores[-1])
    clients = [Client(f"gateway-{number}") for number in range(options.pollers)]
    with bare_server() as (bare_port, bare_pid), service(sweep=options.sweep) as running:
        port = urlsplit(str(running.http.base_url)).port or 0
        for pid in (bare_pid, running.process.pid):
            pin(pid, cores[0])
        found: dict[str, list[tuple[float, float]]] = {"bare": [], "service": []}
        async with long_polls(port, options.waiting) as waited:
            await all_join(port, clients)
            for _ in range(options.rounds):
                for name, at, pid in (("bare", bare_port, bare_pid), ("service", port, running.process.pid)):
                    spent_s, begun_s = cpu_s(pid), time.perf_counter()
                    tally = await saturate(at, clients, options.seconds)
                    took_s, spent_s = time.perf_counter() - begun_s, cpu_s(pid) - spent_s
                    found[name].append((tally.answers / spent_s, tally.answers / took_s))
                    print(f"{name:8} {show(tally, took_s, spent_s)}")
            spent_s = cpu_s(running.process.pid)
            tally = await pace(port, clients, options.seconds)
            spent_s = cpu_s(running.process.pid) - spent_s
            print(f"paced    {show(tally, options.seconds, spent_s)}")
            print(f"long polls answered: {waited.answers}, {statuses(waited)}")
        print(f"clients seen: {running.backend('chat')['gateway_clients']}; {sweep_words(running)}")
    ratios = [median(ours[kind] / bare[kind] for ours, bare in zip(found["service"], found["bare"], strict=True))
              for kind in (0, 1)]  # fmt: skip
    print(f"service / bare: {ratios[0]:.2f} by CPU time, {ratios[1]:.2f} by wall time; wanted {WANTED_RATIO}")
    return ratios[0]


def show(tally: Tally, took_s: float, spent_s: float) -> str:
    tail_s = sorted(tally.seconds)[int(0.99 * len(tally.seconds))]
    return (
        f"{tally.answers / took_s:7.0f} answers/s, {1e6 * spent_s / tally.answers:5.0f} us CPU each, "
        f"{100 * spent_s / took_s:3.0f} % of a core, p99 {1000 * tail_s:.1f} ms, {statuses(tally)}"
    )


def statuses(tally: Tally) -> str:
    return ", ".join(f"{status.decode()}: {count}" for status, count in sorted(tally.statuses.items()))


def sweep_words(running: Service) -> str:
    """What the sweep's own audit says of its levels so far."""
    progress = running.backend("chat")["progress"]
    done = running.document("/v1/backends/chat/sweeps")["sweeps"]
    if not done:
        return "no sweep"
    record = running.document(f"/v1/backends/chat/sweeps/{done[0]['sweep_id']}")
    voided = [level["audit"]["reasons"] for level in record["levels"] if level["audit"]["reasons"]]
    state = "still running" if progress else str(record["outcome"])
    return (
        f"sweep {state}, {record['requests']} requests, {len(record['levels'])} levels, voided by its audit: {voided}"
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pollers", type=int, default=2000)
    parser.add_argument("--waiting", type=int, default=1000)
    parser.add_argument("--no-sweep", dest="sweep", action="store_false")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return int(runner.run(measure(parser.parse_args())) < WANTED_RATIO)


if __name__ == "__main__":
    sys.exit(main())
