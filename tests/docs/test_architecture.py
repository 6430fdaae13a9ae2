"""The architecture page shows what is there: the layers of the contract, the imports, the modules."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from generate_docs import DESIGN
from import_matrix import CONTRACTS, PACKAGE, imports, layers, rooms

TEXT = DESIGN.read_text()
MOST_ROOMS, MOST_FILES = 12, 15
HEADINGS = ["Does", "Comes in", "Goes out", "Imports"]
NAMES = [name for line in layers() for name in line]


def drawings() -> list[str]:
    return re.findall(r"```text\n(.*?)```", TEXT[TEXT.index("## 5.") : TEXT.index("## 6.")], re.DOTALL)


def test_the_drawing_has_every_layer_of_the_contract_in_its_order() -> None:
    drawn = [name for name in re.findall(r"[a-z_]+", drawings()[0]) if name in NAMES]
    assert list(dict.fromkeys(drawn)) == NAMES


@pytest.mark.parametrize("container", CONTRACTS)
def test_no_import_points_up(container: str) -> None:
    height = {name: level for level, line in enumerate(layers(container)) for name in line}
    for importer, targets in imports(container).items():
        for target in targets:
            assert height[importer] < height[target], f"{importer} imports {target}"


@pytest.mark.parametrize("container", CONTRACTS)
def test_a_picture_can_be_taken_in_at_one_look(container: str) -> None:
    assert len(rooms(container)) <= MOST_ROOMS


@pytest.mark.parametrize(
    "package", sorted(path.parent for path in PACKAGE.rglob("__init__.py")), ids=lambda path: path.name
)
def test_a_package_says_what_it_does_what_it_takes_and_gives_and_what_it_may_import(package: Path) -> None:
    head = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    if package not in (PACKAGE, PACKAGE / "client"):  # what users import opens with how it is used
        assert re.findall(r"^(Does|Comes in|Goes out|Imports):", head, re.MULTILINE) == HEADINGS


def test_a_folder_holds_three_to_fifteen_files() -> None:
    counts = {folder: len(list(folder.glob("*.py"))) - 1 for folder in {path.parent for path in PACKAGE.rglob("*.py")}}
    assert {str(folder.relative_to(PACKAGE)): count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_the_tree_names_every_package_and_no_other() -> None:
    named = re.findall(r"^  (\w+)(?:/|\.py) ", drawings()[2], re.MULTILINE)
    there = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert set(named) == there - {"__init__", "__pycache__"}
    assert named == sorted(named, key=NAMES.index), "in the order of the layers"


def test_every_section_that_the_code_refers_to_exists() -> None:
    sections = set(re.findall(r"^## (\d+)\.", TEXT, re.MULTILINE))
    used = {
        number for path in PACKAGE.rglob("*.py") for number in re.findall(r"DESIGN,? section (\d+)", path.read_text())
    }
    assert used
    assert used <= sections
