"""Which package imports which, as a matrix in the order of the layers: what is imported stands to the right.

Read from the sources, every import at any depth, so that it shows what is there rather than what was meant. Layers that
hold are at first sight a triangle: no mark left of the diagonal. `lint-imports` says the same with an exit code.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

from support.readme import ROOT

PACKAGE = ROOT / "calibrator"
SELF, IMPORTS, NOTHING = "■", "●", "·"


def layers() -> list[list[str]]:
    """From the contract, top down; packages on one line do not see each other."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (declared,) = [contract["layers"] for contract in contracts if contract["name"] == "layers"]
    return [line.split(" | ") for line in declared]


def imported(path: Path) -> Iterator[str]:
    """Packages of ours that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            whole = node.module == "calibrator"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if whole else [node.module]
        for name in names:
            if name.startswith("calibrator."):
                yield name.split(".")[1]


def imports() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        owner = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        found.setdefault(owner, set()).update(imported(path))
    del found["__init__"]  # the package itself: its version
    return {owner: targets & set(found) - {owner} for owner, targets in found.items()}


def matrix() -> str:
    """A row per importer, a column per imported package; columns are numbered like the rows."""
    names = [name for line in layers() for name in line]
    found = imports()
    width = max(map(len, names))
    head = " " * (width + 5) + " ".join(f"{place:>2}" for place in range(1, len(names) + 1))
    rows = [
        f"{place:>2}  {name:<{width}} "
        + " ".join(f" {SELF if name == other else IMPORTS if other in found[name] else NOTHING}" for other in names)
        for place, name in enumerate(names, 1)
    ]
    return "```text\n" + "\n".join([head, *rows]) + "\n```\n"
