"""Help teaches, errors have a remedy, and a shell completes what can be typed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from calibrator.cli.app import app

VERBS = ["sweep", "demo", "report", "serve", "check", "selftest", "simulate"]
PROGRAM = Path(sys.executable).with_name("calibrator")


def shown(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments, "--help"], terminal_width=200, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.output


def test_the_first_help_groups_the_verbs_and_says_where_to_begin() -> None:
    text = shown()
    assert all(re.search(rf"\b{verb}\b", text) for verb in VERBS)
    assert "Begin with: calibrator demo" in text
    assert "130 interrupted" in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example_that_its_options_allow(verb: str) -> None:
    text = shown(verb)
    examples = re.findall(rf"calibrator {verb} [^\n│]+", text.split("Example")[1])
    assert examples
    options = set(re.findall(r"--[a-z-]+", text.split("Example")[0]))
    for example in examples:
        assert set(re.findall(r"--[a-z-]+", example)) <= options, example
        assert shlex.split(example)


def test_the_options_of_sweep_stand_in_groups() -> None:
    text = shown("sweep")
    order = [text.index(f" {name} ") for name in ("The backend", "Search and budgets", "What the probes look like")]
    assert order == sorted(order)
    assert text.index("--overload") > text.index("Search and budgets")


def test_help_imports_neither_numerics_nor_a_server() -> None:
    """It is typed, and completed in shells, far more often than a sweep is run."""
    heavy = {"numpy", "scipy", "pydantic", "sqlalchemy", "httpx", "starlette"}
    code = f"import sys, calibrator.cli.app; print(sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sweep", "--model", "m", "--objective", "x"), ("Missing option '--url'", "See calibrator sweep --help.")),
        (("sweeep",), ("No such command 'sweeep'", "See calibrator --help.")),
        (("demo", "--port", "many"), ("'--port'", "See calibrator demo --help.")),
        (("report",), ("Missing argument", "See calibrator report --help.")),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_where_to_look(
    arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("calibrator: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr


@pytest.mark.parametrize(("verb", "words"), [((), "Begin with: calibrator demo"), (("db",), "upgrade")])
def test_no_arguments_show_the_help(verb: tuple[str, ...], words: str) -> None:
    done = run(*verb)
    assert done.returncode == 2
    assert words in done.stderr + done.stdout
    assert "calibrator: " not in done.stderr


# ----------------------------------------------------------------------------------------------------------- completion
def completed(line: str, tmp_path: Path) -> list[str]:
    """What bash would offer after `line`, with the script that `calibrator --show-completion` prints."""
    script = """
        eval "$(calibrator --show-completion bash 2>/dev/null || calibrator --show-completion)"
        complete -p calibrator >/dev/null || exit 9
        COMP_LINE="$1"; read -ra COMP_WORDS <<< "$1"; [[ "$1" == *" " ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _calibrator_completion calibrator
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    environment = {**os.environ, "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", line],
        capture_output=True, text=True, timeout=60, check=True, env=environment,
    )  # fmt: skip
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("calibrator sw", ["sweep"]),
        ("calibrator sweep --prompt-t", ["--prompt-tokens"]),
        ("calibrator report x.json --format ", ["html", "md", "json"]),
        ("calibrator sweep --burst ", ["off", "report", "enforce"]),
    ],
)
def test_bash_completes_verbs_options_and_values(line: str, offered: list[str], tmp_path: Path) -> None:
    assert completed(line, tmp_path) == offered


def test_the_completion_can_be_installed(tmp_path: Path) -> None:
    """As a user does it: from a shell of the kind that is asked for."""
    environment = {**os.environ, "HOME": str(tmp_path)}
    script = f"{shlex.quote(str(PROGRAM))} --install-completion; true"  # not the last command: bash would exec it
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert "bash completion installed" in done.stdout, (done.stdout, done.stderr)
    assert any("calibrator" in file.read_text() for file in tmp_path.rglob("*") if file.is_file())
