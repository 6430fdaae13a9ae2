"""One cap divided over several instances: their reports, and the tables made of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "share_reports",
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("saved_at", sa.Float(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("instance", name=op.f("pk_share_reports")),
    )
    op.create_table(
        "share_tables",
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("per_replica", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("backend", "per_replica", name=op.f("pk_share_tables")),
    )


def downgrade() -> None:
    op.drop_table("share_tables")
    op.drop_table("share_reports")
