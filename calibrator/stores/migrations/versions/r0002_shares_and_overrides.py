"""What each gateway was told it may have in flight, and the caps that people pinned."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "shares",
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("per_replica", sa.Boolean(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.Column("gap_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("backend", "per_replica", "client", name=op.f("pk_shares")),
    )
    op.create_table(
        "overrides",
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("backend", name=op.f("pk_overrides")),
    )
