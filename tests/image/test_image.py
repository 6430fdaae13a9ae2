"""`deploy/Dockerfile`, built and run: as nobody, on a read-only root file system, without a shell. `make image-test`.

The base is Debian's rather than the one that the Dockerfile names, which comes from a registry.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml
from support.image_build import Image, built_image
from support.service_process import family, living, wait_for

pytestmark = [pytest.mark.image, pytest.mark.timeout(2400)]
RUNNER = Path(__file__).parents[1] / "support" / "image_run.py"
PYTHON = "/app/bin/python"
LIMIT_S = 300.0
MEGABYTE = 1e6


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    with built_image() as image:
        yield image


def command_line(image: Image, command: Sequence[str], files: Mapping[str, Path]) -> list[str]:
    spec = {"config": image.config, "command": command, "files": {key: str(path) for key, path in files.items()}}
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    return [*unshare, sys.executable, str(RUNNER), str(image.root), json.dumps(spec)]


def run(image: Image, *command: str) -> subprocess.CompletedProcess[str]:
    line = command_line(image, command, {})
    return subprocess.run(line, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def python(image: Image, text: str) -> str:
    answer = run(image, PYTHON, "-c", text)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def test_the_image_says_what_it_is_and_runs_as_a_number(image: Image) -> None:
    labels = image.config["Labels"]
    for name in ("title", "description", "licenses", "version", "revision"):
        assert labels[f"org.opencontainers.image.{name}"]
    assert image.config["User"] == "65532:65532"
    assert image.config["Entrypoint"] == ["/app/bin/calibrator"]
    assert image.config["ExposedPorts"] == {"8300/tcp": {}}
    assert (
        labels["org.opencontainers.image.version"] == run(image, "/app/bin/calibrator", "--version").stdout.split()[-1]
    )


def test_nothing_can_be_written_but_the_volumes(image: Image) -> None:
    told = python(
        image,
        "import os\n"
        "print(os.getuid(), os.getgid(), os.getgroups())\n"
        "for place in ('/x', '/app/x', '/etc/x', '/var/lib/calibrator/x', '/tmp/x'):\n"
        "    try:\n"
        "        open(place, 'w').close()\n"
        "        print(place, 'written')\n"
        "    except OSError as error:\n"
        "        print(place, error.strerror)\n",
    )
    assert told.splitlines() == [
        "65532 65532 []",
        "/x Read-only file system",
        "/app/x Read-only file system",
        "/etc/x Read-only file system",
        "/var/lib/calibrator/x written",
        "/tmp/x written",  # noqa: S108 - in the image, which is the point
    ]


def test_the_program_belongs_to_root_and_brings_no_tools_to_install_more(image: Image) -> None:
    """Even where somebody mounts the root file system writable."""
    own = [path for path in (image.root / "app").rglob("*") if not path.is_symlink()]
    assert len(own) > 1000
    assert {(path.stat().st_uid, path.stat().st_mode & 0o022) for path in own} == {(0, 0)}
    names = {path.name for path in (image.root / "app" / "lib").glob("python*/site-packages/*")}
    assert names.isdisjoint({"pip", "setuptools", "pytest"})
    assert {"opentelemetry", "calibrator"} <= names
    assert not list((image.root / "app").rglob("tests/test_*.py"))


def test_no_shell_is_within_reach(image: Image) -> None:
    """So the other tests show that none is needed."""
    assert run(image, "/bin/sh", "-c", "true").returncode != 0


def test_a_demo_finds_a_cap(image: Image) -> None:
    begun_s = time.monotonic()
    answer = run(image, "/app/bin/calibrator", "demo", "--once", "--port", "0")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found = re.search(r"Cap (\d+)", answer.stdout)
    assert found, answer.stdout
    assert int(found[1]) > 0
    print(f"\n`calibrator demo --once` in the image: {found[0]}, {time.monotonic() - begun_s:.0f} s")


@contextmanager
def started(image: Image, config: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The image's own command; its URL."""
    line = command_line(image, (), {"/etc/calibrator/calibrator.yaml": config})
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            for text in process.stdout:
                if '"event": "serving"' in text:
                    yield process, json.loads(text)["url"]
                    return
            pytest.fail("it never said where it serves")
        finally:
            if process.poll() is None:
                process.kill()  # unshare takes its child along


def test_the_service_starts_answers_and_ends_when_told(image: Image, tmp_path: Path) -> None:
    """As process 1, which ignores every signal that it does not handle."""
    backend = {"url": "http://127.0.0.1:9/v1", "model": "m", "objectives": ["ttft p99 <= 1s"], "fallback_cap": 4}
    config = tmp_path / "calibrator.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "listen": {"port": 0},
                "store": {"path": "/var/lib/calibrator/calibrator.db"},
                "log": {"format": "json"},
                "load": {"selftest": False},
                "backends": {"chat": backend},
            }
        )
    )
    config.chmod(0o644)
    begun_s = time.monotonic()
    with started(image, config) as (process, url), httpx.Client(base_url=url, trust_env=False) as http:
        assert http.get("/readyz").status_code == 200
        ready_s = time.monotonic() - begun_s
        assert http.get("/v1/backends/chat/cap").json()["cap"] == 4
        ours = family(process.pid)
        served = next(pid for pid, _ in ours if b"/app/bin/calibrator" in Path(f"/proc/{pid}/cmdline").read_bytes()
                      and b"image_run" not in Path(f"/proc/{pid}/cmdline").read_bytes())  # fmt: skip
        subprocess.run(["kill", f"-{signal.SIGTERM.value}", str(served)], check=True)
        assert process.wait(30) == 0
        wait_for(lambda: not living(ours), "every process of it ends")
    print(f"\nready {ready_s:.1f} s after the start")


def test_its_size(image: Image) -> None:
    """Bounded, so that a package that is not needed does not slip in."""
    ours = image.size_bytes - image.base_bytes
    print(f"\nimage {image.size_bytes / MEGABYTE:.0f} MB unpacked, {ours / MEGABYTE:.0f} MB of it above the base")
    assert 100 * MEGABYTE < ours < 350 * MEGABYTE
