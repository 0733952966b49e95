"""What leaves the database, and who does what alone."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Table,
    Text,
)

from control_plane.store.schema.columns import BigId, Name, metadata, when

# The one way out: rows are written in the transaction that caused them; the relays publish.
outbox = Table(
    "outbox",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("kind", String(16), nullable=False),  # order: `desired` has the payload | mqtt
    Column("topic", String(256), nullable=False),
    Column("device_id", String(63), nullable=False, default="", server_default=""),  # of an order
    Column("payload", LargeBinary, nullable=False),
    Column("retain", Boolean, nullable=False, default=False),
    when("created_at"),
    Column("shard", SmallInteger, nullable=False, server_default="0"),  # a hash of the topic
    Column("rank", SmallInteger, nullable=False, server_default="1"),  # the lower goes first
    # Of the release before, whose relays leased row by row; nobody reads them any more.
    Column("lease_owner", Name, nullable=False, default=""),
    when("lease_until", nullable=True),
    Index(None, "shard", "rank", "id"),
)

# Which relay publishes what: all topics of a shard are one relay's at a time.
outbox_shard = Table(
    "outbox_shard",
    metadata,
    Column("shard", SmallInteger, primary_key=True, autoincrement=False),
    Column("owner", Name, nullable=False),  # a relay, or empty
    Column("batch", String(32), nullable=False),  # of its relay's, given back together
    when("until"),  # after that it is free, whoever has it
)

# A named lease with a fencing epoch; economy, never safety.
lease = Table(
    "lease",
    metadata,
    Column("name", Name, primary_key=True),
    Column("holder", Name, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    when("until"),
)

# Where a sweep that goes round a table has come to; going over rows twice does no harm.
sweep_position = Table(
    "sweep_position",
    metadata,
    Column("name", Name, primary_key=True),
    Column("row_id", BigInteger, nullable=False),
)

# Who is told of what happens, beside the dashboard.
webhook = Table(
    "webhook",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("url", String(2048), nullable=False),
    Column("secret", String(128), nullable=False),  # signs what we send, so it is needed as it is
    Column("events", JSON, nullable=False),  # types; empty: all but the frequent ones
    Column("created_by", Name, nullable=False),
    when("created_at"),
    when("disabled_at", nullable=True),
    Column("disabled_why", Text, nullable=False, default=""),
)

# What waits for a webhook: written in the transaction that caused it, sent until it is accepted.
webhook_delivery = Table(
    "webhook_delivery",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("webhook_id", ForeignKey("webhook.id", ondelete="CASCADE"), nullable=False),
    Column("event_id", String(64), nullable=False),
    Column("type", Name, nullable=False),
    Column("body", LargeBinary, nullable=False),
    when("created_at"),
    Column("attempt", Integer, nullable=False, default=0),
    when("next_at", nullable=True),  # null: nothing more will be sent
    when("accepted_at", nullable=True),
    Column("answer", Text, nullable=False, default=""),  # the last one, or why there was none
    Index(None, "next_at"),
    Index(None, "webhook_id", "id"),
)
