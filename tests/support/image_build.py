"""The image, built for real without a registry: `deploy/Dockerfile` as it is, on a base that debootstrap makes.

    debootstrap ─▶ base.tar ─▶ BASE ─┐
    pip download ─▶ wheels ──────────┴▶ buildah bud --build-arg BASE=... -f deploy/Dockerfile ─▶ image

buildah works in chroot isolation, so no daemon and no container engine is needed, but root is. The build sees no index:
pip.conf is mounted over the base's own and knows the prefetched wheels alone. So what is built is what is locked.
Everything lies in `build/image` and is used again: the base for as long as it is there, the wheels for one lock.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.require import require

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / "build" / "image"
SUITE = "bookworm"
PYTHON_OF_SUITE = (3, 11)  # wheels are fetched by this interpreter
PACKAGES = "python3,python3-venv,ca-certificates"
LOCKS = ("image.txt", "build.txt")
IMAGE, BASE = "localhost/calibrator:test", f"localhost/base:{SUITE}"
BUILD_LIMIT_S = 1800.0


@dataclass(frozen=True, slots=True)
class Image:
    """`config` as the OCI image has it: User, Env, Entrypoint, Cmd, WorkingDir, Labels, ExposedPorts."""

    root: Path  # of a container's file system, mounted
    config: dict[str, Any]
    size_bytes: int
    base_bytes: int


@contextmanager
def built_image() -> Iterator[Image]:
    """Build it, and mount a container of it for as long as the block lasts."""
    for program in ("buildah", "debootstrap"):
        require(program, found=shutil.which(program) is not None, remedy=f"apt-get install {program}")
    require("root", found=os.geteuid() == 0, remedy="building in chroot isolation needs it")
    require("Python 3.11", found=sys.version_info[:2] == PYTHON_OF_SUITE, remedy=f"{SUITE} has it; run pytest with it")
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    _base()
    (CACHE / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    mounts = (f"--volume={_wheels()}:/wheels:ro", f"--volume={CACHE / 'pip.conf'}:/etc/pip.conf:ro")
    dockerfile = REPOSITORY / "deploy" / "Dockerfile"
    _bud("--build-arg", f"BASE={BASE}", *mounts, "-f", dockerfile, "-t", IMAGE, REPOSITORY)
    container = buildah("from", "--pull-never", *_trusting(), IMAGE)
    try:
        inspected = json.loads(buildah("inspect", "--type", "image", IMAGE))
        yield Image(
            root=Path(buildah("mount", container)),
            config=inspected["OCIv1"]["config"],
            size_bytes=_size_bytes(IMAGE),
            base_bytes=_size_bytes(BASE),
        )
    finally:
        buildah("umount", container)
        buildah("rm", container)
        buildah("rmi", IMAGE)
        buildah("rmi", "--prune")


def buildah(*arguments: str | Path) -> str:
    """With a store of its own. Raises AssertionError with what it said."""
    places = ("--root", CACHE / "store", "--runroot", CACHE / "run", "--storage-driver", "vfs")
    return _run("buildah", *places, *arguments)


def _run(*command: str | Path) -> str:
    answer = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_LIMIT_S, check=False)
    assert answer.returncode == 0, f"{command}:\n{answer.stdout[-4000:]}\n{answer.stderr[-4000:]}"
    return answer.stdout.strip()


def _trusting() -> tuple[str, ...]:
    return ("--signature-policy", str(CACHE / "policy.json"))


def _bud(*arguments: str | Path) -> None:
    buildah("bud", "--isolation", "chroot", "--pull-never", *_trusting(), *arguments)


def _size_bytes(image: str) -> int:
    """Of all layers, unpacked."""
    listed = json.loads(buildah("images", "--json", image))
    size, unit = listed[0]["size"].split()
    return int(float(size) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit])


def _base() -> None:
    """Import the base once; make it once."""
    archive = CACHE / "base.tar"
    if not archive.exists():
        rootfs = CACHE / "rootfs"
        shutil.rmtree(rootfs, ignore_errors=True)  # of a run that was cut off
        _run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, rootfs)
        _run("tar", "-C", rootfs, "-cf", archive.with_suffix(".part"), ".")
        archive.with_suffix(".part").rename(archive)
        shutil.rmtree(rootfs)
    if BASE not in buildah("images", "--format", "{{.Name}}:{{.Tag}}").split():
        (CACHE / "Base").write_text("FROM scratch\nADD base.tar /\n")
        _bud("-f", CACHE / "Base", "-t", BASE, CACHE)


def _wheels() -> Path:
    """Every locked package as a wheel."""
    locks = [REPOSITORY / "requirements" / name for name in LOCKS]
    digest = hashlib.sha256(b"".join(lock.read_bytes() for lock in locks)).hexdigest()[:12]
    folder = CACHE / f"wheels-{digest}"
    if not folder.exists():
        wanted = [part for lock in locks for part in ("-r", lock)]
        part = folder.with_suffix(".part")
        options = ("--quiet", "--only-binary=:all:", "--require-hashes", "--dest", part)
        _run(sys.executable, "-m", "pip", "download", *options, *wanted)
        part.rename(folder)
    return folder
