"""Every block of the documentation is run, or read by the program that it is for; what cannot be is marked and counted.

Commands run in page order in one folder per page, against a simulated engine and a service that observes. Their texts
stay what a reader would type; what has to differ here is in `Site.adapted`: addresses, the model, and the requests of
sweeps, whose searches ask for a P90, so that they are short.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from generate_docs import README, ROOT
from starlette.applications import Starlette
from support.documentation import EVERY_BLOCK, PAGES, Block
from support.require import require
from support.service_process import serving, simulated_engine, write_config

from calibrator.settings import backend_plans, parse_settings

TOKEN = "documentation-" + "0123456789abcdef" * 2
RUN = {"sh", "console"}
READ = {"yaml", "json", "python"}
FREE = {"text"}  # words, pictures: nothing to run
# How many blocks of a page may stay unrun. Raise a number only with a reason in the page that a reader accepts.
UNRUN = {
    "README.md": 3,
    "CONTRIBUTING.md": 2,
    "deploy/docs/http.md": 1,
    "deploy/docs/measurements.md": 1,
    "deploy/gateways/nginx.md": 2,
    "helm/calibrator/README.md": 1,
}
SHORT_SEARCH = " --max 4 --requests 100"
FRAGMENT_BASE = {"backends": {"chat": {"url": "http://h/v1", "model": "m", "objectives": ["ttft p99 <= 1s"]}}}


@dataclass(slots=True)
class Site:
    """Where the commands run."""

    folder: Path
    engine: str  # host:port
    service: str
    environ: dict[str, str] = field(default_factory=dict)

    def adapted(self, commands: str) -> str:
        """One command a line, as they run here."""
        substitutions = (
            ("127.0.0.1:8000", self.engine),
            ("127.0.0.1:8300", self.service),
            ("--model my-model", "--model simulated"),
        )
        text = commands.replace("\\\n", " ")
        for written, here in substitutions:
            text = text.replace(written, here)
        text = re.sub(r"--requests \d+", "--requests 24", text)
        return "\n".join(
            line.replace(" p99 ", " p90 ") + SHORT_SEARCH if " sweep " in line and "--levels" not in line else line
            for line in text.splitlines()
        )

    def folder_of(self, page: Path) -> Path:
        """With what a reader has there: the environment, and the files that the page shows by name."""
        folder = self.folder / str(page.relative_to(ROOT)).replace("/", "-")
        if not folder.exists():
            (folder / ".venv").mkdir(parents=True)
            (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
            for block in EVERY_BLOCK:
                name = re.match(r"# ([\w.-]+\.yaml)\n", block.text)
                if block.page in {page, README} and name is not None:
                    (folder / name[1]).write_text(block.text)
        return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("documentation")
    with simulated_engine("seed") as engine:
        backend = {
            "url": engine.api_url,
            "model": "simulated",
            "objectives": ["ttft p99 <= 300ms"],
            "fallback_cap": 8,
            "mode": "observe",
            "engine_group": "one",
        }
        tree = {"auth": {"operator_tokens": [{"env": "OPERATOR_TOKEN"}]}, "load": {"selftest": False}}
        config = write_config(folder, {**tree, "backends": {"chat": backend, "llm": backend}})
        with serving(config, environ={"OPERATOR_TOKEN": TOKEN}) as service:
            yield Site(folder, engine.root_url.removeprefix("http://"), service.http.base_url.netloc.decode())


def chosen(languages: set[str]) -> list[Any]:
    return [
        pytest.param(block, id=str(block))
        for block in EVERY_BLOCK
        if block.language in languages and block.reason is None
    ]


@pytest.mark.parametrize("block", chosen(RUN))
def test_commands_run(block: Block, site: Site) -> None:
    for program in ("curl", "jq"):
        if program in block.text:
            found = subprocess.run(["bash", "-c", f"command -v {program}"], capture_output=True, check=False)
            require(program, found=found.returncode == 0, remedy="make programs")
    folder, path = site.folder_of(block.page), f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", site.adapted(block.commands)],
        cwd=folder,
        env={**os.environ, "PATH": path, "OPERATOR_TOKEN": TOKEN, "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "error" not in done.stderr.lower(), done.stderr


@pytest.mark.parametrize("block", chosen(READ))
def test_files_are_accepted(block: Block) -> None:
    match block.language:
        case "json":
            json.loads(block.text)
        case "python":
            names = {"app": Starlette(), "token": "t"}  # what the page says is there
            exec(compile(block.text, str(block), "exec"), names)  # noqa: S102 - our own page
        case _:
            accept_yaml(yaml.safe_load(block.text), is_of_chart=block.page.is_relative_to(ROOT / "helm"))


def accept_yaml(document: dict[str, Any], *, is_of_chart: bool) -> None:
    """A configuration goes through the settings; of what is for other programs the shape alone is looked at."""
    if is_of_chart:  # rendered and installed by tests/helm
        assert set(document) <= set(yaml.safe_load((ROOT / "helm/calibrator/values.yaml").read_text()))
    elif "apiVersion" in document:
        assert document["kind"]
        assert document["metadata"]["name"]
    elif "plugins" not in document:  # Kong's, APISIX's
        whole = document if "backends" in document else {**FRAGMENT_BASE, **document}
        whole["backends"] = {name: {"fallback_cap": 1, **one} for name, one in whole["backends"].items()}
        environ = {
            "OPERATOR_TOKEN": TOKEN,
            "DATABASE_URL": "postgresql://u:p@h/n",
            "AZURE_KEY": "k",
            "ORGANIZATION": "o",
        }
        assert backend_plans(parse_settings(whole), environ)


def test_every_block_says_what_it_is() -> None:
    odd = [str(block) for block in EVERY_BLOCK if block.language not in RUN | READ | FREE | {"nginx"}]
    assert odd == [], "name a language after the fence"


def test_what_is_not_run_has_a_reason_and_does_not_grow_unnoticed() -> None:
    left = [block for block in EVERY_BLOCK if block.reason is not None]
    assert [str(block) for block in left if len(block.reason or "") < 15] == []
    found = Counter(str(block.page.relative_to(ROOT)) for block in left)
    assert dict(found) == UNRUN, "a block less is run than before: run it, or count it in UNRUN"
    unread = [block for block in EVERY_BLOCK if block.language == "nginx" and block.reason is None]
    assert unread == []


def test_every_make_target_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target
        for page in PAGES
        for target in re.findall(r"(?:^|`)make (?:[A-Z]+=\S+ )?([a-z-]+)", page.read_text(), re.MULTILINE)
    }
    assert len(named) > 5
    assert named <= targets
