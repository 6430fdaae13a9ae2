"""One file a revision, in order; each says in its first line what changes.

Does:      `upgrade` and `downgrade`.
Comes in:  Alembic's connection.
Goes out:  a changed schema, or renamed words in stored documents.
Imports:   alembic, SQLAlchemy; never the program's own values, which later releases change.
"""
