"""`calibrator db`: the schema of the database in a configuration."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from calibrator.settings import load_settings
from calibrator.wiring.stores import make_database, newest_schema


async def current(config: Path) -> int:
    """Show the stored schema version and that of this release; changes nothing. Raises StoreError."""
    database = make_database(load_settings(config, os.environ), os.environ)
    found = await database.revision()
    place = database.name[0].upper() + database.name[1:]
    state = "is empty" if found is None else f"has schema {found}"
    _print(f"{place} {state}; this release uses {newest_schema()}.")
    return 0


async def upgrade(config: Path) -> int:
    """Migrate the database to this release's schema, as a start would. Raises StoreError."""
    database = make_database(load_settings(config, os.environ), os.environ)
    found = await database.revision()
    await database.open()
    await database.close()
    place = database.name[0].upper() + database.name[1:]
    if found == newest_schema():
        _print(f"{place} already has schema {found}.")
    else:
        _print(f"{place} was migrated from {'no schema' if found is None else f'schema {found}'} to {newest_schema()}.")
    return 0


def _print(text: str) -> None:
    Console(highlight=False, soft_wrap=True).print(text, markup=False)
