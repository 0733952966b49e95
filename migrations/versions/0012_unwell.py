"""The devices that need a look, in the order in which they were last seen: few of many."""

import sqlalchemy as sa
from alembic import op

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_index(
        "ix_device_unwell",
        "device",
        ["last_seen_at", "id"],
        postgresql_where=sa.text("NOT (state = 'active' AND online AND healthy)"),
        sqlite_where=sa.text("NOT (state = 'active' AND online = 1 AND healthy = 1)"),
    )


def downgrade() -> None:
    op.drop_index("ix_device_unwell", "device")
