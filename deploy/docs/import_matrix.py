"""Which package imports which, as one matrix a level, in the order of the layers: what is imported stands to the right.

Read from the sources, every import at any depth, so that it shows what is there rather than what was meant. Layers that
hold are at first sight a triangle: no mark left of the diagonal. `lint-imports` says the same with an exit code.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "calibrator"
CONTRACTS = {  # title of the picture -> (container, name of its contract in pyproject.toml)
    "calibrator": "layers",
    "calibrator.core": "topics of core",
    "calibrator.service": "parts of the service",
    "calibrator.web": "parts of web",
}
ADAPTERS = frozenset({"load", "backends", "telemetry", "discovery", "gateways", "stores", "clock"})
SELF, IMPORTS, NOTHING = "■", "●", "·"


def layers(container: str = "calibrator") -> list[list[str]]:
    """From the contract, top down; packages on one line do not see each other."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (declared,) = [contract["layers"] for contract in contracts if contract["name"] == CONTRACTS[container]]
    return [line.split(" | ") for line in declared]


def imported(path: Path, container: str) -> Iterator[str]:
    """Members of the container that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            whole = node.module == container
            names = [f"{node.module}.{alias.name}" for alias in node.names] if whole else [node.module]
        for name in names:
            if name.startswith(container + "."):
                yield name.removeprefix(container + ".").split(".")[0]


def imports(container: str = "calibrator") -> dict[str, set[str]]:
    folder = ROOT / container.replace(".", "/")
    found: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*.py")):
        owner = path.relative_to(folder).parts[0].removesuffix(".py")
        found.setdefault(owner, set()).update(imported(path, container))
    del found["__init__"]  # the package itself
    return {owner: targets & set(found) - {owner} for owner, targets in found.items()}


def rooms(container: str) -> list[str]:
    """What the picture shows, top down: the adapters, which do not see each other, are one room."""
    names = [name for line in layers(container) for name in line]
    return list(dict.fromkeys(map(_room, names))) if container == "calibrator" else names


def imports_of_rooms(container: str) -> Mapping[str, set[str]]:
    found = imports(container)
    if container != "calibrator":
        return found
    merged: dict[str, set[str]] = {}
    for owner, targets in found.items():
        merged.setdefault(_room(owner), set()).update(map(_room, targets))
    return {owner: targets - {owner} for owner, targets in merged.items()}


def _room(name: str) -> str:
    return "adapters" if name in ADAPTERS else "cli" if name == "__main__" else name


def matrix(container: str) -> str:
    """A row per importer, a column per imported package; columns are numbered like the rows."""
    names, found = rooms(container), imports_of_rooms(container)
    width = max(map(len, names))
    head = f"{container:<{width + 5}}" + " ".join(f"{place:>2}" for place in range(1, len(names) + 1))
    rows = [
        f"{place:>2}  {name:<{width}} "
        + " ".join(f" {SELF if name == other else IMPORTS if other in found[name] else NOTHING}" for other in names)
        for place, name in enumerate(names, 1)
    ]
    return "\n".join([head, *rows])


def matrices() -> str:
    return "```text\n" + "\n\n".join(map(matrix, CONTRACTS)) + "\n```\n"
