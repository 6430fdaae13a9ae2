"""Alembic's environment and revisions, inside the package: the service migrates its own file at start.

Does:      brings a database of an earlier release to today's schema.
Comes in:  a connection (`stores.migrate`).
Goes out:  changed tables; each revision says what it changed.
Imports:   alembic, SQLAlchemy, `stores.schema`.
"""
