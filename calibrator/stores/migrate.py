"""Bringing a database file to this program's schema, or refusing it with the reason. Synchronous: call it in a thread.

| file | what happens |
|---|---|
| absent or empty | all revisions run, in one transaction: a kill leaves the file empty, not half made |
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


def migrate(connection: Connection, path: Path) -> None:
    """Upgrade inside the connection's transaction; `path` is for messages. Raises StoreError."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))  # a ConfigParser: % interpolates
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    if current == scripts.get_current_head():
        return
    if current is None and inspect(connection).get_table_names():
        raise StoreError(
            f"The database {path} belongs to another program.", "Set store.path to a file of calibrator's own."
        )
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        raise StoreError(
            f"The store {path} was written by a newer release (its schema is {current}, this program knows up to "
            f"{scripts.get_current_head()}).",
            "Run that release, or set store.path to a new file.",
        )
    command.upgrade(config, "head")
