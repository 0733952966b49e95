"""Rollouts, executions, measurements and decisions."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite counts up only plain INTEGER

# A table goes before those that it refers to.
_TABLES = (
    "decision",
    "bench_tally",
    "bench_metric",
    "bench",
    "tally",
    "execution_event",
    "execution",
    "rollout",
)


def _when(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "rollout",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("version", sa.String(128), nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("state", sa.String(24), nullable=False),
        sa.Column("state_reason", sa.Text, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("wave", sa.Integer, nullable=False),
        sa.Column("machine", sa.JSON, nullable=False),
        sa.Column("plan", sa.JSON, nullable=False),
        sa.Column("created_by", sa.String(128), nullable=False),
        _when("created_at"),
        _when("started_at", nullable=True),
        _when("ended_at", nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_rollout")),
    )
    op.create_index(op.f("ix_rollout_state"), "rollout", ["state"])
    op.create_table(
        "execution",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("rollout", sa.String(128), nullable=False),
        sa.Column("device_id", sa.String(63), nullable=False),
        sa.Column("wave", sa.Integer, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("blueprint", sa.String(128), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("revert_generation", sa.BigInteger, nullable=False),
        sa.Column("reverted", sa.Boolean, nullable=False),
        _when("offered_at", nullable=True),
        _when("updated_at"),
        sa.ForeignKeyConstraint(
            ["device_id"],
            ["device.id"],
            name=op.f("fk_execution_device_id_device"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["rollout"],
            ["rollout.name"],
            name=op.f("fk_execution_rollout_rollout"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_execution")),
        sa.UniqueConstraint("rollout", "device_id", name=op.f("uq_execution_rollout_device_id")),
    )
    op.create_index(op.f("ix_execution_device_id"), "execution", ["device_id"])
    op.create_index(
        op.f("ix_execution_rollout_wave_state_position"),
        "execution",
        ["rollout", "wave", "state", "position"],
    )
    op.create_table(
        "execution_event",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("execution_id", sa.String(36), nullable=False),
        _when("at"),
        sa.Column("before", sa.String(16), nullable=False),
        sa.Column("after", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(
            ["execution_id"],
            ["execution.id"],
            name=op.f("fk_execution_event_execution_id_execution"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_execution_event")),
    )
    op.create_index(
        op.f("ix_execution_event_execution_id_id"), "execution_event", ["execution_id", "id"]
    )
    op.create_table(
        "tally",
        sa.Column("rollout", sa.String(128), nullable=False),
        sa.Column("wave", sa.Integer, nullable=False),
        sa.Column("blueprint", sa.String(128), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.CheckConstraint("n >= 0", name=op.f("ck_tally_n")),
        sa.ForeignKeyConstraint(
            ["rollout"], ["rollout.name"], name=op.f("fk_tally_rollout_rollout"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout", "wave", "blueprint", "state", name=op.f("pk_tally")),
    )
    op.create_table(
        "bench",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("device_id", sa.String(63), nullable=False),
        sa.Column("boot", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("execution_id", sa.String(36), nullable=False),
        sa.Column("rollout", sa.String(128), nullable=False),
        sa.Column("wave", sa.Integer, nullable=False),
        sa.Column("blueprint", sa.String(128), nullable=False),
        sa.Column("candidate", sa.String(64), nullable=False),
        sa.Column("incumbent", sa.String(64), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("blocks", sa.JSON, nullable=False),
        _when("at"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bench")),
        sa.UniqueConstraint("device_id", "boot", "seq", name=op.f("uq_bench_device_id_boot_seq")),
    )
    op.create_index(op.f("ix_bench_execution_id"), "bench", ["execution_id"])
    op.create_index(
        op.f("ix_bench_rollout_wave_blueprint"), "bench", ["rollout", "wave", "blueprint"]
    )
    op.create_table(
        "bench_metric",
        sa.Column("bench_id", _ID, nullable=False),
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("unit", sa.String(16), nullable=False),
        sa.Column("candidate", sa.Float, nullable=False),
        sa.Column("incumbent", sa.Float, nullable=True),
        sa.Column("ratio", sa.Float, nullable=True),
        sa.Column("ci_low", sa.Float, nullable=True),
        sa.Column("ci_high", sa.Float, nullable=True),
        sa.Column("tolerance", sa.Float, nullable=True),
        sa.Column("limit", sa.Float, nullable=True),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.ForeignKeyConstraint(
            ["bench_id"],
            ["bench.id"],
            name=op.f("fk_bench_metric_bench_id_bench"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("bench_id", "name", name=op.f("pk_bench_metric")),
    )
    op.create_table(
        "bench_tally",
        sa.Column("rollout", sa.String(128), nullable=False),
        sa.Column("wave", sa.Integer, nullable=False),
        sa.Column("blueprint", sa.String(128), nullable=False),
        sa.Column("metric", sa.String(32), nullable=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("sum_log", sa.Float, nullable=False),
        sa.Column("sum_log2", sa.Float, nullable=False),
        sa.Column("sum_var", sa.Float, nullable=False),
        sa.Column("regressed", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout"],
            ["rollout.name"],
            name=op.f("fk_bench_tally_rollout_rollout"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "rollout", "wave", "blueprint", "metric", name=op.f("pk_bench_tally")
        ),
    )
    op.create_table(
        "decision",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("rollout", sa.String(128), nullable=False),
        _when("at"),
        sa.Column("wave", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(24), nullable=False),
        sa.Column("evidence", sa.JSON, nullable=False),
        sa.Column("inputs", sa.JSON, nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout"],
            ["rollout.name"],
            name=op.f("fk_decision_rollout_rollout"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_decision")),
    )
    op.create_index(op.f("ix_decision_rollout"), "decision", ["rollout"])


def downgrade() -> None:
    for table in _TABLES:
        op.drop_table(table)
