"""Executions by place and by need: cheap to plan by the million, and a tick reads no fleet."""

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | None = None
depends_on: str | None = None

_FOREIGN = {"device_id": "device.id", "rollout": "rollout.name"}
_EVENT = "fk_execution_event_execution_id_execution"
_RETURNING = "revert_generation > 0 AND NOT reverted"


def upgrade() -> None:
    # A million checks of rows that nobody ever deletes, and a lock on every device of the fleet.
    op.add_column("rollout", sa.Column("pending", sa.Text(), nullable=False, server_default=""))
    # First: SQLite makes the table anew, and what refers to the old one would go with it.
    with op.batch_alter_table("execution_event") as batch:
        batch.drop_constraint(_EVENT, type_="foreignkey")
    with op.batch_alter_table("execution") as batch:
        for column, other in _FOREIGN.items():
            batch.drop_constraint(_name(column, other), type_="foreignkey")
        # The id says it: it is a hash of the two.
        batch.drop_constraint(op.f("uq_execution_rollout_device_id"), type_="unique")
    op.drop_index(op.f("ix_execution_rollout_wave_state_position"), "execution")
    columns = ["rollout", "state", "wave", "position"]
    op.create_index(op.f("ix_execution_rollout_state_wave_position"), "execution", columns)
    where = sa.text(_RETURNING)
    op.create_index(
        "ix_execution_returning",
        "execution",
        ["rollout"],
        postgresql_where=where,
        sqlite_where=where,
    )
    op.drop_index(op.f("ix_decision_rollout"), "decision")
    op.create_index(op.f("ix_decision_rollout_id"), "decision", ["rollout", "id"])
    op.drop_index(op.f("ix_bench_rollout_wave_blueprint"), "bench")
    op.create_index(op.f("ix_bench_rollout_id"), "bench", ["rollout", "id"])


def downgrade() -> None:
    op.drop_column("rollout", "pending")
    op.drop_index(op.f("ix_bench_rollout_id"), "bench")
    op.create_index(
        op.f("ix_bench_rollout_wave_blueprint"), "bench", ["rollout", "wave", "blueprint"]
    )
    op.drop_index(op.f("ix_decision_rollout_id"), "decision")
    op.create_index(op.f("ix_decision_rollout"), "decision", ["rollout"])
    op.drop_index("ix_execution_returning", "execution")
    op.drop_index(op.f("ix_execution_rollout_state_wave_position"), "execution")
    columns = ["rollout", "wave", "state", "position"]
    op.create_index(op.f("ix_execution_rollout_wave_state_position"), "execution", columns)
    with op.batch_alter_table("execution") as batch:
        batch.create_unique_constraint(
            op.f("uq_execution_rollout_device_id"), ["rollout", "device_id"]
        )
        for column, other in _FOREIGN.items():
            table, _, key = other.partition(".")
            batch.create_foreign_key(
                _name(column, other), table, [column], [key], ondelete="CASCADE"
            )
    with op.batch_alter_table("execution_event") as batch:
        batch.create_foreign_key(_EVENT, "execution", ["execution_id"], ["id"], ondelete="CASCADE")


def _name(column: str, other: str) -> str:
    return f"fk_execution_{column}_{other.partition('.')[0]}"
