"""The command line repeats no secret either: of an address, of a key that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from calibrator.cli.app import app

SECRET = "c4nary-typed-here"
SWEEP = ["sweep", "--model", "m", "--objective", "ttft p99 <= 500ms"]
URL = ["--url", "http://127.0.0.1:1/v1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*SWEEP, "--url", f"http://user:{SECRET}@127.0.0.1:1/v1"], "--url contains credentials"),
        ([*SWEEP, "--url", f"ftp://user:{SECRET}@127.0.0.1:1/v1"], "--url contains credentials"),
        ([*SWEEP, *URL, "--metrics-url", f"http://user:{SECRET}@127.0.0.1:1/m"], "--metrics-url contains credentials"),
        ([*SWEEP, *URL, "--api-key-file", "{key}"], "not valid in a header"),
        ([*SWEEP, *URL, "--api-key-env", "KEY"], "not valid in a header"),
        (["report", f"http://user:{SECRET}@127.0.0.1:1/v1/x"], "contains credentials"),
    ],
)
def test_a_secret_that_is_refused_is_not_repeated(arguments: list[str], words: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(f"{SECRET}\nand more")
    given = [argument.replace("{key}", str(key)) for argument in arguments]
    done = CliRunner().invoke(app, given, env={"KEY": f"{SECRET}\u00a7"})
    assert done.exit_code == 2
    assert SECRET not in done.output
    assert words in done.output
