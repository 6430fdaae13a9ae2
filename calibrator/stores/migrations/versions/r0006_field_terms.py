"""Stored documents and tables take the field's terms: visit -> stage, uncut -> before_cut, wishes -> commands, ...

Of documents only the keys of JSON objects change, at any depth; every value stays as it was. Samples are not touched.
A table is copied under its new name, so that its key, and on PostgreSQL its sequence, are named after it too.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
import structlog
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

NEW_NAMES = {
    "visits": "stages",
    "unheld": "level_lost",
    "since_look": "sweeps_since_upward_probe",
    "uncut": "before_cut",
    "told": "advertised",
    "desks": "caps",
    "heard": "clients",
}
KEYS = {  # table -> columns that name a row
    "sweeps": ("sweep_id",),
    "recommendations": ("backend", "version"),
    "commands": ("command_id",),
    "share_reports": ("instance",),
    "share_tables": ("backend", "per_replica"),
}


OLD_TABLES = {"activities": "sweep_statuses", "wishes": "commands", "memories": "checkpoints"}  # and new
NUMBERS = {"wishes": "wish_id", "commands": "command_id"}  # given anew in the same order, so that a sequence goes on
KINDS = ("memories", "checkpoints")  # with several documents a backend


def upgrade() -> None:
    for old, new in OLD_TABLES.items():
        _copy_table(old, new)
    _rename(NEW_NAMES)


def downgrade() -> None:
    _rename({new: old for old, new in NEW_NAMES.items()})
    for old, new in OLD_TABLES.items():
        _copy_table(new, old)


def _copy_table(old: str, new: str) -> None:
    keys = ["kind"] if new in KINDS else []
    order = NUMBERS.get(old, "backend")
    texts = ("backend", *keys, "document")
    columns: list[sa.Column[Any]] = [sa.Column(name, sa.Text(), nullable=False) for name in texts]
    if new in NUMBERS:
        columns.insert(0, sa.Column(NUMBERS[new], sa.Integer(), autoincrement=True, nullable=False))
    primary = [NUMBERS[new]] if new in NUMBERS else ["backend", *keys]
    op.create_table(new, *columns, sa.PrimaryKeyConstraint(*primary, name=op.f(f"pk_{new}")))
    copied = ", ".join(texts)
    op.execute(f"INSERT INTO {new} ({copied}) SELECT {copied} FROM {old} ORDER BY {order}")  # noqa: S608 - our names
    op.drop_table(old)


def _rename(names: dict[str, str]) -> None:
    changed = {table: count for table, keys in KEYS.items() if (count := _rename_in(table, keys, names))}
    if changed:
        structlog.get_logger().info("stored documents renamed", names=names, documents=changed)


def _rename_in(name: str, keys: tuple[str, ...], names: dict[str, str]) -> int:
    """How many documents had an old key. One row at a time: a sweep's document may have a megabyte."""
    connection, changed = op.get_bind(), 0
    table = sa.Table(name, sa.MetaData(), autoload_with=connection)
    for values in connection.execute(sa.select(*(table.c[key] for key in keys))).all():
        row = sa.and_(*(table.c[key] == value for key, value in zip(keys, values, strict=True)))
        before = json.loads(connection.execute(sa.select(table.c.document).where(row)).scalar_one())
        after = _renamed(before, names)
        if after != before:
            document = json.dumps(after, separators=(",", ":"), ensure_ascii=False)
            connection.execute(table.update().where(row).values(document=document))
            changed += 1
    return changed


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        renamed = {names.get(key, key): _renamed(item, names) for key, item in value.items()}
        if "objectives" in renamed and "version" in renamed and not renamed.keys().isdisjoint(("visits", "stages")):
            renamed["version"] = 2 if "stages" in renamed else 1  # of a history, which says by itself how to read it
        return renamed
    return [_renamed(item, names) for item in value] if isinstance(value, list) else value
