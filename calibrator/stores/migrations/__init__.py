"""Alembic's environment and revisions, inside the package: the service migrates its own file at start."""
