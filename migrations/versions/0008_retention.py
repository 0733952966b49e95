"""The fleet counted as it changes, the orders of the device list, and where sweeps have come to."""

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | None = None
depends_on: str | None = None

BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# index, table, columns
_NEW = (
    ("ix_device_blueprint_id", "device", ["blueprint", "id"]),
    ("ix_device_digest_id", "device", ["digest", "id"]),
    ("ix_device_last_seen_at_id", "device", ["last_seen_at", "id"]),
    ("ix_device_label_key_value_device_id", "device_label", ["key", "value", "device_id"]),
    ("ix_device_history_device_id_id", "device_history", ["device_id", "id"]),
)
_OLD = (
    ("ix_device_blueprint", "device", ["blueprint"]),
    ("ix_device_label_key_value", "device_label", ["key", "value"]),
    ("ix_device_history_device_id", "device_history", ["device_id"]),
)
# index, column of `device`, for which rows on PostgreSQL and on SQLite
_RARE = (
    ("ix_device_offline", "id", "NOT online", "online = 0"),
    ("ix_device_unhealthy", "id", "NOT healthy", "healthy = 0"),
    ("ix_device_inactive", "id", "state <> 'active'", "state != 'active'"),
    ("ix_device_online_seen", "last_seen_at", "online", "online = 1"),
)
# What the counters begin with; from then on whoever changes a device changes them.
_COUNTED = """
INSERT INTO fleet_count (facet, value, n)
SELECT 'state', state, count(*) FROM device GROUP BY state
UNION ALL
SELECT 'health', health, count(*) FROM (
    SELECT CASE WHEN state <> 'active' THEN 'quarantined' WHEN NOT online THEN 'offline'
        WHEN NOT healthy THEN 'unhealthy' ELSE 'healthy' END AS health FROM device
) AS looked GROUP BY health
UNION ALL
SELECT 'online', CASE WHEN online THEN 'true' ELSE 'false' END, count(*) FROM device GROUP BY online
UNION ALL
SELECT 'blueprint', coalesce(blueprint, ''), count(*) FROM device GROUP BY coalesce(blueprint, '')
UNION ALL
SELECT 'digest', digest, count(*) FROM device GROUP BY digest
UNION ALL
SELECT 'site', value, count(*) FROM device_label WHERE key = 'site' GROUP BY value
"""


def upgrade() -> None:
    for name, table, columns in _NEW:
        op.create_index(name, table, columns)
    for name, table, _ in _OLD:
        op.drop_index(name, table)
    for name, column, on_postgresql, on_sqlite in _RARE:
        op.create_index(
            name,
            "device",
            [column],
            postgresql_where=sa.text(on_postgresql),
            sqlite_where=sa.text(on_sqlite),
        )
    op.create_table(
        "fleet_count",
        sa.Column("facet", sa.String(16), nullable=False),
        sa.Column("value", sa.String(128), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("facet", "value", name="pk_fleet_count"),
    )
    op.create_table(
        "fleet_delta",
        sa.Column("id", BigId, autoincrement=True, nullable=False),
        sa.Column("facet", sa.String(16), nullable=False),
        sa.Column("value", sa.String(128), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_fleet_delta"),
    )
    op.create_table(
        "sweep_position",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("row_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_sweep_position"),
    )
    op.execute(_COUNTED)


def downgrade() -> None:
    op.drop_table("sweep_position")
    op.drop_table("fleet_delta")
    op.drop_table("fleet_count")
    for name, *_ in _RARE:
        op.drop_index(name, "device")
    for name, table, columns in _OLD:
        op.create_index(name, table, columns)
    for name, table, _ in _NEW:
        op.drop_index(name, table)
