"""Inside other programs: the wheel installed `--no-deps` beside httpx, in an environment with nothing else, works.

The environment is a real one, made empty; pip installs the wheel into it from no index. httpx and what it needs are
copied from the tests' own environment, distribution by distribution, as an index would give them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import pytest
from support.gateway_site import ROOT
from support.service_process import serving, write_config

BESIDE = ("httpx", "httpcore", "h11", "anyio", "idna", "certifi", "sniffio", "typing_extensions")
FOREIGN = {  # LiteLLM, reduced to what the callback names; the real one has an environment of its own
    "litellm/integrations/custom_logger.py": "class CustomLogger: ...",
    "fastapi.py": "class HTTPException(Exception): ...",
}
LIMIT_S = 300.0


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment."""

    folder: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    @property
    def packages(self) -> Path:
        return next((self.folder / "lib").glob("python*/site-packages"))

    def run(self, program: str, *arguments: str) -> list[str]:
        """The lines that it prints. `-P`: not the folder that the test happens to run in."""
        command = [self.python, "-P", "-c", program, *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=LIMIT_S, env={})
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


def wheel(folder: Path) -> Path:
    """Built now, and not a leftover of `dist`, whose age nobody knows."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    source = folder / "source"
    for name in ("pyproject.toml", "README.md", "LICENSE", "calibrator"):  # a build writes beside what it builds
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True, timeout=LIMIT_S)
    return next(folder.glob("calibrator-*.whl"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("bare")
    made = Environment(folder / "venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made.folder)], check=True, timeout=LIMIT_S)
    assert list(made.packages.iterdir()) == []
    command = [sys.executable, "-m", "pip", "--python", made.python, "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*command, str(wheel(folder))], check=True, timeout=LIMIT_S)
    for name in BESIDE:
        for file in _files(name):
            target = made.packages / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(metadata.distribution(name).locate_file(file), target)
    return made


def _files(name: str) -> list[str]:
    try:
        files = metadata.files(name) or ()
    except metadata.PackageNotFoundError:  # httpx needs some of them on some versions of Python only
        return []
    return [str(file) for file in files if ".." not in file.parts and file.suffix != ".pyc"]


LOADED = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted(name for name in sys.modules if name.partition(".")[0] not in sys.stdlib_module_names)))
print(json.dumps("sqlite3" in sys.modules))
"""


def test_neither_numbers_nor_a_database_are_loaded(bare: Environment, tmp_path: Path) -> None:
    for name, text in FOREIGN.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    beside = f"import sys; sys.path.append({str(tmp_path)!r})"
    names = ("calibrator.client", "calibrator.gateways.asgi", "calibrator.gateways.litellm")
    loaded, has_database = (json.loads(line) for line in bare.run(f"{beside}{LOADED}", *names))
    assert {name for name in loaded if name.startswith("calibrator.")} == {
        "calibrator.client", "calibrator.client.asynchronous", "calibrator.client.follower",
        "calibrator.client.synchronous", "calibrator.errors", "calibrator.gateways", "calibrator.gateways.asgi",
        "calibrator.gateways.leases", "calibrator.gateways.litellm",
    }  # fmt: skip
    assert {name.partition(".")[0] for name in loaded} <= {*BESIDE, "calibrator", "fastapi", "litellm", "__main__"}
    assert not has_database


def test_there_is_nothing_else_to_load(bare: Environment) -> None:
    """What the service needs is not there, so a stray import could not have been served from elsewhere."""
    absent = "import importlib.util; print([importlib.util.find_spec(n) for n in ('numpy', 'sqlalchemy', 'pydantic')])"
    assert bare.run(absent) == ["[None, None, None]"]


FOLLOWS = """
import asyncio, sys, time
from calibrator.client import AsyncCap, LimitReachedError, SyncCap

with SyncCap(sys.argv[1], "llm", static_cap=1, client="threads", poll_s=0.1) as cap:
    while cap.state != "fallback":
        time.sleep(0.05)
    print("threads", cap.limit)

async def tasks():
    async with AsyncCap(sys.argv[1], "llm", static_cap=1, client="threads", poll_s=0.1) as cap:
        while cap.state != "fallback":
            await asyncio.sleep(0.05)
        for _ in range(cap.limit):
            await cap.enter()
        try:
            await cap.enter()
        except LimitReachedError:
            print("tasks", cap.limit)

asyncio.run(asyncio.wait_for(tasks(), 60))
"""


def test_a_client_follows_a_running_service(bare: Environment, tmp_path: Path) -> None:
    later = (datetime.now(UTC) + timedelta(days=3)).strftime("%a").lower()
    llm = {
        "url": "http://127.0.0.1:9/v1", "model": "m", "objectives": ["ttft p99 <= 500ms"], "fallback_cap": 7,
        "windows": [{"days": [later], "from": "00:00", "to": "00:01"}],
    }  # fmt: skip
    with serving(write_config(tmp_path, {"backends": {"llm": llm}})) as service:
        assert bare.run(FOLLOWS, str(service.http.base_url)) == ["threads 7", "tasks 7"]
