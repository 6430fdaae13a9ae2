"""The README tells what the program does: settings, metrics, verbs and examples are checked against the code."""

from __future__ import annotations

import re

import pytest
import yaml
from support.readme import PARTS, README, generated
from typer.testing import CliRunner

from calibrator.cli.app import app
from calibrator.settings import backend_plans, parse_settings

TEXT = README.read_text()


@pytest.mark.parametrize("part", PARTS)
def test_generated_parts_are_there(part: str) -> None:
    assert f"<!-- generated: {part} -->" in TEXT


def test_generated_parts_match_the_code() -> None:
    assert generated(TEXT) == TEXT, "run `make docs`"


def test_the_example_configuration_is_accepted() -> None:
    first, *others = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    (plan,) = backend_plans(parse_settings(yaml.safe_load(first)), {"OPERATOR_TOKEN": "x"})
    assert plan.bounds.max_level == 128
    assert len(plan.workload.classes) == 2
    for example in others:
        assert backend_plans(parse_settings(yaml.safe_load(example)), {})


def test_every_verb_is_named_and_every_named_verb_exists() -> None:
    shown = CliRunner().invoke(app, ["--help"]).output
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    named = set(re.findall(r"`calibrator (\w+)", TEXT))
    assert verbs == named
    assert all(verb in shown for verb in verbs)


def test_every_option_of_sweep_that_the_readme_shows_exists() -> None:
    shown = CliRunner().invoke(app, ["sweep", "--help"], terminal_width=200).output
    (line,) = re.findall(r"calibrator sweep (--url .*)", TEXT)
    for option in re.findall(r"--[a-z-]+", line):
        assert option in shown
