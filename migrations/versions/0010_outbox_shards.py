"""The outbox in shards: relays hold shards, no longer rows, and an order names its device only."""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | None = None
depends_on: str | None = None

SHARDS = 64
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
# What waits are orders, with the device between 14 and 13 characters of their topic. For whom it
# is matters from now on; the payload is in `desired`.
_TO_ORDERS = """
UPDATE outbox SET kind = 'order', device_id = substr(topic, 15, length(topic) - 27)
WHERE kind = 'mqtt' AND retain AND topic LIKE 'flotilla/v1/d/%/down/desired'
"""
_TO_MESSAGES = """
UPDATE outbox SET kind = 'mqtt', payload =
    coalesce((SELECT envelope FROM desired WHERE desired.device_id = outbox.device_id), payload)
WHERE kind = 'order'
"""


def upgrade() -> None:
    # With defaults of the database: the code before this one goes on writing rows without them.
    for column in (
        sa.Column("device_id", sa.String(63), nullable=False, server_default=""),
        sa.Column("shard", sa.SmallInteger(), nullable=False, server_default="0"),
        sa.Column("rank", sa.SmallInteger(), nullable=False, server_default="1"),
    ):
        op.add_column("outbox", column)
    op.create_index(op.f("ix_outbox_shard_rank_id"), "outbox", ["shard", "rank", "id"])
    op.drop_index(op.f("ix_outbox_kind_id"), "outbox")
    op.drop_index(op.f("ix_outbox_topic_id"), "outbox")
    shards = op.create_table(
        "outbox_shard",
        sa.Column("shard", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("batch", sa.String(32), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("shard", name=op.f("pk_outbox_shard")),
    )
    free = {"owner": "", "batch": "", "until": LONG_AGO}
    op.bulk_insert(shards, [{"shard": number, **free} for number in range(SHARDS)])
    op.execute(_TO_ORDERS)


def downgrade() -> None:
    op.execute(_TO_MESSAGES)
    op.drop_table("outbox_shard")
    op.create_index(op.f("ix_outbox_topic_id"), "outbox", ["topic", "id"])
    op.create_index(op.f("ix_outbox_kind_id"), "outbox", ["kind", "id"])
    op.drop_index(op.f("ix_outbox_shard_rank_id"), "outbox")
    for name in ("rank", "shard", "device_id"):
        op.drop_column("outbox", name)
