"""The documentation tells what the program does: settings, metrics, alerts, verbs, links, examples against the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from generate_docs import DOCS, PARTS, README, ROOT, generated, pages
from typer.testing import CliRunner

from calibrator.cli.app import app
from calibrator.settings import backend_plans, parse_settings

TEXT = README.read_text()
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "calibrator" / "DESIGN.md", *sorted((ROOT / "deploy").rglob("*.md"))]
READABLE_LINES = 320


def test_every_generated_part_stands_in_the_documentation() -> None:
    found = {part for page in pages() for part in re.findall(r"<!-- generated: (\w+) -->", page.read_text())}
    assert found == set(PARTS)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_generated_parts_match_the_code(page: Path) -> None:
    assert generated(page.read_text()) == page.read_text(), "run `make docs`"


def test_the_readme_is_read_in_one_go() -> None:
    assert len(TEXT.splitlines()) <= READABLE_LINES, "long references belong to deploy/docs"


def test_the_example_configurations_are_accepted() -> None:
    (first,) = _configurations(README)
    (plan,) = backend_plans(parse_settings(first), {"OPERATOR_TOKEN": "an-operator-token"})
    assert plan.bounds.max_level == 128
    assert len(plan.workload.classes) == 2
    others = [example for page in sorted(DOCS.glob("*.md")) for example in _configurations(page)]
    assert others
    environ = {"OPERATOR_TOKEN": "an-operator-token", "AZURE_KEY": "k", "ORGANIZATION": "o"}
    for example in others:
        assert backend_plans(parse_settings(example), environ)


def _configurations(page: Path) -> list[dict[str, object]]:
    blocks = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", page.read_text(), flags=re.DOTALL))
    return [block for block in blocks if "backends" in block]


def test_every_verb_is_named_and_every_named_verb_exists() -> None:
    shown = CliRunner().invoke(app, ["--help"]).output
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    verbs |= {group.name for group in app.registered_groups if group.name}
    named = set(re.findall(r"`calibrator (\w+)", TEXT))
    assert verbs == named
    assert all(verb in shown for verb in verbs)


# ---------------------------------------------------------------------------------------------------------------- links
def _links(page: Path) -> Iterator[tuple[str, str]]:
    """(file, anchor) of every relative link and picture."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            file, _, anchor = target.partition("#")
            yield file, anchor


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for file, anchor in _links(page):
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), file
        assert not anchor or anchor in _anchors(target), f"{file}#{anchor}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    ahead = [README]
    while ahead:
        page = ahead.pop()
        seen.add(page)
        targets = {(page.parent / file).resolve() for file, _ in _links(page) if file.endswith(".md")}
        ahead += targets - seen
    assert {page.resolve() for page in PAGES} <= seen
