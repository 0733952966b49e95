"""People, devices, what they should run and what they report, and the plumbing."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite counts up only plain INTEGER

# A table goes before those that it refers to.
_TABLES = (
    "lease",
    "outbox",
    "report_seen",
    "desired",
    "device_history",
    "device_label",
    "device",
    "enrollment_token",
    "idempotency",
    "audit",
    "api_token",
)


def _when(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "api_token",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        _when("created_at"),
        _when("expires_at", nullable=True),
        _when("revoked_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_token")),
        sa.UniqueConstraint("secret_sha256", name=op.f("uq_api_token_secret_sha256")),
    )
    op.create_table(
        "audit",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        _when("at"),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("action", sa.String(128), nullable=False),
        sa.Column("object_kind", sa.String(32), nullable=False),
        sa.Column("object_name", sa.String(256), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("before", sa.JSON, nullable=True),
        sa.Column("after", sa.JSON, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index(
        op.f("ix_audit_object_kind_object_name"), "audit", ["object_kind", "object_name"]
    )
    op.create_table(
        "idempotency",
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("key", sa.String(128), nullable=False),
        sa.Column("request_sha256", sa.String(64), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("response", sa.LargeBinary, nullable=False),
        _when("created_at"),
        sa.PrimaryKeyConstraint("actor", "key", name=op.f("pk_idempotency")),
    )
    op.create_table(
        "enrollment_token",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("uses_left", sa.Integer, nullable=False),
        _when("created_at"),
        _when("expires_at"),
        sa.CheckConstraint("uses_left >= 0", name=op.f("ck_enrollment_token_uses_left")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_enrollment_token")),
    )
    op.create_table(
        "device",
        sa.Column("id", sa.String(63), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("blueprint", sa.String(128), nullable=True),
        sa.Column("hardware", sa.JSON, nullable=False),
        sa.Column("agent_version", sa.String(32), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("certificate_serial", sa.String(64), nullable=False),
        _when("enrolled_at"),
        sa.Column("online", sa.Boolean, nullable=False),
        sa.Column("connection", sa.BigInteger, nullable=False),
        _when("last_seen_at", nullable=True),
        sa.Column("boot", sa.BigInteger, nullable=False),
        sa.Column("state_seq", sa.BigInteger, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("last_known_good", sa.String(64), nullable=False),
        sa.Column("healthy", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device")),
        sa.UniqueConstraint("secret_sha256", name=op.f("uq_device_secret_sha256")),
    )
    op.create_index(op.f("ix_device_blueprint"), "device", ["blueprint"])
    op.create_table(
        "device_label",
        sa.Column("device_id", sa.String(63), nullable=False),
        sa.Column("key", sa.String(63), nullable=False),
        sa.Column("value", sa.String(128), nullable=False),
        sa.ForeignKeyConstraint(
            ["device_id"],
            ["device.id"],
            name=op.f("fk_device_label_device_id_device"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("device_id", "key", name=op.f("pk_device_label")),
    )
    op.create_index(op.f("ix_device_label_key_value"), "device_label", ["key", "value"])
    op.create_table(
        "device_history",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("device_id", sa.String(63), nullable=False),
        _when("at"),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("version", sa.String(128), nullable=False),
        sa.Column("execution_id", sa.String(36), nullable=False),
        sa.Column("why", sa.String(128), nullable=False),
        sa.ForeignKeyConstraint(
            ["device_id"],
            ["device.id"],
            name=op.f("fk_device_history_device_id_device"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device_history")),
    )
    op.create_index(op.f("ix_device_history_device_id"), "device_history", ["device_id"])
    op.create_table(
        "desired",
        sa.Column("device_id", sa.String(63), nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("rollout", sa.String(128), nullable=False),
        sa.Column("execution_id", sa.String(36), nullable=False),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
        _when("issued_at"),
        sa.ForeignKeyConstraint(
            ["device_id"],
            ["device.id"],
            name=op.f("fk_desired_device_id_device"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_desired")),
    )
    op.create_table(
        "report_seen",
        sa.Column("device_id", sa.String(63), nullable=False),
        sa.Column("boot", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        _when("at"),
        sa.PrimaryKeyConstraint("device_id", "boot", "seq", name=op.f("pk_report_seen")),
    )
    op.create_table(
        "outbox",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("topic", sa.String(256), nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("retain", sa.Boolean, nullable=False),
        _when("created_at"),
        sa.Column("lease_owner", sa.String(128), nullable=False),
        _when("lease_until", nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
    )
    op.create_index(op.f("ix_outbox_kind_id"), "outbox", ["kind", "id"])
    op.create_table(
        "lease",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("holder", sa.String(128), nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        _when("until"),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_lease")),
    )


def downgrade() -> None:
    for table in _TABLES:
        op.drop_table(table)
