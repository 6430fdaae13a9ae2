"""Leases, the epoch behind each recommendation, and what instances tell each other."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("engine_group", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("engine_group", name=op.f("pk_leases")),
    )
    op.create_table(
        "activities",
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("backend", name=op.f("pk_activities")),
    )
    op.create_table(
        "wishes",
        sa.Column("wish_id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("wish_id", name=op.f("pk_wishes")),
    )
    op.create_table(
        "memories",
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("backend", "kind", name=op.f("pk_memories")),
    )
    op.add_column("recommendations", sa.Column("epoch", sa.Integer(), server_default="0", nullable=False))
