"""`make programs` on machines that lack something. Their programs do nothing but what is written here."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "support" / "system_programs.sh"
DEBIAN = 'ID=debian\nVERSION_ID="12"\n'
UBUNTU = 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\n'
UBUNTU_22 = 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="22.04"\n'
MINT = 'ID=linuxmint\nID_LIKE="ubuntu debian"\nVERSION_ID="22"\n'
FEDORA = 'ID=fedora\nVERSION_ID="41"\n'
BROUGHT_BY = {  # package: program, where it is called otherwise
    "postgresql": "usr/lib/postgresql/15/bin/postgres",
    "haproxy": "usr/sbin/haproxy",
    "prometheus": "bin/promtool",
    "chromium-browser": "bin/chromium-browser",
    "python3.11": "bin/python3.11",
    "ca-certificates": "etc/ssl/certs/ca-certificates.crt",
    "libatomic1": "usr/lib/x86_64-linux-gnu/libatomic.so.1",
}
LIBRARIES = ("ca-certificates", "libatomic1")
PROGRAMS = ("openssl", "curl", "jq", "postgresql", "chromium", "haproxy", "prometheus", "prometheus-alertmanager")
PACKAGES = (*LIBRARIES, *PROGRAMS)


@dataclass(frozen=True)
class Machine:
    """A folder that stands for `/`."""

    root: Path

    def has(self, place: str, body: str = "") -> None:
        path = self.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def has_package(self, package: str) -> None:
        self.has(BROUGHT_BY.get(package, f"bin/{package}"))

    def lacks(self, *packages: str) -> None:
        for package in packages:
            (self.root / BROUGHT_BY.get(package, f"bin/{package}")).unlink()

    def is_used_by_root(self) -> None:
        self.has("bin/id", "echo 0")

    def is_used_by_a_user(self, *, sudo: str | None) -> None:
        """`sudo`: what it does; None: there is none."""
        self.has("bin/id", "echo 1000")
        if sudo is not None:
            self.has("bin/sudo", sudo)

    def set_up(self, *interpreters: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SCRIPT, *(interpreters or ("python3", "python3.11"))],
            env={"PATH": str(self.root / "bin"), "SYSTEM_ROOT": str(self.root)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def installed(self) -> list[str]:
        """What apt-get was asked for, one entry each time."""
        log = self.root / "installed"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def new_machine(tmp_path: Path) -> Callable[[str], Machine]:
    """With every program, used by root."""

    def make(release: str = DEBIAN, *, apt_brings: bool = True) -> Machine:
        machine = Machine(tmp_path)
        machine.has("etc/os-release")
        (tmp_path / "etc/os-release").write_text(release)
        if "debian" in release:
            machine.has("etc/debian_version")
        for package in ("python3", *PACKAGES):
            machine.has_package(package)
        for tool in ("env", "mkdir", "touch", "chmod", "true"):
            found = shutil.which(tool)
            assert found is not None
            (tmp_path / "bin" / tool).symlink_to(found)
        cases = "\n".join(f"{package}) place={place} ;;" for package, place in BROUGHT_BY.items())
        body = f"""
          case " $* " in *" install "*) ;; *) exit 0 ;; esac
          for word; do case $word in -* | *=* | install | [0-9]*) ;; *) words="$words $word" ;; esac; done
          echo $words >> {tmp_path}/installed
          for word in $words; do
            place=bin/$word
            case $word in {cases} esac
            {"" if apt_brings else "continue"}
            mkdir -p {tmp_path}/${{place%/*}}; touch {tmp_path}/$place; chmod +x {tmp_path}/$place
          done"""
        machine.has("bin/apt-get", body)
        machine.is_used_by_root()
        return machine

    return make


def test_where_all_is_there_nothing_is_said_or_done(new_machine: Callable[..., Machine]) -> None:
    machine = new_machine()
    machine.is_used_by_a_user(sudo=None)
    done = machine.set_up()
    assert (done.returncode, done.stdout, done.stderr, machine.installed()) == (0, "", "", [])


@pytest.mark.parametrize("release", [DEBIAN, UBUNTU, MINT], ids=["debian", "ubuntu", "mint"])
def test_root_gets_what_is_missing_and_no_more(new_machine: Callable[..., Machine], release: str) -> None:
    machine = new_machine(release)
    machine.lacks("haproxy", "postgresql", "prometheus")
    assert machine.set_up().returncode == 0
    assert machine.installed() == ["postgresql haproxy prometheus"]
    assert machine.set_up().stdout == ""


@pytest.mark.parametrize("package", PACKAGES)
def test_each_program_is_looked_for(new_machine: Callable[..., Machine], package: str) -> None:
    machine = new_machine()
    machine.lacks(package)
    assert machine.set_up().returncode == 0
    assert machine.installed() == [package]


def test_a_user_gets_it_by_a_sudo_that_asks_nothing(new_machine: Callable[..., Machine]) -> None:
    machine = new_machine()
    machine.lacks("jq")
    machine.is_used_by_a_user(sudo='[ "$1" = -n ] && shift && exec "$@"')
    assert machine.set_up().returncode == 0
    assert machine.installed() == ["jq"]


@pytest.mark.parametrize(
    ("sudo", "by"), [(None, "su -c"), ("exit 1", "sudo sh -c")], ids=["no sudo", "sudo wants a password"]
)
def test_who_may_not_install_is_told_the_one_command(
    new_machine: Callable[..., Machine], sudo: str | None, by: str
) -> None:
    machine = new_machine()
    machine.lacks("jq", "chromium")
    machine.is_used_by_a_user(sudo=sudo)
    done = machine.set_up()
    assert (done.returncode, machine.installed()) == (2, [])
    commands = [line.strip() for line in done.stderr.splitlines() if "apt-get" in line]
    assert commands == [f"{by} 'apt-get update && apt-get install --yes --no-install-recommends jq chromium'"]


def test_another_system_is_told_the_names(new_machine: Callable[..., Machine]) -> None:
    machine = new_machine(FEDORA)
    machine.lacks("postgresql", "prometheus")
    done = machine.set_up()
    assert (done.returncode, machine.installed()) == (2, [])
    assert done.stderr.splitlines()[0].endswith(": postgres promtool")


@pytest.mark.parametrize(
    ("release", "python", "chromium"),
    [
        (DEBIAN, "python3 python3-venv", "chromium"),
        (UBUNTU, "python3 python3-venv", "chromium-browser"),
        (UBUNTU_22, "python3.11 python3.11-venv", "chromium-browser"),  # its python3 is 3.10
    ],
    ids=["debian", "ubuntu", "ubuntu 22.04"],
)
def test_names_of_packages_are_those_of_the_release(
    new_machine: Callable[..., Machine], release: str, python: str, chromium: str
) -> None:
    machine = new_machine(release)
    machine.lacks("chromium", "python3")
    assert machine.set_up().returncode == 0
    assert machine.installed() == [f"{python} {chromium}"]


def test_an_interpreter_that_makes_no_environments_is_none(new_machine: Callable[..., Machine]) -> None:
    machine = new_machine()
    machine.has("bin/python3", "exit 1")
    machine.is_used_by_a_user(sudo=None)
    done = machine.set_up()
    assert done.returncode == 2
    assert "python3 python3-venv'" in done.stderr


def test_any_browser_of_the_family_will_do(new_machine: Callable[..., Machine]) -> None:
    machine = new_machine(UBUNTU)
    machine.lacks("chromium")
    machine.has("bin/google-chrome")
    assert (machine.set_up().stdout, machine.installed()) == ("", [])


def test_a_package_that_does_not_bring_its_program_is_an_error(new_machine: Callable[..., Machine]) -> None:
    machine = new_machine(apt_brings=False)
    machine.lacks("curl", "haproxy")
    done = machine.set_up()
    assert done.returncode == 2
    assert done.stderr.rstrip().endswith(": curl haproxy")
