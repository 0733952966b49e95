"""Rollouts, their executions, counts, trials and decisions."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    Float,
    ForeignKey,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    bindparam,
)

from control_plane.domain.rollout import DEFAULT_PRIORITY, IN_FLIGHT
from control_plane.store.schema.columns import BigId, Digest, Name, metadata, when

rollout = Table(
    "rollout",
    metadata,
    Column("name", Name, primary_key=True),
    Column("model", Name, nullable=False),
    Column("version", Name, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("state", String(24), nullable=False, index=True),
    Column("state_reason", Text, nullable=False, default=""),
    Column("revision", Integer, nullable=False),
    Column("wave", Integer, nullable=False, default=0),  # index of the open wave
    Column("machine", JSON, nullable=False),  # what advance() keeps: acknowledged, soak start ...
    Column("plan", JSON, nullable=False),  # totals per wave and blueprint, misfits with reasons
    Column("created_by", Name, nullable=False),
    when("created_at"),
    when("started_at", nullable=True),
    when("ended_at", nullable=True),
    Column("retries", Name, nullable=False, default=""),  # the one whose failed devices it retries
    Column("priority", Integer, nullable=False, default=DEFAULT_PRIORITY, server_default="50"),
    Column("edited_by", Name, nullable=False, default=""),  # who wrote what it says now
    # devices that a decision takes back and no slice has come to: services/rollout_sweep
    Column("pending", Text, nullable=False, default="", server_default=""),
    when("facts_seen_at", nullable=True),  # dynamic: devices that changed until then have joined
)

# Who let a wave open, and what they saw: an approval of other words counts for nothing.
approval = Table(
    "approval",
    metadata,
    Column("rollout", ForeignKey("rollout.name", ondelete="CASCADE"), nullable=False),
    Column("wave", Integer, nullable=False),
    Column("person", Name, nullable=False),
    Column("digest", Digest, nullable=False),
    when("at"),
    PrimaryKeyConstraint("rollout", "wave", "person"),
)

FLYING_STANDING = "IN_FLIGHT"
_FLYING_STATES = ", ".join(f"'{state.value}'" for state in sorted(IN_FLIGHT))
_STANDING = f"CASE WHEN state IN ({_FLYING_STATES}) THEN '{FLYING_STANDING}' ELSE state END"

# A plan is a million rows at once. So: no foreign keys (a check a row, and a lock on every device
# of the fleet, though neither devices nor rollouts are ever deleted), and one id for one device
# in one rollout (domain/rollout_plan.execution_id) in place of a second unique index.
execution = Table(
    "execution",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("rollout", Name, nullable=False),
    Column("device_id", String(63), nullable=False, index=True),
    Column("wave", Integer, nullable=False),
    Column("position", Integer, nullable=False),  # order of offers inside the wave
    Column("blueprint", Name, nullable=False),
    Column("digest", Digest, nullable=False),
    Column("previous", Digest, nullable=False, default=""),  # what ran when it was offered
    Column("state", String(16), nullable=False),
    Column("standing", String(16), Computed(_STANDING, persisted=True), nullable=False),
    Column("reason", String(64), nullable=False, default=""),
    Column("generation", BigInteger, nullable=False, default=0),
    Column("revert_generation", BigInteger, nullable=False, default=0),  # sent back by a revert
    Column("reverted", Boolean, nullable=False, default=False),  # device says it runs `previous`
    when("offered_at", nullable=True),
    when("opens_at", nullable=True),  # the activation window in its order, if there is one
    when("closes_at", nullable=True),
    when("updated_at"),
    # Not by state: store/standing.py says why.
    Index(None, "rollout", "standing", "wave", "position"),
)
# Few of many: ordered back, and not there yet.
_RETURNING = and_(execution.c.revert_generation > 0, ~execution.c.reverted)
Index(
    "ix_execution_returning",
    execution.c.rollout,
    postgresql_where=_RETURNING,
    sqlite_where=_RETURNING,
)

# Few of many: what a disruption budget counts, over all rollouts.
# Written out, or no database would know the index by it.
FLYING = execution.c.standing == bindparam("flying", FLYING_STANDING, literal_execute=True)
Index(
    "ix_execution_in_flight",
    execution.c.device_id,
    postgresql_where=execution.c.standing == FLYING_STANDING,
    sqlite_where=execution.c.standing == FLYING_STANDING,
)

execution_event = Table(
    "execution_event",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("execution_id", String(36), nullable=False),
    when("at"),
    Column("before", String(16), nullable=False),
    Column("after", String(16), nullable=False),
    Column("reason", String(64), nullable=False, default=""),
    Column("digest", Digest, nullable=False, default=""),
    Index(None, "execution_id", "id"),
)

# Counts per wave, blueprint and state; changed only with the row transition that causes them.
tally = Table(
    "tally",
    metadata,
    Column("rollout", ForeignKey("rollout.name", ondelete="CASCADE"), nullable=False),
    Column("wave", Integer, nullable=False),
    Column("blueprint", Name, nullable=False),
    Column("state", String(16), nullable=False),
    Column("n", Integer, nullable=False),
    PrimaryKeyConstraint("rollout", "wave", "blueprint", "state"),
    CheckConstraint("n >= 0", name="n"),
)

bench = Table(
    "bench",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("device_id", String(63), nullable=False),
    Column("boot", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("execution_id", String(36), nullable=False, index=True),
    Column("rollout", Name, nullable=False),
    Column("wave", Integer, nullable=False),
    Column("blueprint", Name, nullable=False),
    Column("candidate", Digest, nullable=False),
    Column("incumbent", Digest, nullable=False, default=""),
    Column("verdict", String(16), nullable=False),
    Column("seconds", Float, nullable=False, default=0.0),
    Column("blocks", JSON, nullable=False),
    when("at"),
    UniqueConstraint("device_id", "boot", "seq"),
    Index(None, "rollout", "id"),
)

bench_metric = Table(
    "bench_metric",
    metadata,
    Column("bench_id", BigId, nullable=False),  # deleted with it: store/retention.py
    Column("name", String(32), nullable=False),
    Column("unit", String(16), nullable=False),
    Column("candidate", Float, nullable=False),
    Column("incumbent", Float, nullable=True),
    Column("ratio", Float, nullable=True),
    Column("ci_low", Float, nullable=True),
    Column("ci_high", Float, nullable=True),
    Column("tolerance", Float, nullable=True),
    Column("limit", Float, nullable=True),
    Column("n", Integer, nullable=False),
    Column("verdict", String(16), nullable=False),
    PrimaryKeyConstraint("bench_id", "name"),
)

# Mergeable summaries of the paired log-ratios, maintained with each bench row; only the last
# conclusive bench of an execution counts.
bench_tally = Table(
    "bench_tally",
    metadata,
    Column("rollout", ForeignKey("rollout.name", ondelete="CASCADE"), nullable=False),
    Column("wave", Integer, nullable=False),
    Column("blueprint", Name, nullable=False),
    Column("metric", String(32), nullable=False),
    Column("n", Integer, nullable=False),
    Column("sum_log", Float, nullable=False),
    Column("sum_log2", Float, nullable=False),
    Column("sum_var", Float, nullable=False, default=0.0),  # squared errors of own intervals
    Column("regressed", Integer, nullable=False, default=0),
    PrimaryKeyConstraint("rollout", "wave", "blueprint", "metric"),
)

decision = Table(
    "decision",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("rollout", ForeignKey("rollout.name", ondelete="CASCADE"), nullable=False),
    when("at"),
    Column("wave", Integer, nullable=False),
    Column("kind", String(24), nullable=False),  # start offer open_wave hold halt succeed ...
    Column("evidence", JSON, nullable=False),  # gate by gate: rule, value, interval, n, verdict
    Column("inputs", JSON, nullable=False),  # the view that advance() saw: replay it
    Column("actor", Name, nullable=False, default=""),
    Column("reason", Text, nullable=False, default=""),
    Index(None, "rollout", "id"),
)
