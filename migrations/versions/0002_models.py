"""Blueprints, models, builds and what they make."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None

# A table goes before those that it refers to.
_TABLES = (
    "bundle_file",
    "bundle",
    "artifact",
    "build_result",
    "build",
    "model_version",
    "blueprint",
)


def _when(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "blueprint",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        _when("created_at"),
        _when("updated_at"),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_blueprint")),
    )
    op.create_table(
        "model_version",
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("version", sa.String(128), nullable=False),
        sa.Column("release", sa.Integer, nullable=False),
        sa.Column("source_digest", sa.String(64), nullable=False),
        sa.Column("source_bytes", sa.BigInteger, nullable=False),
        sa.Column("files", sa.JSON, nullable=False),
        sa.Column("descriptor", sa.JSON, nullable=False),
        sa.Column("parent", sa.String(128), nullable=False),
        _when("created_at"),
        sa.Column("created_by", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("model", "version", name=op.f("pk_model_version")),
        sa.UniqueConstraint("model", "release", name=op.f("uq_model_version_model_release")),
    )
    op.create_table(
        "build",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("version", sa.String(128), nullable=False),
        sa.Column("blueprint", sa.String(128), nullable=False),
        sa.Column("blueprint_digest", sa.String(64), nullable=False),
        sa.Column("recipe", sa.String(128), nullable=False),
        sa.Column("waiver", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("progress", sa.JSON, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("lease_owner", sa.String(128), nullable=False),
        _when("lease_until", nullable=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        _when("created_at"),
        _when("started_at", nullable=True),
        _when("finished_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_build")),
    )
    op.create_index(
        op.f("ix_build_model_version_blueprint"), "build", ["model", "version", "blueprint"]
    )
    op.create_index(op.f("ix_build_state"), "build", ["state"])
    op.create_table(
        "build_result",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("source_digest", sa.String(64), nullable=False),
        sa.Column("recipe", sa.String(128), nullable=False),
        sa.Column("result", sa.JSON, nullable=False),
        _when("created_at"),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_build_result")),
    )
    op.create_index(op.f("ix_build_result_source_digest"), "build_result", ["source_digest"])
    op.create_table(
        "artifact",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("build_id", sa.String(36), nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("version", sa.String(128), nullable=False),
        sa.Column("blueprint", sa.String(128), nullable=False),
        sa.Column("recipe", sa.String(128), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("source_bytes", sa.BigInteger, nullable=False),
        sa.Column("quality", sa.JSON, nullable=False),
        sa.Column("measured", sa.JSON, nullable=False),
        sa.Column("accepted", sa.Boolean, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        _when("created_at"),
        sa.ForeignKeyConstraint(
            ["build_id"], ["build.id"], name=op.f("fk_artifact_build_id_build")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifact")),
        sa.UniqueConstraint("build_id", "recipe", name=op.f("uq_artifact_build_id_recipe")),
    )
    op.create_index(op.f("ix_artifact_build_id"), "artifact", ["build_id"])
    op.create_index(
        op.f("ix_artifact_model_version_blueprint"), "artifact", ["model", "version", "blueprint"]
    )
    op.create_table(
        "bundle",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("artifact_id", sa.String(36), nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("version", sa.String(128), nullable=False),
        sa.Column("release", sa.Integer, nullable=False),
        sa.Column("blueprint", sa.String(128), nullable=False),
        sa.Column("recipe", sa.String(128), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
        _when("created_at"),
        sa.ForeignKeyConstraint(
            ["artifact_id"], ["artifact.id"], name=op.f("fk_bundle_artifact_id_artifact")
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_bundle")),
    )
    op.create_index(
        op.f("ix_bundle_model_version_blueprint"), "bundle", ["model", "version", "blueprint"]
    )
    op.create_table(
        "bundle_file",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("path", sa.String(128), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(
            ["digest"],
            ["bundle.digest"],
            name=op.f("fk_bundle_file_digest_bundle"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("digest", "path", name=op.f("pk_bundle_file")),
    )
    op.create_index(op.f("ix_bundle_file_sha256"), "bundle_file", ["sha256"])


def downgrade() -> None:
    for table in _TABLES:
        op.drop_table(table)
