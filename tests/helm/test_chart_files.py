"""What is generated is up to date, the schema covers exactly the values, and the Dockerfile is clean."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from generate_chart import CHART, DEPLOY, REPOSITORY, comments, files
from support.helm_chart import helm, tool

import calibrator
from calibrator.settings import parse_settings

VALUES = (CHART / "values.yaml").read_text()
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
FREE = {"config", "commonLabels", "resources", "podSecurityContext", "securityContext"}  # explained as a whole


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_generated_files_are_up_to_date(path: Path) -> None:
    assert path.read_text() == files()[path], "make chart"


def test_no_copy_has_lost_its_source() -> None:
    copies = {path for path in (CHART / "files").rglob("*") if path.suffix in {".yaml", ".json"}}
    assert copies <= files().keys()
    assert any(path.parent.name == "dashboards" for path in copies)


def test_the_package_holds_what_is_installed_and_not_what_generates_it(tmp_path: Path) -> None:
    answer = helm("package", CHART, "--destination", tmp_path)
    assert answer.returncode == 0, answer.stderr
    (archive,) = tmp_path.glob("*.tgz")
    with tarfile.open(archive) as opened:
        names = {name.removeprefix("calibrator/") for name in opened.getnames()}
    assert {"Chart.yaml", "values.schema.json", "files/rules.yaml", "files/has_caps.py"} <= names
    assert {name for name in names if name.endswith((".py", ".pyc"))} == {"files/has_caps.py"}


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        explained_as_a_whole = name in FREE or name.rpartition(".")[2] in {"labels", "annotations"}
        if isinstance(value, dict) and value and not explained_as_a_whole:
            yield from leaves(value, f"{name}.")
        else:
            yield name


def test_every_value_has_a_comment() -> None:
    assert list(leaves(yaml.safe_load(VALUES))) == [key for key, _ in comments(VALUES)]


def test_the_schema_is_one_and_needs_nothing_from_elsewhere() -> None:
    command = [tool("check-jsonschema"), "--check-metaschema", str(CHART / "values.schema.json")]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "$ref" not in json.dumps(SCHEMA)


def test_the_schema_knows_exactly_the_values() -> None:
    def compare(values: Mapping[str, Any], schema: Mapping[str, Any], name: str) -> None:
        assert schema["additionalProperties"] is False, name
        assert values.keys() == schema["properties"].keys() - {"global"}, name  # Helm's own
        for key, value in values.items():
            if isinstance(value, dict) and key not in FREE and "properties" in schema["properties"][key]:
                compare(value, schema["properties"][key], f"{name}.{key}")

    compare(yaml.safe_load(VALUES), SCHEMA, "values")


@pytest.mark.parametrize("config", ["ray/calibrator.yaml", "compose/calibrator.yaml"])
def test_the_schema_accepts_every_key_that_the_program_writes(config: str) -> None:
    """As a user wrote it, and in full with all defaults."""
    written = yaml.safe_load((DEPLOY / config).read_text())
    in_full = parse_settings(written).model_dump(mode="json", by_alias=True, exclude_none=True)
    for values in (written, in_full):
        jsonschema.validate(values, SCHEMA["properties"]["config"])


def test_the_chart_installs_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == calibrator.__version__


def test_the_readme_shows_values_that_install(tmp_path: Path) -> None:
    shown = re.findall(r"```yaml\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL)
    assert len(shown) == 3
    files: list[Path | str] = []
    for number, text in enumerate(shown):  # the least, several replicas, secrets: each on top of the last
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        files += ["-f", path]
    answer = helm("template", "r", CHART, *files)
    assert answer.returncode == 0, answer.stderr
    assert "registry.example.com/calibrator:" in answer.stdout
    assert "file: /run/secrets/calibrator/engine-key" in answer.stdout


def test_every_ci_file_says_what_it_is_an_example_of() -> None:
    assert all(re.match(r"# [A-Z].*\.\n", path.read_text()) for path in (CHART / "ci").glob("*.yaml"))


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    command = [tool("hadolint"), "--no-color", str(DEPLOY / "Dockerfile")]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_hadolint_can_find_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN apt-get install python3\n")
    command = [tool("hadolint"), str(tmp_path / "Dockerfile")]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 1


def test_the_image_is_labelled_with_this_version() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert f"ARG VERSION={project['version']}\n" in (DEPLOY / "Dockerfile").read_text()
