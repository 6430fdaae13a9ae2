"""`calibrator db`, and a start on a database that cannot be used: what a person sees."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import yaml
from support.postgres_process import PostgresProcess
from support.service_process import run_calibrator
from typer.testing import CliRunner, Result

from calibrator.cli.app import app
from calibrator.errors import ExitCode
from calibrator.stores.migrate import head

BACKEND = {"url": "http://127.0.0.1:9/v1", "model": "m", "objectives": ["ttft p99 <= 500ms"], "fallback_cap": 8}
SECRET = "hush-7a"


def configured(folder: Path, **store: object) -> Path:
    path = folder / "calibrator.yaml"
    path.write_text(yaml.safe_dump({"store": store, "listen": {"port": 0}, "backends": {"chat": BACKEND}}))
    return path


def invoke(*arguments: str | Path, environ: dict[str, str] | None = None) -> Result:
    """A verb in this process, which is quicker than one of its own."""
    return CliRunner().invoke(app, [str(one) for one in arguments], env=environ or {})


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_upgrade_brings_a_store_up_to_date_and_current_shows_it(
    kind: str, tmp_path: Path, postgres_server: PostgresProcess
) -> None:
    environ = {"DATABASE": postgres_server.url(postgres_server.new_database())}
    place = {"path": str(tmp_path / "store.db")} if kind == "sqlite" else {"postgresql": {"env": "DATABASE"}}
    config = configured(tmp_path, **place)
    said = [invoke("db", verb, "-c", config, environ=environ) for verb in ("current", "upgrade", "current")]
    assert [one.exit_code for one in said] == [0, 0, 0], said
    name = f"The store {tmp_path / 'store.db'}" if kind == "sqlite" else "The database t"
    assert all(one.stdout.startswith(name) for one in said)
    assert said[0].stdout.endswith(f" is empty; this release uses {head()}.\n")
    assert said[1].stdout.endswith(f" was migrated from no schema to {head()}.\n")
    assert said[2].stdout.endswith(f" has schema {head()}; this release uses {head()}.\n")


def test_a_newer_schema_is_told_and_refused(tmp_path: Path) -> None:
    config = configured(tmp_path, path=str(tmp_path / "store.db"))
    invoke("db", "upgrade", "-c", config)
    connection = sqlite3.connect(tmp_path / "store.db")
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    assert f"has schema 9999; this release uses {head()}." in invoke("db", "current", "-c", config).stdout
    said = invoke("db", "upgrade", "-c", config)
    assert said.exit_code == ExitCode.UNEXPECTED
    assert "was written by a newer release" in said.stderr


@pytest.mark.parametrize(
    ("url", "words", "code"),
    [  # in a process of its own: `serve` sets the log up
        (f"mysql://u:{SECRET}@h/db", "store.postgresql refers to does not begin with postgresql://", 2),
        (f"postgresql://u:{SECRET}@127.0.0.1:1/db", "The database db at 127.0.0.1:1 cannot be reached", 1),
    ],
)
def test_a_start_without_its_database_is_one_sentence(tmp_path: Path, url: str, words: str, code: int) -> None:
    (tmp_path / "url").write_text(url)
    said = run_calibrator("serve", "-c", configured(tmp_path, postgresql={"file": str(tmp_path / "url")}))
    assert said.returncode == code
    (line,) = [line for line in said.stderr.splitlines() if not line.startswith("{")]
    assert line.startswith("calibrator: ")
    assert words in line
    assert SECRET not in said.stderr + said.stdout


def test_a_missing_secret_is_named_by_its_key(tmp_path: Path) -> None:
    said = invoke("check", "-c", configured(tmp_path, postgresql={"env": "NOT_THERE"}))
    assert said.exit_code == ExitCode.CONFIGURATION
    assert "store.postgresql: the environment variable NOT_THERE is not set." in said.stderr
