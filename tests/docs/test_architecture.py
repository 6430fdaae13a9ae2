"""The architecture page shows what is there: the layers of the contract, the imports, the modules."""

from __future__ import annotations

import re

from support.import_matrix import PACKAGE, imports, layers
from support.readme import DESIGN

TEXT = DESIGN.read_text()
NAMES = [name for line in layers() for name in line]


def drawings() -> list[str]:
    return re.findall(r"```text\n(.*?)```", TEXT[TEXT.index("## 5.") : TEXT.index("## 6.")], re.DOTALL)


def test_the_drawing_has_every_layer_of_the_contract_in_its_order() -> None:
    drawn = [name for name in re.findall(r"[a-z_]+", drawings()[0]) if name in NAMES]
    assert list(dict.fromkeys(drawn)) == NAMES


def test_no_import_points_up() -> None:
    height = {name: level for level, line in enumerate(layers()) for name in line}
    for importer, targets in imports().items():
        for target in targets:
            assert height[importer] < height[target], f"{importer} imports {target}"


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
