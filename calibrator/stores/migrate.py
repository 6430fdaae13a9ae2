"""Bringing a database to this program's schema, or refusing it with the reason. Synchronous: call it in a thread.

| database | what happens |
|---|---|
| absent or empty | all revisions run, in one transaction: a kill leaves it empty, not half made |
| an older revision | the missing ones run, likewise |
| this revision | nothing |
| a revision we do not know | refused: a newer release wrote it, and going back could lose what it means |
| tables, but no revision | refused: it is not ours |
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from calibrator.errors import StoreError

SCRIPTS = Path(__file__).with_name("migrations")
MIGRATION_LIMIT_S = 60.0  # waiting for another instance's migration included


def head() -> str:
    """The revision of this program."""
    return str(ScriptDirectory.from_config(alembic_config()).get_current_head())


def revision(connection: Connection) -> str | None:
    """None: nothing was ever stored."""
    return MigrationContext.configure(connection).get_current_revision()


def is_current(connection: Connection, name: str, elsewhere: str) -> bool:
    """False: `migrate` has work. `name`, and `elsewhere` (what to change instead), are for messages. StoreError."""
    current = revision(connection)
    known = {script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()}
    if current is None and inspect(connection).get_table_names():
        raise StoreError(f"{_capital(name)} belongs to another program.", f"{_capital(elsewhere)}.")
    if current is not None and current not in known:
        raise StoreError(
            f"{_capital(name)} was written by a newer release (its schema is {current}, this program knows up to "
            f"{head()}).",
            f"Run that release, or {elsewhere}.",
        )
    return current == head()


def migrate(connection: Connection, name: str, elsewhere: str) -> None:
    """Upgrade inside the connection's transaction. Raises StoreError."""
    if is_current(connection, name, elsewhere):
        return
    command.upgrade(alembic_config(connection), "head")


def alembic_config(connection: Connection | None = None) -> Config:
    """`connection`: in whose transaction revisions run."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))  # a ConfigParser: % interpolates
    config.attributes["connection"] = connection
    return config


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
