"""Devices: identity, what they should run, what they said."""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    String,
    Table,
    not_,
)

from control_plane.store.schema.columns import BigId, Digest, Name, metadata, when


def _rare(name: str, condition: ColumnElement[bool], *columns: Column[Any]) -> None:
    """Index only the rows for which the condition holds."""
    Index(name, *columns, postgresql_where=condition, sqlite_where=condition)


enrollment_token = Table(
    "enrollment_token",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("secret_sha256", Digest, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("uses_left", Integer, nullable=False),
    when("created_at"),
    when("expires_at"),
    CheckConstraint("uses_left >= 0", name="uses_left"),
)

device = Table(
    "device",
    metadata,
    Column("id", String(63), primary_key=True),
    Column("state", String(16), nullable=False),  # active | quarantined
    Column("blueprint", Name, nullable=True),
    Column("hardware", JSON, nullable=False),
    Column("agent_version", String(32), nullable=False, default=""),
    Column("secret_sha256", Digest, nullable=False, unique=True),
    Column("certificate_serial", String(64), nullable=False),
    when("enrolled_at"),
    when("facts_at", nullable=True),  # when labels, hardware or blueprint changed last
    # presence
    Column("online", Boolean, nullable=False, default=False),
    Column("connection", BigInteger, nullable=False, default=0),
    when("last_seen_at", nullable=True),
    # reported: the newest state document, by (boot, seq)
    Column("boot", BigInteger, nullable=False, default=0),
    Column("state_seq", BigInteger, nullable=False, default=0),
    Column("generation", BigInteger, nullable=False, default=0),
    Column("digest", Digest, nullable=False, default=""),
    Column("last_known_good", Digest, nullable=False, default=""),
    Column("healthy", Boolean, nullable=False, default=True),
    # The orders of the device list, each with the id behind it: a page is a stretch of an index.
    Index(None, "blueprint", "id"),
    Index(None, "digest", "id"),
    Index(None, "last_seen_at", "id"),
    Index(None, "facts_at"),
)
# The few that need a look, and those that may have fallen silent.
_rare("ix_device_offline", ~device.c.online, device.c.id)
_rare("ix_device_unhealthy", ~device.c.healthy, device.c.id)
_rare("ix_device_inactive", device.c.state != "active", device.c.id)
_rare("ix_device_online_seen", device.c.online, device.c.last_seen_at)
# Those that are not well are the longest silent: in the order of the rest they come last.
_well = (device.c.state == "active") & device.c.online & device.c.healthy
_rare("ix_device_unwell", not_(_well), device.c.last_seen_at, device.c.id)

device_label = Table(
    "device_label",
    metadata,
    Column("device_id", ForeignKey("device.id", ondelete="CASCADE"), nullable=False),
    Column("key", String(63), nullable=False),
    Column("value", String(128), nullable=False),
    PrimaryKeyConstraint("device_id", "key"),
    Index(None, "key", "value", "device_id"),
)

# How many devices have each value of a facet: state, health, online, blueprint, digest, site.
fleet_count = Table(
    "fleet_count",
    metadata,
    Column("facet", String(16), nullable=False),
    Column("value", String(128), nullable=False),
    Column("n", BigInteger, nullable=False),
    PrimaryKeyConstraint("facet", "value"),
)

# What a transaction changed of `fleet_count`: appended, so that no two of them wait for one row,
# and folded in by a sweep.
fleet_delta = Table(
    "fleet_delta",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("facet", String(16), nullable=False),
    Column("value", String(128), nullable=False),
    Column("n", BigInteger, nullable=False),
)

device_history = Table(
    "device_history",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("device_id", String(63), nullable=False),  # no foreign key: as in `execution`
    when("at"),
    Column("kind", String(32), nullable=False),  # active | state | enrolled | quarantined
    Column("digest", Digest, nullable=False, default=""),
    Column("version", Name, nullable=False, default=""),
    Column("execution_id", String(36), nullable=False, default=""),
    Column("why", String(128), nullable=False, default=""),
    Index(None, "device_id", "id"),
)

# What a device should run: one row a device, generation only grows.
desired = Table(
    "desired",
    metadata,
    Column("device_id", ForeignKey("device.id", ondelete="CASCADE"), primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("action", String(16), nullable=False),
    Column("digest", Digest, nullable=False, default=""),
    Column("rollout", Name, nullable=False, default=""),
    Column("execution_id", String(36), nullable=False, default=""),
    Column("envelope", LargeBinary, nullable=False),
    when("issued_at"),
)

# A report counts once: its (device, boot, seq) is here from the transaction that applied it.
report_seen = Table(
    "report_seen",
    metadata,
    Column("device_id", String(63), nullable=False),
    Column("boot", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    when("at"),
    PrimaryKeyConstraint("device_id", "boot", "seq"),
    Index(None, "at"),
)
