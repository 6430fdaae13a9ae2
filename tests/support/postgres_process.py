"""A real PostgreSQL of the tests' own: a cluster in a directory of its own, a free port of 127.0.0.1, no password.

The server refuses to run as root, so it then runs as the user `postgres` that its package made. It is started and
stopped by its process id; `restart` and `kill` are what a crash and an operator do.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from support.certificates import Certificates
from support.require import require
from support.service_process import family

START_LIMIT_S = 180.0


def programs() -> Path | None:
    """Where `postgres` and `initdb` are; None: nowhere."""
    found = shutil.which("postgres")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((place for place in reversed(places) if (place / "initdb").exists()), None)


class PostgresProcess:
    """A running server."""

    def __init__(self, bin_folder: Path, folder: Path, options: tuple[str, ...] = ()) -> None:
        self._bin = bin_folder
        self._folder = folder
        self._options = [f"-c{option}" for option in options]
        self._names = itertools.count(1)
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """On the port it had, or a free one."""
        self.port = self.port or free_port()
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "fsync": "off", "max_connections": 60}
        options = [f"-c{name}={value}" for name, value in settings.items()]
        command = [*self._command("postgres"), f"-cunix_socket_directories={self._folder}", *options, *self._options]
        deadline = time.monotonic() + START_LIMIT_S
        while not (self._process and self._answers()):
            if self._process is None or self._process.poll() is not None:  # after kill -9 its children linger
                with (self._folder / "log").open("ab") as log:
                    self._process = subprocess.Popen(command, stdout=log, stderr=log, **_as_postgres())
            assert time.monotonic() < deadline, (self._folder / "log").read_text()[-2000:]
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """SIGQUIT: at once, as in a crash; SIGINT: fast; returns when it is gone."""
        if self._process is not None:
            self.resume()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, how)
            self._process.wait(START_LIMIT_S)
            self._process = None

    def pause(self) -> None:
        """All its processes: connections are accepted, and nothing is ever answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for pid, _ in family(self.pid):
            with contextlib.suppress(ProcessLookupError):  # a connection that ended by itself
                os.kill(pid, number)

    def allow(self, line: str) -> None:
        """For the next start: who may connect how, before everybody may."""
        rules = self._folder / "data" / "pg_hba.conf"
        rules.write_text(f"{line}\n{rules.read_text()}")

    def be_standby(self, wanted: bool) -> None:  # noqa: FBT001 - the one thing there is to say
        """From its next start on: it replays its own log for ever, and lets nobody write."""
        signal_file = self._folder / "data" / "standby.signal"
        signal_file.touch() if wanted else signal_file.unlink()

    def url(self, database: str, **parameters: str) -> str:
        query = "&".join(f"{name}={value}" for name, value in parameters.items())
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}{'?' if query else ''}{query}"

    def new_schema(self) -> str:
        """The URL of a schema of its own: a corner for one test, at a tenth of the cost of a database."""
        name = f"t{next(self._names)}"
        self.execute(f"CREATE SCHEMA {name}", "postgres")
        return self.url("postgres", options=f"-csearch_path%3D{name}")

    def new_database(self) -> str:
        """Its name."""
        name = f"t{next(self._names)}"
        self.execute(f"CREATE DATABASE {name}", "postgres")
        return name

    def execute(self, statement: str, database: str, user: str = "postgres") -> list[Any]:
        """Rows of one statement, in a connection of its own; in a test with an event loop, call it in a thread."""

        async def once() -> list[Any]:
            connection = await asyncpg.connect(
                host="127.0.0.1", port=self.port, user=user, database=database, ssl=False
            )
            try:
                return [tuple(row) for row in await connection.fetch(statement)]
            finally:
                await connection.close()

        return asyncio.run(once())

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1", "postgres")
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        return True

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._command(program), *arguments], capture_output=True, check=False, text=True, **_as_postgres()
        )
        assert done.returncode == 0, done.stderr

    def _command(self, program: str) -> list[str]:
        return [str(self._bin / program), "-D", str(self._folder / "data")]


@contextmanager
def postgres(*options: str, access: str = "", certificate: Certificates | None = None) -> Iterator[PostgresProcess]:
    """A server for as long as the block lasts. `certificate`: it speaks TLS."""
    found = programs()
    require("PostgreSQL", found=found is not None, remedy="make programs")
    assert found is not None
    folder = Path(tempfile.mkdtemp(prefix="calibrator-pg-"))
    try:
        if "user" in _as_postgres():
            owner = pwd.getpwnam("postgres")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        server = PostgresProcess(found, folder, options + (() if certificate is None else _tls(folder, certificate)))
        try:
            server.allow(access)
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _tls(folder: Path, certificate: Certificates) -> tuple[str, ...]:
    """The key must be the server's own."""
    copies = [folder / "server.pem", folder / "server.key"]
    for copy, original in zip(copies, (certificate.server_cert, certificate.server_key), strict=True):
        shutil.copyfile(original, copy)
        copy.chmod(0o600)
        os.chown(copy, folder.stat().st_uid, folder.stat().st_gid)
    return "ssl=on", f"ssl_cert_file={copies[0]}", f"ssl_key_file={copies[1]}"


def _as_postgres() -> dict[str, Any]:
    return {"user": "postgres", "group": "postgres", "extra_groups": [], "cwd": "/"} if os.geteuid() == 0 else {}


def free_port() -> int:
    """Of 127.0.0.1, where nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
