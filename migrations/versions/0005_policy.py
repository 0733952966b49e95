"""A rollout's policy: approvals, priority, activation windows, and devices that changed."""

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None

_IN_FLIGHT = (
    "state IN ('ACTIVATING', 'BENCHMARKING', 'DOWNLOADING', 'OFFERED', 'SOAKING', 'STAGED')"
)


def upgrade() -> None:
    op.create_table(
        "approval",
        sa.Column("rollout", sa.String(128), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("person", sa.String(128), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("rollout", "wave", "person", name=op.f("pk_approval")),
        sa.ForeignKeyConstraint(
            ["rollout"], ["rollout.name"], name=op.f("fk_approval_rollout_rollout"),
            ondelete="CASCADE",
        ),
    )  # fmt: skip
    # With defaults of the database: the code before this one goes on writing rows without them.
    op.add_column(
        "rollout", sa.Column("priority", sa.Integer(), nullable=False, server_default="50")
    )
    edited = sa.Column("edited_by", sa.String(128), nullable=False, server_default="")
    op.add_column("rollout", edited)
    op.add_column("rollout", _when("facts_seen_at"))
    op.add_column("execution", _when("opens_at"))
    op.add_column("execution", _when("closes_at"))
    op.add_column("device", _when("facts_at"))
    op.create_index(op.f("ix_device_facts_at"), "device", ["facts_at"])
    where = sa.text(_IN_FLIGHT)
    op.create_index(
        "ix_execution_in_flight",
        "execution",
        ["device_id"],
        postgresql_where=where,
        sqlite_where=where,
    )


def downgrade() -> None:
    op.drop_index("ix_execution_in_flight", "execution")
    op.drop_index(op.f("ix_device_facts_at"), "device")
    op.drop_column("device", "facts_at")
    for name in ("closes_at", "opens_at"):
        op.drop_column("execution", name)
    for name in ("facts_seen_at", "edited_by", "priority"):
        op.drop_column("rollout", name)
    op.drop_table("approval")


def _when(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=True)
