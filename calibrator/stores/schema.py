"""The tables, the same in every dialect. `document` is the value as JSON; columns beside it exist to select, order and
refuse duplicates by. Moments are Unix seconds.

A change here needs a migration: a test compares this metadata with the migrated database.
"""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, Index, Integer, LargeBinary, MetaData, Table, Text

metadata = MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s"}  # names are stable
)

leases = Table(  # who may probe an engine group and publish for its backends; rows are never deleted
    "leases",
    metadata,
    Column("engine_group", Text, primary_key=True),
    Column("holder", Text, nullable=False),  # empty: released
    Column("epoch", Integer, nullable=False),  # grows with each take-over, also that by the same holder
    Column("expires_at", Float, nullable=False),  # by the database's clock
)

sweep_statuses = Table(  # the holder's running sweep, for the other instances
    "sweep_statuses",
    metadata,
    Column("backend", Text, primary_key=True),
    Column("document", Text, nullable=False),
)

commands = Table(  # what people asked of other instances, until the lease's holder takes it
    "commands",
    metadata,
    Column("command_id", Integer, primary_key=True, autoincrement=True),
    Column("backend", Text, nullable=False),
    Column("document", Text, nullable=False),
)

checkpoints = Table(  # state of guard, triggers and live traffic that outlives a restart
    "checkpoints",
    metadata,
    Column("backend", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("document", Text, nullable=False),
)

shares = Table(  # how much of which cap was advertised to whom, as far as it still counts
    "shares",
    metadata,
    Column("backend", Text, primary_key=True),
    Column("per_replica", Boolean, primary_key=True),
    Column("client", Text, primary_key=True),
    Column("requests", Integer, nullable=False),
    Column("gap_s", Float, nullable=False),
)

share_reports = Table(  # where several instances share a cap: who polls each of them
    "share_reports",
    metadata,
    Column("instance", Text, primary_key=True),
    Column("number", Integer, nullable=False),  # grows: one that arrives late replaces nothing
    Column("saved_at", Float, nullable=False),  # by the database's clock
    Column("document", Text, nullable=False),
)

share_tables = Table(  # and who may have how much of which cap, as the lease's holder divides it
    "share_tables",
    metadata,
    Column("backend", Text, primary_key=True),
    Column("per_replica", Boolean, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("document", Text, nullable=False),
)

overrides = Table(
    "overrides",
    metadata,
    Column("backend", Text, primary_key=True),
    Column("document", Text, nullable=False),
)

recommendations = Table(  # append-only: what was published, when, and under which epoch of the lease
    "recommendations",
    metadata,
    Column("backend", Text, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("published_at", Float, nullable=False),
    Column("epoch", Integer, nullable=False, server_default="0"),
    Column("document", Text, nullable=False),
)

samples = Table(  # the single requests of the newest sweeps, packed (core.records.sample_log)
    "samples",
    metadata,
    Column("sweep_id", Text, primary_key=True),
    Column("packed", LargeBinary, nullable=False),
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
