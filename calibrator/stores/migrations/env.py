"""Run by Alembic. The caller hands over its connection, in whose transaction every revision runs."""

from __future__ import annotations

from alembic import context

from calibrator.stores.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,  # SQLite has it, once BEGIN is explicit
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
