"""Blueprint rows."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select, update

from control_plane.domain.blueprint import Blueprint, Floors, Limits, Match, RuntimeSettings
from control_plane.store.database import Transaction
from control_plane.store.schema import blueprint as table


@dataclass(frozen=True)
class BlueprintRow:
    """A stored blueprint; `digest` covers what decides a build."""

    blueprint: Blueprint
    digest: str
    revision: int
    created_at: datetime
    updated_at: datetime


def find(tx: Transaction, name: str) -> BlueprintRow | None:
    """Return a blueprint, or None."""
    row = tx.execute(select(table).where(table.c.name == name)).mappings().one_or_none()
    return None if row is None else _row(row)


def page(tx: Transaction, limit: int, after: str = "") -> list[BlueprintRow]:
    """Return blueprints in order of their names."""
    query = select(table).where(table.c.name > after).order_by(table.c.name).limit(limit)
    return [_row(row) for row in tx.execute(query).mappings()]


def everything(tx: Transaction) -> list[Blueprint]:
    """Return every blueprint; there are as many as kinds of hardware."""
    return [_row(row).blueprint for row in tx.execute(select(table)).mappings()]


def add(tx: Transaction, blueprint: Blueprint, now: datetime) -> None:
    """Store a new blueprint."""
    tx.execute(
        insert(table).values(**_values(blueprint), revision=1, created_at=now, updated_at=now)
    )


def replace(tx: Transaction, blueprint: Blueprint, revision: int, now: datetime) -> bool:
    """Replace a blueprint that still has `revision`; False if somebody was quicker."""
    done = tx.execute(
        update(table)
        .where(table.c.name == blueprint.name, table.c.revision == revision)
        .values(**_values(blueprint), revision=revision + 1, updated_at=now)
    )
    return done.rowcount == 1


def _values(blueprint: Blueprint) -> dict[str, Any]:
    spec = {key: value for key, value in asdict(blueprint).items() if key != "name"}
    return {"name": blueprint.name, "spec": spec, "digest": blueprint.build_digest}


def _row(row: Mapping[Any, Any]) -> BlueprintRow:
    return BlueprintRow(
        blueprint=_blueprint(row["name"], row["spec"]),
        digest=row["digest"],
        revision=row["revision"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _blueprint(name: str, spec: Mapping[str, Any]) -> Blueprint:
    match: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in spec["match"].items()
    }
    return Blueprint(
        name=name,
        match=Match(**match),
        limits=Limits(**spec["limits"]),
        runtime=RuntimeSettings(**spec["runtime"]),
        recipes=tuple(spec["recipes"]),
        quality=Floors(**spec["quality"]),
        notes=spec["notes"],
        sources=tuple(spec["sources"]),
    )
