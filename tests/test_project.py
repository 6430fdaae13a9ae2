"""The project around the code is in order. (Linting, types and import contracts are `make lint`, not here.)"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import calibrator
from calibrator.errors import ExitCode

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
MAX_FILE_LINES = 450


def pins(lock: str) -> dict[str, set[str]]:
    """name -> versions in the lock; a package may have one version per Python."""
    versions: dict[str, set[str]] = {}
    for name, version in re.findall(
        r"^([\w.-]+)(?:\[[\w,-]+\])?==(\S+)", (ROOT / "requirements" / lock).read_text(), re.MULTILINE
    ):
        versions.setdefault(canonicalize_name(name), set()).add(version)
    return versions


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


# ---------------------------------------------------------------------------------------------------------- version
def test_one_version_everywhere() -> None:
    released = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released is not None
    assert released[1] == PYPROJECT["project"]["version"] == calibrator.__version__


def test_the_licence_is_apache_2_in_full() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert PYPROJECT["project"]["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text
    assert "APPENDIX: How to apply the Apache License to your work." in text


def test_readme_documents_every_exit_code() -> None:
    _, _, table = (ROOT / "README.md").read_text().partition("| exit code |")
    documented = re.findall(r"^\| (\d+) \|", table.partition("\n\n")[0], re.MULTILINE)
    assert sorted(map(int, documented)) == sorted(int(code) for code in ExitCode)


# ------------------------------------------------------------------------------------------------------------ locks
@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_locks_hold_hashed_pins_and_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert "index-url" not in text
    assert "find-links" not in text
    entries = re.split(r"\n(?=\S)", text.strip())
    assert entries
    assert [entry.split()[0] for entry in entries if "==" not in entry or "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("build.txt", PYPROJECT["build-system"]["requires"] + PYPROJECT["dependency-groups"]["build"]),
        ("runtime.txt", PYPROJECT["project"]["dependencies"]),
        ("dev.txt", PYPROJECT["project"]["dependencies"] + PYPROJECT["dependency-groups"]["dev"]),
    ],
)
def test_locks_are_not_behind_pyproject(lock: str, wanted: list[object]) -> None:
    locked = pins(lock)
    for requirement in (Requirement(entry) for entry in wanted if isinstance(entry, str)):
        versions = locked.get(canonicalize_name(requirement.name), set())
        assert versions, f"{requirement.name} is not in {lock}: make lock"
        assert all(version in requirement.specifier for version in versions), (
            f"{lock} is behind {requirement}: make lock"
        )


def test_tests_run_with_the_versions_that_users_get() -> None:
    dev = pins("dev.txt")
    for lock in ("runtime.txt", "build.txt"):
        assert {name: dev.get(name) for name in pins(lock)} == pins(lock)


# ---------------------------------------------------------------------------------------------------------- sources
def test_no_unfinished_marks() -> None:
    marks = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX")) + r")\b")
    texts = [*sources("calibrator", "tests"), *ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    assert [path.name for path in texts if marks.search(path.read_text())] == []


def test_files_stay_readable_in_one_go() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources("calibrator")}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_test_file_names_are_unique() -> None:
    names = Counter(path.name for path in sources("tests") if path.name.startswith("test_"))
    assert [name for name, count in names.items() if count > 1] == []


def test_ci_entry_can_be_executed() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


# ------------------------------------------------------------------------------------------------------------ wheel
@pytest.mark.skipif(os.environ.get("TESTS_OF_THE_WHEEL") != "1", reason="only `make test` tests the built wheel")
def test_the_wheel_is_what_is_tested_and_it_is_complete() -> None:
    package = Path(calibrator.__file__).parent
    assert package.is_relative_to(sys.prefix)
    assert package.parent.name == "site-packages"

    def files(folder: Path) -> set[Path]:
        found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {path.relative_to(folder) for path in found}

    assert files(package) == files(ROOT / "calibrator")
