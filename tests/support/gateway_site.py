"""A place for real gateways: a network of its own, a backend that counts, closed-loop load, and the real service.

The network namespace has nothing but a loopback interface, so that the shipped configurations run with their own
ports, whatever else this machine does. It belongs to one thread and all that this thread starts, and goes with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from calibrator.core.publish.snapshot import Recommendation, State
from calibrator.core.records.history import Capacity
from calibrator.core.records.sweep import Grade
from calibrator.ports.store import Retention
from calibrator.stores.sql_store import SqlStore
from calibrator.stores.sqlite import SqliteDatabase
from support.require import require
from support.service_process import Service, wait_for, write_config

ROOT = Path(__file__).parents[2]
DEPLOYED = ROOT / "deploy" / "gateways"
INGRESS, BACKEND, SERVERS, CALIBRATOR, AGENT = 18000, 18080, (18081, 18082, 18083), 18090, 18091
TOKEN = "operator-token"
READ_TOKEN = "read-token-of-gateways"
PAUSE_S = 0.05  # of a worker that was refused
CALL_LIMIT_S = 180.0
SPREAD = 0.3  # of the latency, up and down

CLONE_NEWNET, SIOCSIFFLAGS, IFF_UP = 0x40000000, 0x8914, 1

T = TypeVar("T")


# ---------------------------------------------------------------------------------------------------------- network
def in_own_network(body: Callable[[], T]) -> T:
    """Run `body` in a thread that has a network of its own; what it raises is raised here."""
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            may = libc.unshare(CLONE_NEWNET) == 0
            require(
                "permission for a network namespace",
                found=may,
                remedy="run as root, or where user namespaces are allowed",
            )
            with socket.socket() as any_socket:
                fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
            result.append(body())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


# ------------------------------------------------------------------------------------------------ backend and load
@dataclass(frozen=True, slots=True)
class Answer:
    """What a client of the gateway saw."""

    at_s: float
    status: int
    took_s: float
    headers: Mapping[str, str]


@dataclass
class Bench:
    """The counting backend and the load, in a loop of their own; times are seconds since the start."""

    latency_s: float
    started_s: float = field(default_factory=time.monotonic)
    changes: list[tuple[float, int, int]] = field(default_factory=list)  # moment, port, in flight there
    answers: list[Answer] = field(default_factory=list)
    notes: list[tuple[float, str]] = field(default_factory=list)
    ended: int = 0  # requests, at the backend
    _draws: random.Random = field(default_factory=lambda: random.Random(6))
    _in_flight: dict[int, int] = field(default_factory=dict)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def now_s(self) -> float:
        return time.monotonic() - self.started_s

    def note(self, text: str) -> float:
        """Mark the timeline; returns the moment."""
        self.notes.append((self.now_s(), text))
        return self.notes[-1][0]

    def peak(self, since_s: float, until_s: float = float("inf"), ports: tuple[int, ...] | None = None) -> int:
        """Most in flight at the backend, over all `ports` together, the moment of `since_s` included."""
        now: dict[int, int] = {}
        before, peak = 0, 0
        for at_s, port, count in self.changes:
            if at_s > until_s:
                break
            if ports is None or port in ports:
                now[port] = count
            total = sum(now.values())
            before, peak = (total, peak) if at_s < since_s else (before, max(peak, total))
        return max(before, peak)

    def timeline(self) -> str:
        """Most and least in flight of each second, with the notes."""
        lines = []
        for second in range(int(self.now_s()) + 1):
            inside = [sum_ for at_s, sum_ in self._sums() if second <= at_s < second + 1]
            statuses = [answer.status for answer in self.answers if second <= answer.at_s < second + 1]
            tally = " ".join(f"{status}:{statuses.count(status)}" for status in sorted(set(statuses)))
            text = "; ".join(text for at_s, text in self.notes if second <= at_s < second + 1)
            shown = f"{min(inside):3d}..{max(inside):3d}" if inside else "  -     "
            lines.append(f"{second:3d} s  in flight {shown}  {tally:24s}  {text}".rstrip())
        return "\n".join(lines)

    def _sums(self) -> Iterator[tuple[float, int]]:
        now: dict[int, int] = {}
        for at_s, port, count in self.changes:
            now[port] = count
            yield at_s, sum(now.values())

    def pass_time(self, seconds: float) -> float:
        """Returns the moment of its end."""
        time.sleep(seconds)
        return self.now_s()

    def settle(self) -> None:
        """Let requests end that a lower cap found in flight."""
        self.pass_time((1.0 + SPREAD) * self.latency_s + 0.2)

    def hold(self, seconds: float, cap: int) -> None:
        """For so long, the backend is full and never fuller."""
        begun_s = self.now_s()
        assert self.peak(begun_s, self.pass_time(seconds)) == cap

    # ------------------------------------------------------------------------------------------------ load
    def burst(self, count: int, port: int = INGRESS) -> list[Answer]:
        """So many requests at once, each on a connection of its own."""
        return self.sending(count, port).result(CALL_LIMIT_S)

    def sending(self, count: int, port: int = INGRESS) -> Future[list[Answer]]:
        """A burst that is not waited for."""

        async def all_of_them() -> list[Answer]:
            return list(await asyncio.gather(*(self._one_shot(port) for _ in range(count))))

        return asyncio.run_coroutine_threadsafe(all_of_them(), self._loop)

    @contextmanager
    def load(self, workers: int, port: int = INGRESS) -> Iterator[None]:
        """Closed loop: each worker sends its next request when the last was answered."""

        async def begin() -> list[asyncio.Task[None]]:
            return [asyncio.create_task(self._work(port)) for _ in range(workers)]

        async def end() -> None:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        tasks = self._call(begin())
        try:
            yield
        finally:
            self._call(end())

    async def _one_shot(self, port: int) -> Answer:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            return await self._exchange(reader, writer)
        finally:
            writer.close()

    async def _work(self, port: int) -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    while True:
                        answer = await self._exchange(reader, writer)
                        if answer.status != 200:
                            await asyncio.sleep(PAUSE_S)
                        if answer.headers.get("connection") == "close":
                            break
                finally:
                    writer.close()
            await asyncio.sleep(PAUSE_S)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Answer:
        began_s = self.now_s()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: llm\r\nContent-Length: 2\r\n\r\n{}")
        status, headers = await _head(reader)
        await reader.readexactly(int(headers.get("content-length", "0")))
        answer = Answer(self.now_s(), int(status.split()[1]), self.now_s() - began_s, headers)
        self.answers.append(answer)
        return answer

    # --------------------------------------------------------------------------------------------- backend
    async def _serve(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                start, headers = await _head(reader)
                await reader.readexactly(int(headers.get("content-length", "0")))
                is_work = start.startswith("POST")
                if is_work:
                    await self._work_on(port)
                status = b"200 OK" if is_work else b"404 Not Found"  # a scrape
                writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\nok")

    async def _work_on(self, port: int) -> None:
        self._count(port, 1)
        try:
            await asyncio.sleep(self.latency_s * self._draws.uniform(1.0 - SPREAD, 1.0 + SPREAD))
        finally:
            self._count(port, -1)

    def _count(self, port: int, step: int) -> None:
        self._in_flight[port] = self._in_flight.get(port, 0) + step
        self.ended += step < 0
        self.changes.append((self.now_s(), port, self._in_flight[port]))

    def _call(self, work: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result(CALL_LIMIT_S)

    @contextmanager
    def running(self, *ports: int) -> Iterator[None]:
        async def listen(port: int) -> asyncio.Server:
            def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                serving.append(asyncio.create_task(self._serve(port, reader, writer)))

            return await asyncio.start_server(accept, "127.0.0.1", port)

        async def close() -> None:
            for server in servers:
                server.close()
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)
            await asyncio.sleep(0.05)  # transports close in later turns of the loop

        thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        thread.start()
        serving: list[asyncio.Task[None]] = []
        servers = [self._call(listen(port)) for port in ports]
        try:
            yield
        finally:
            self._call(close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()


async def _head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    """Start line and headers."""
    start, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return start, {name.lower(): value.strip() for name, _, value in pairs}


@contextmanager
def bench(*ports: int, latency_s: float) -> Iterator[Bench]:
    """Prints the timeline, which pytest shows with `-s` or when the test fails."""
    made = Bench(latency_s)
    with made.running(*ports):
        try:
            yield made
        finally:
            print("\n" + made.timeline())


# ------------------------------------------------------------------------------------------------------- calibrator
def calibrator_config(
    folder: Path, *, port: int = CALIBRATOR, store: Mapping[str, Any] | None = None, **gateways: Any
) -> Path:
    """A service that measures nothing: its only window opens in three days."""
    later = datetime.now(UTC) + timedelta(days=3)
    closed = {"days": [later.strftime("%a").lower()], "from": "00:00", "to": "00:01"}
    llm = {
        "url": f"http://127.0.0.1:{BACKEND}/v1",
        "model": "m",
        "objectives": ["ttft p99 <= 500ms"],
        "fallback_cap": 20,
        "windows": [closed],
    }
    tree = {
        "listen": {"port": port},
        "load": {"selftest": False},
        "auth": {"operator_tokens": [{"env": "OPERATOR"}], "read_tokens": [{"env": "READER"}]},
        "gateways": gateways,
        "backends": {"llm": llm},
    }
    return write_config(folder, tree if store is None else {**tree, "store": store})


TOKENS = {"OPERATOR": TOKEN, "READER": READ_TOKEN}


def remember(folder: Path, *, cap: int, max_queue_wait_s: float) -> None:
    """Put a calibrated cap into the store of `calibrator_config`, as a sweep would have."""
    now = time.time()
    published = Recommendation(
        backend="llm",
        version=1,
        cap=cap,
        replica_cap=cap,
        state=State.CALIBRATED,
        grade=Grade.CERTIFIED,
        capacity=Capacity(cap, cap, cap),
        reason="prepared by a test",
        published_at=now,
        measured_at=now,
        valid_until=now + 3600.0,
        max_queue_wait_s=max_queue_wait_s,
    )

    async def store() -> None:
        database = SqlStore(SqliteDatabase(folder / "calibrator.db"), Retention())
        await database.open()
        lease = await database.leases.acquire(published.backend, "test", 1.0)
        assert lease is not None
        await database.add_recommendation(published, lease)
        await database.close()

    asyncio.run(store())


def pin(service: Service, cap: int) -> None:
    """A person sets the cap, which is the quickest way to change one on command."""
    document = {"cap": cap, "reason": "test of a gateway", "author": "test", "expires_in_s": 3600}
    service.http.put("/v1/backends/llm/override", json=document).raise_for_status()


@contextmanager
def program(command: list[str], environ: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real program, ended here."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **environ})
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(60.0)


def wait_until(condition: Callable[[], bool], what: str, limit_s: float) -> None:
    wait_for(lambda: condition() or None, what, limit_s)
