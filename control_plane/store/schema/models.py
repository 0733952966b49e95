"""Models, blueprints, builds, artifacts and bundles."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from control_plane.store.schema.columns import Digest, Name, metadata, when

blueprint = Table(
    "blueprint",
    metadata,
    Column("name", Name, primary_key=True),
    Column("spec", JSON, nullable=False),
    Column("digest", Digest, nullable=False),
    Column("revision", Integer, nullable=False),
    when("created_at"),
    when("updated_at"),
)

model_version = Table(
    "model_version",
    metadata,
    Column("model", Name, nullable=False),
    Column("version", Name, nullable=False),
    Column("release", Integer, nullable=False),
    Column("source_digest", Digest, nullable=False),
    Column("source_bytes", BigInteger, nullable=False),
    Column("files", JSON, nullable=False),  # [{path, size, sha256}]
    Column("descriptor", JSON, nullable=False),  # model.json
    Column("parent", Name, nullable=False, default=""),
    when("created_at"),
    Column("created_by", Name, nullable=False),
    when("invalidated_at", nullable=True),  # by a person: never offered nor served again
    Column("invalidated_by", Name, nullable=False, default=""),
    Column("invalid_reason", Text, nullable=False, default=""),
    PrimaryKeyConstraint("model", "version"),
    UniqueConstraint("model", "release"),
)

build = Table(
    "build",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("model", Name, nullable=False),
    Column("version", Name, nullable=False),
    Column("blueprint", Name, nullable=False),
    Column("blueprint_digest", Digest, nullable=False),
    Column("recipe", Name, nullable=False, default=""),  # empty: the blueprint's, best first
    Column("waiver", Text, nullable=False, default=""),  # why a floor was waived on purpose
    Column("state", String(16), nullable=False, index=True),  # QUEUED RUNNING SUCCEEDED FAILED
    Column("progress", JSON, nullable=False),
    Column("error", Text, nullable=False, default=""),
    Column("digest", Digest, nullable=False, default=""),  # bundle digest when SUCCEEDED
    Column("lease_owner", Name, nullable=False, default=""),
    when("lease_until", nullable=True),
    Column("attempt", Integer, nullable=False, default=0),  # the fence
    when("created_at"),
    when("started_at", nullable=True),
    when("finished_at", nullable=True),
    Index(None, "model", "version", "blueprint"),
)

# Every recipe tried, accepted or not, with its numbers.
artifact = Table(
    "artifact",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("build_id", ForeignKey("build.id"), nullable=False, index=True),
    Column("model", Name, nullable=False),
    Column("version", Name, nullable=False),
    Column("blueprint", Name, nullable=False),
    Column("recipe", Name, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("source_bytes", BigInteger, nullable=False),
    Column("quality", JSON, nullable=False),
    Column("measured", JSON, nullable=False),  # speed, memory and time on the builder
    Column("accepted", Boolean, nullable=False),
    Column("why", Text, nullable=False),
    when("created_at"),
    UniqueConstraint("build_id", "recipe"),
    Index(None, "model", "version", "blueprint"),
)

# What a recipe gave for a source with these tools, so that blueprints share the work.
build_result = Table(
    "build_result",
    metadata,
    Column("key", Digest, primary_key=True),
    Column("source_digest", Digest, nullable=False, index=True),
    Column("recipe", Name, nullable=False),  # empty: what the source itself gave
    Column("result", JSON, nullable=False),
    when("created_at"),
)

bundle = Table(
    "bundle",
    metadata,
    Column("digest", Digest, primary_key=True),
    Column("artifact_id", ForeignKey("artifact.id"), nullable=False),
    Column("model", Name, nullable=False),
    Column("version", Name, nullable=False),
    Column("release", Integer, nullable=False),
    Column("blueprint", Name, nullable=False),
    Column("recipe", Name, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    when("created_at"),
    Index(None, "model", "version", "blueprint"),
)

bundle_file = Table(
    "bundle_file",
    metadata,
    Column("digest", ForeignKey("bundle.digest", ondelete="CASCADE"), nullable=False),
    Column("path", String(128), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", Digest, nullable=False, index=True),
    PrimaryKeyConstraint("digest", "path"),
)
