"""A rollout may retry another's failed devices; a model version may be invalidated."""

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    # With defaults of the database: the code before this one goes on writing rows without them.
    op.add_column("rollout", _text("retries", sa.String(128)))
    when = sa.Column("invalidated_at", sa.DateTime(timezone=True), nullable=True)
    op.add_column("model_version", when)
    op.add_column("model_version", _text("invalidated_by", sa.String(128)))
    op.add_column("model_version", _text("invalid_reason", sa.Text()))


def downgrade() -> None:
    for name in ("invalid_reason", "invalidated_by", "invalidated_at"):
        op.drop_column("model_version", name)
    op.drop_column("rollout", "retries")


def _text(name: str, kind: sa.String) -> sa.Column[str]:
    return sa.Column(name, kind, nullable=False, server_default="")
