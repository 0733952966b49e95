"""Indexes for what is forgotten: counted reports by age, messages that a newer one replaces."""

from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_index(op.f("ix_report_seen_at"), "report_seen", ["at"])
    op.create_index(op.f("ix_outbox_topic_id"), "outbox", ["topic", "id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_outbox_topic_id"), "outbox")
    op.drop_index(op.f("ix_report_seen_at"), "report_seen")
