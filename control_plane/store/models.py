"""Model version rows: immutable once written."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, insert, select

from control_plane.domain.model import SourceFile
from control_plane.store.database import Transaction
from control_plane.store.schema import model_version as table


@dataclass(frozen=True)
class ModelVersionRow:
    """One version of a model: its source and where it came from."""

    model: str
    version: str
    release: int
    source_digest: str
    source_bytes: int
    files: tuple[SourceFile, ...]
    descriptor: dict[str, Any]
    parent: str
    created_at: datetime
    created_by: str
    invalidated_at: datetime | None = None
    """Since when nobody plans, builds or is served it."""
    invalidated_by: str = ""
    invalid_reason: str = ""


@dataclass(frozen=True)
class ModelRow:
    """A model: how many versions it has, its newest, and how many were called invalid."""

    model: str
    versions: int
    latest: str
    updated_at: datetime
    invalid: int = 0


def find(tx: Transaction, model: str, version: str) -> ModelVersionRow | None:
    """Return a version, or None."""
    query = select(table).where(table.c.model == model, table.c.version == version)
    row = tx.execute(query).mappings().one_or_none()
    return None if row is None else _row(row)


def next_release(tx: Transaction, model: str) -> int:
    """Return the next release number of a model: a counter that only grows."""
    newest = tx.execute(select(func.max(table.c.release)).where(table.c.model == model)).scalar()
    return (newest or 0) + 1


def add(tx: Transaction, row: ModelVersionRow) -> None:
    """Store a new version."""
    values = {name: getattr(row, name) for name in table.c.keys()}  # noqa: SIM118 - columns, not rows
    values["files"] = [asdict(file) for file in row.files]
    tx.execute(insert(table).values(**values))


def page(tx: Transaction, model: str, limit: int, before: int | None) -> list[ModelVersionRow]:
    """Return versions of a model, the newest release first, those before release `before`."""
    query = select(table).where(table.c.model == model)
    if before is not None:
        query = query.where(table.c.release < before)
    query = query.order_by(table.c.release.desc()).limit(limit)
    return [_row(row) for row in tx.execute(query).mappings()]


def models(tx: Transaction, limit: int, after: str) -> list[ModelRow]:
    """Return models in order of their names."""
    counts = (
        select(
            table.c.model,
            func.count().label("versions"),
            func.max(table.c.release).label("release"),
            func.count(table.c.invalidated_at).label("invalid"),
        )
        .where(table.c.model > after)
        .group_by(table.c.model)
        .order_by(table.c.model)
        .limit(limit)
        .subquery()
    )
    newest = (table.c.model == counts.c.model) & (table.c.release == counts.c.release)
    query = (
        select(
            table.c.model,
            counts.c.versions,
            table.c.version,
            table.c.created_at,
            counts.c.invalid,
        )
        .join(counts, newest)
        .order_by(table.c.model)
    )
    return [ModelRow(*row) for row in tx.execute(query)]


def _row(row: Mapping[Any, Any]) -> ModelVersionRow:
    values = {str(key): value for key, value in row.items()}
    values["files"] = tuple(SourceFile(**file) for file in values["files"])
    return ModelVersionRow(**values)
