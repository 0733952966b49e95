"""Executions by where they stand, so that a step in flight touches no index; fewer foreign keys.

PostgreSQL writes `execution` anew (some seconds a million rows), behind a lock that reports and
ticks wait for.
"""

import sqlalchemy as sa
from alembic import op

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: str | None = None
depends_on: str | None = None

_STATES = "'ACTIVATING', 'BENCHMARKING', 'DOWNLOADING', 'OFFERED', 'SOAKING', 'STAGED'"
_STANDING = f"CASE WHEN state IN ({_STATES}) THEN 'IN_FLIGHT' ELSE state END"
_BY_STANDING = "ix_execution_rollout_standing_wave_position"
_BY_STATE = "ix_execution_rollout_state_wave_position"
_FLYING = "ix_execution_in_flight"
# Each checked for every row of every batch; nobody deletes a device, and who deletes a trial
# deletes what it measured.
_METRIC = "fk_bench_metric_bench_id_bench"
_HISTORY = "fk_device_history_device_id_device"
# Room on each page for the new version of a row, which needs no new entry in any index then.
_ROOM = {"execution": 75, "device": 90}


def upgrade() -> None:
    op.drop_index(_BY_STATE, "execution")
    op.drop_index(_FLYING, "execution")
    standing = sa.Column(
        "standing", sa.String(16), sa.Computed(_STANDING, persisted=True), nullable=False
    )
    with op.batch_alter_table("execution") as batch:
        batch.add_column(standing)
    op.create_index(_BY_STANDING, "execution", ["rollout", "standing", "wave", "position"])
    _index_flying("standing = 'IN_FLIGHT'")
    with op.batch_alter_table("bench_metric") as batch:
        batch.drop_constraint(_METRIC, type_="foreignkey")
    with op.batch_alter_table("device_history") as batch:
        batch.drop_constraint(_HISTORY, type_="foreignkey")
    if op.get_bind().dialect.name == "postgresql":
        for table, percent in _ROOM.items():
            op.execute(f"ALTER TABLE {table} SET (fillfactor = {percent})")


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for table in _ROOM:
            op.execute(f"ALTER TABLE {table} RESET (fillfactor)")
    with op.batch_alter_table("device_history") as batch:
        batch.create_foreign_key(_HISTORY, "device", ["device_id"], ["id"], ondelete="CASCADE")
    with op.batch_alter_table("bench_metric") as batch:
        batch.create_foreign_key(_METRIC, "bench", ["bench_id"], ["id"], ondelete="CASCADE")
    op.drop_index(_FLYING, "execution")
    op.drop_index(_BY_STANDING, "execution")
    with op.batch_alter_table("execution") as batch:
        batch.drop_column("standing")
    op.create_index(_BY_STATE, "execution", ["rollout", "state", "wave", "position"])
    _index_flying(f"state IN ({_STATES})")


def _index_flying(where: str) -> None:
    condition = sa.text(where)
    op.create_index(
        _FLYING, "execution", ["device_id"], postgresql_where=condition, sqlite_where=condition
    )
