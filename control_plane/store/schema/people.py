"""People, their keys, what they did, and what they were answered."""

from sqlalchemy import (
    JSON,
    Column,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

from control_plane.store.schema.columns import BigId, Digest, Name, metadata, when

api_token = Table(
    "api_token",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", Name, nullable=False),
    Column("secret_sha256", Digest, nullable=False, unique=True),
    when("created_at"),
    when("expires_at", nullable=True),
    when("revoked_at", nullable=True),
)

audit = Table(
    "audit",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    when("at"),
    Column("actor", Name, nullable=False),
    Column("action", Name, nullable=False),
    Column("object_kind", String(32), nullable=False),
    Column("object_name", String(256), nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("before", JSON, nullable=True),
    Column("after", JSON, nullable=True),
    Index(None, "object_kind", "object_name"),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("actor", Name, nullable=False),
    Column("key", String(128), nullable=False),
    Column("request_sha256", Digest, nullable=False),
    Column("status", Integer, nullable=False),
    Column("response", LargeBinary, nullable=False),
    when("created_at"),
    PrimaryKeyConstraint("actor", "key"),
)
