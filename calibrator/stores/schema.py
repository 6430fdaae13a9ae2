"""The tables. `document` is the value as JSON; columns beside it exist to select, order and refuse duplicates by.

A change here needs a migration: a test compares this metadata with the migrated file.
"""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, Index, Integer, MetaData, Table, Text

metadata = MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s"}  # names are stable
)

shares = Table(  # who was told how much of which cap, as far as it counts still
    "shares",
    metadata,
    Column("backend", Text, primary_key=True),
    Column("per_replica", Boolean, primary_key=True),
    Column("client", Text, primary_key=True),
    Column("requests", Integer, nullable=False),
    Column("gap_s", Float, nullable=False),
)

overrides = Table(
    "overrides",
    metadata,
    Column("backend", Text, primary_key=True),
    Column("document", Text, nullable=False),
)

recommendations = Table(  # append-only: what was published, and when
    "recommendations",
    metadata,
    Column("backend", Text, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("published_at", Float, nullable=False),
    Column("document", Text, nullable=False),
)

sweeps = Table(
    "sweeps",
    metadata,
    Column("sweep_id", Text, primary_key=True),
    Column("backend", Text, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("outcome", Text),  # null while the sweep runs
    Column("document", Text, nullable=False),
    Index(None, "backend", "started_at"),
)
