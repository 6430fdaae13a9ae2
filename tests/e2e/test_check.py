"""`calibrator check`: what is in force, what a sweep costs, and every problem of a configuration in one run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.in_process import run_in_process
from support.service_process import run_calibrator, write_config

SECRET = "s3cret-of-the-engine"


def tree(**changes: object) -> dict[str, Any]:
    chat = {
        "url": "http://vllm.example:8000/v1",
        "model": "m",
        "objectives": ["ttft p99 <= 500ms"],
        "fallback_cap": 8,
        "api_key": {"env": "ENGINE_KEY"},
        "workload": {"classes": [{"prompt_tokens": 100, "output_tokens": 20}]},
        **changes,
    }
    return {"backends": {"chat": chat}}


def test_a_valid_configuration_is_explained_and_costed(tmp_path: Path) -> None:
    config = write_config(tmp_path, tree(budget={"requests": 1000, "requests_per_level": 0, "duration": "10m"}))
    done = run_calibrator("check", "--config", config, environ={"ENGINE_KEY": SECRET})
    assert (done.returncode, done.stderr) == (0, "")
    assert SECRET not in done.stdout
    in_force, cost = done.stdout.split("# Cost of a sweep")
    shown = yaml.safe_load(in_force)
    chat = shown["backends"]["chat"]
    assert chat["api_key"] == {"env": "ENGINE_KEY"}
    assert (chat["every"], chat["bounds"]) == ("6h", {"min": 1, "max": 512}), "defaults are shown too"
    assert "at most 1000;" in cost
    assert "at most 100000 prompt and 20000 output tokens" in cost
    assert "at most 10m every 6h" in cost
    assert not (tmp_path / "calibrator.db").exists(), "looking changes nothing"


def test_what_is_shown_is_a_configuration_itself(tmp_path: Path) -> None:
    config = write_config(tmp_path, tree())
    first = run_in_process("check", "--config", config, environ={"ENGINE_KEY": SECRET}).stdout
    config.write_text(first.split("# Cost of a sweep")[0])
    again = run_in_process("check", "--config", config, environ={"ENGINE_KEY": SECRET})
    assert (again.returncode, again.stdout) == (0, first)


def test_tokens_are_named_by_their_fingerprints(tmp_path: Path) -> None:
    token = "an-operator-token"
    config = write_config(tmp_path, tree() | {"auth": {"operator_tokens": [{"env": "OPERATOR"}]}})
    done = run_in_process("check", "--config", config, environ={"ENGINE_KEY": SECRET, "OPERATOR": token})
    assert done.returncode == 0
    assert f"auth.operator_tokens[0]: {hashlib.sha256(token.encode()).hexdigest()[:8]}\n" in done.stdout
    assert token not in done.stdout


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": {"requests": 40, "requests_per_level": 0}}, ("budget.requests", "to certify", "Allow ")),
        ({"objectives": ["ttft p99.9 <= 500ms"]}, ("budget.requests", "p99.9", "Allow ")),
        ({"objectives": ["ttft 99 <= 5ms"]}, ("objectives[0]", "ttft 99 <= 5ms")),
        ({"bounds": {"min": 9, "max": 3}}, ("bounds.min", "9 is above max 3")),
        ({"api_key": SECRET}, ("api_key", "must not be written in the configuration")),
        ({"api_key": {"env": "NOT_SET_ANYWHERE"}}, ("api_key", "NOT_SET_ANYWHERE", "not set")),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(
    changes: dict[str, object], words: tuple[str, ...], tmp_path: Path
) -> None:
    done = run_in_process("check", "--config", write_config(tmp_path, tree(**changes)), environ={"ENGINE_KEY": SECRET})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("calibrator: ")
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr
    for word in words:
        assert word in done.stderr


def test_every_problem_is_named_in_one_run(tmp_path: Path) -> None:
    wrong = tree(url="vllm:8000", fallback_cap=0, every="6", bounds={"minn": 1}) | {"listen": {"port": 99999}}
    done = run_in_process("check", "--config", write_config(tmp_path, wrong), environ={"ENGINE_KEY": SECRET})
    assert done.returncode == 2
    assert "5 problems" in done.stderr
    for key in ("url", "fallback_cap", "every", "bounds.minn"):
        assert f"backends.chat.{key}" in done.stderr
    assert "listen.port" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_missing_secret_is_named_in_one_run(tmp_path: Path) -> None:
    whole = tree() | {"auth": {"operator_tokens": [{"file": str(tmp_path / "none")}]}}
    done = run_in_process("check", "--config", write_config(tmp_path, whole))
    assert (done.returncode, done.stdout) == (2, "")
    assert "backends.chat.api_key" in done.stderr
    assert "auth.operator_tokens[0]" in done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, ("cannot be read",)), ("backends: [", ("line",)), ("- a\n", ("not a mapping",)), ("", ("backends",))],
)
def test_a_file_that_is_no_configuration_is_refused(text: str | None, words: tuple[str, ...], tmp_path: Path) -> None:
    config = tmp_path / "calibrator.yaml"
    if text is not None:
        config.write_text(text)
    done = run_in_process("check", "--config", config)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for word in (str(config), *words):
        assert word in done.stderr
