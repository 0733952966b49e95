"""Artifact rows (every recipe tried) and bundle rows (those that were taken)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select

from control_plane.store.builds import Key, equal, older
from control_plane.store.bulk import insert_new
from control_plane.store.database import Transaction
from control_plane.store.schema import artifact, build, bundle, bundle_file


@dataclass(frozen=True)
class ArtifactRow:
    """One tried recipe; `digest` is its bundle's, empty if it was refused."""

    id: str
    model: str
    version: str
    blueprint: str
    recipe: str
    bytes: int
    source_bytes: int
    quality: dict[str, float]
    measured: dict[str, float]
    accepted: bool
    why: str
    created_at: datetime
    build_id: str
    digest: str


@dataclass(frozen=True)
class BundleRow:
    """One bundle: what an order names."""

    digest: str
    model: str
    version: str
    release: int
    blueprint: str
    recipe: str
    size: int


def add(tx: Transaction, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store tried recipes."""
    if rows:
        tx.execute(insert(artifact), list(rows))


def add_bundle(
    tx: Transaction, row: Mapping[str, Any], files: Sequence[tuple[str, int, str]]
) -> None:
    """Store a bundle and its files (path, size, SHA-256); the same one again changes nothing."""
    insert_new(tx, bundle, [row])
    values = [
        {"digest": row["digest"], "path": path, "size": size, "sha256": sha256}
        for path, size, sha256 in files
    ]
    insert_new(tx, bundle_file, values)


def page(
    tx: Transaction, wanted: Mapping[str, str], limit: int, after: Key | None
) -> list[ArtifactRow]:
    """Return tried recipes, the newest build first, in the order in which they were tried."""
    columns = [artifact.c[name] for name in ArtifactRow.__dataclass_fields__ if name != "digest"]
    columns.append(build.c.digest)
    query = (
        select(*columns)
        .join(build, build.c.id == artifact.c.build_id)
        .where(*equal(artifact, wanted), *older(artifact, after))
        .order_by(artifact.c.created_at.desc(), artifact.c.id)
        .limit(limit)
    )
    rows = (ArtifactRow(*row) for row in tx.execute(query))
    return [row if row.accepted else replace(row, digest="") for row in rows]


def bundle_for(
    tx: Transaction, model: str, version: str, blueprint: str, blueprint_digest: str
) -> BundleRow | None:
    """Return the bundle of the newest build that succeeded for a blueprint as it is now."""
    columns = [bundle.c[name] for name in BundleRow.__dataclass_fields__]
    query = (
        select(*columns)
        .join(build, build.c.digest == bundle.c.digest)
        .where(
            build.c.model == model,
            build.c.version == version,
            build.c.blueprint == blueprint,
            build.c.blueprint_digest == blueprint_digest,
            build.c.state == "SUCCEEDED",
        )
        .order_by(build.c.finished_at.desc(), build.c.id)
        .limit(1)
    )
    row = tx.execute(query).one_or_none()
    return None if row is None else BundleRow(*row)
