"""Runs a command in a mounted image as Kubernetes would: `python image_run.py ROOT SPEC`, as root; SPEC is JSON.

In name spaces of its own (mounts, processes): the root file system read-only, memory file systems where the chart
mounts volumes, no shell within reach, the image's user, no new privileges. The command is process 1, as in a container.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

VOLUMES = ("tmp", "var/lib/calibrator")
DEVICES = ("null", "zero", "random", "urandom")
SHELLS = ("bin/sh", "bin/bash", "bin/dash", "usr/bin/sh", "usr/bin/bash", "usr/bin/dash")
PR_SET_NO_NEW_PRIVS = 38


def mount(*arguments: str | Path) -> None:
    subprocess.run(["/bin/mount", *map(str, arguments)], check=True)


def prepare(root: Path, files: dict[str, str], user: int) -> None:
    """`files`: outside by inside, read-only."""
    mount("--make-rprivate", "/")
    mount("--bind", root, root)
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", root / "dev")
    for name in DEVICES:
        (root / "dev" / name).touch()
        mount("--bind", f"/dev/{name}", root / "dev" / name)
    (root / "dev" / "shm").mkdir()
    mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", root / "dev" / "shm")
    mount("-t", "proc", "proc", root / "proc")
    for name in VOLUMES:
        mount("-t", "tmpfs", "-o", f"mode=700,uid={user},gid={user}", "tmpfs", root / name)
    for inside, outside in files.items():
        place = root / inside.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        mount("--bind", "-o", "ro", outside, place)
    for name in SHELLS:
        if (root / name).exists():
            mount("--bind", "/dev/null", root / name)
    mount("-o", "remount,bind,ro", root)


def enter(root: Path, user: int, folder: str) -> None:
    os.chroot(root)
    os.chdir(folder)
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def main() -> None:
    root, spec = Path(sys.argv[1]), json.loads(sys.argv[2])
    config: dict[str, Any] = spec["config"]
    user = int(config["User"].partition(":")[0])
    environ = dict(text.split("=", 1) for text in config["Env"])
    prepare(root, spec["files"], user)
    enter(root, user, config["WorkingDir"])
    command = spec["command"] or [*config["Entrypoint"], *config["Cmd"]]
    os.execvpe(command[0], command, environ)  # noqa: S606 - that is the point: no shell


if __name__ == "__main__":
    main()
