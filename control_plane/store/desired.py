"""What every device should run: one row a device, whose generation only grows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache

from sqlalchemy import ColumnElement, TextClause, and_, bindparam, exists, or_, select, text

from control_plane.domain.device import DeviceId
from control_plane.store.bulk import among, as_records, chunks, records
from control_plane.store.database import Transaction
from control_plane.store.schema import bundle, bundle_file, desired, execution, model_version

MAX_ORDERS = 2_000
"""In one statement: two megabytes."""


@dataclass(frozen=True)
class BundleFacts:
    """What an order says of a bundle."""

    digest: str
    model: str
    version: str
    release: int
    size: int


@dataclass(frozen=True)
class DesiredRow:
    """A device's newest order, signed."""

    device: DeviceId
    generation: int
    action: str
    digest: str
    rollout: str
    execution: str
    envelope: bytes
    issued_at: datetime


def lock_generations(tx: Transaction, ids: Sequence[str], now: datetime) -> dict[str, int]:
    """Return each device's generation, 0 for none yet, locked until the transaction ends."""
    ordered = sorted(set(ids))
    found: dict[str, int] = {}
    for some in chunks(ordered):
        # A row to lock for everybody: two first orders for one device must wait for each other.
        wanted = as_records([{"device": one} for one in some])
        tx.execute(_blank(tx.dialect.name), {"rows": wanted, "at": now})
        query = (
            select(desired.c.device_id, desired.c.generation)
            .where(among(tx, desired.c.device_id, some))
            .order_by(desired.c.device_id)
            .with_for_update()
        )
        found.update((row[0], row[1]) for row in tx.execute(query).all())
    return found


def save(tx: Transaction, rows: Sequence[DesiredRow], now: datetime) -> None:
    """Write orders that are issued now over the locked rows."""
    for some in chunks(rows, MAX_ORDERS):
        orders = [
            {
                "device": row.device,
                "generation": row.generation,
                "action": row.action,
                "digest": row.digest,
                "rollout": row.rollout,
                "execution": row.execution,
            }
            for row in some
        ]
        # Apart from the rest: PostgreSQL reads a long text out of JSON letter by letter.
        signed = [row.envelope.decode() for row in some]
        lines = "\n".join(signed) if tx.dialect.name == "postgresql" else json.dumps(signed)
        values = {"rows": as_records(orders), "signed": lines, "at": now}
        tx.execute(_save(tx.dialect.name), values)


@cache
def _blank(dialect: str) -> TextClause:
    wanted = records(dialect, "rows", device="text")
    return text(
        "INSERT INTO desired (device_id, generation, action, digest, rollout, execution_id,"  # noqa: S608 - our own words
        f" envelope, issued_at) SELECT device, 0, '', '', '', '', {_NOTHING[dialect]}, :at"
        f" FROM {wanted} WHERE true ON CONFLICT DO NOTHING"
    ).bindparams(_AT)


@cache
def _save(dialect: str) -> TextClause:
    return text(
        "UPDATE desired SET generation = rows.generation, action = rows.action,"  # noqa: S608 - our own words
        " digest = rows.digest, rollout = rows.rollout, execution_id = rows.execution,"
        f" envelope = {_BYTES[dialect]}, issued_at = :at FROM {_SIGNED[dialect]}"
        " WHERE desired.device_id = rows.device"
    ).bindparams(_AT)


_AT = bindparam("at", type_=desired.c.issued_at.type)
# An envelope is JSON in ASCII on one line, so that lines of text carry its bytes.
_BYTES = {
    "postgresql": "convert_to(rows.envelope, 'UTF8')",
    "sqlite": "CAST(rows.envelope AS BLOB)",
}
_COLUMNS = {
    "device": "text", "generation": "bigint", "action": "text", "digest": "text",
    "rollout": "text", "execution": "text",
}  # fmt: skip
_TYPED = ", ".join(f"{column} {kind}" for column, kind in _COLUMNS.items())
_READ = ", ".join(f"json_extract(row.value, '$.{column}') AS {column}" for column in _COLUMNS)
# Rows and lines side by side, the first with the first.
_SIGNED = {
    "postgresql": f"ROWS FROM (json_to_recordset(CAST(:rows AS json)) AS ({_TYPED}),"
    " unnest(string_to_array(:signed, chr(10))))"
    f" AS rows({', '.join(_COLUMNS)}, envelope)",
    "sqlite": f"(SELECT {_READ}, line.value AS envelope FROM json_each(:rows) AS row"  # noqa: S608 - our own words
    " JOIN json_each(:signed) AS line ON line.key = row.key) AS rows",
}
_NOTHING = {"postgresql": "CAST('' AS bytea)", "sqlite": "x''"}


def lock_orders(tx: Transaction, ids: Sequence[str]) -> list[DesiredRow]:
    """Return the newest order of each device that has one, locked until the transaction ends.

    Without the lock a newer order could be stored, and sent, between our reading and our sending:
    the older one would then be the last word to the device.
    """
    found: list[DesiredRow] = []
    for some in chunks(sorted(set(ids))):
        query = select(
            desired.c.device_id,
            desired.c.generation,
            desired.c.action,
            desired.c.digest,
            desired.c.rollout,
            desired.c.execution_id,
            desired.c.envelope,
            desired.c.issued_at,
        ).where(desired.c.device_id.in_(some), desired.c.generation > 0)
        query = query.order_by(desired.c.device_id).with_for_update()
        found += [DesiredRow(DeviceId(row[0]), *row[1:]) for row in tx.execute(query)]
    return found


def unheard(tx: Transaction, applied: Mapping[DeviceId, int], before: datetime) -> list[DeviceId]:
    """Return those of these devices whose newest order is newer, and was issued before."""
    found: list[DeviceId] = []
    for some in chunks(sorted(applied)):
        query = select(desired.c.device_id, desired.c.generation).where(
            among(tx, desired.c.device_id, some), desired.c.issued_at < before
        )
        found += [DeviceId(row[0]) for row in tx.execute(query) if row[1] > applied[row[0]]]
    return found


def bundles(tx: Transaction, digests: Sequence[str]) -> dict[str, BundleFacts]:
    """Return what orders say of these bundles, by digest."""
    found: dict[str, BundleFacts] = {}
    columns = (bundle.c.digest, bundle.c.model, bundle.c.version, bundle.c.release, bundle.c.size)
    for some in chunks(sorted(set(digests))):
        query = select(*columns).where(bundle.c.digest.in_(some))
        found.update((row[0], BundleFacts(*row)) for row in tx.execute(query))
    return found


# --- what a device was offered ----------------------------------------------------------------


def offered_envelope(tx: Transaction, device_id: DeviceId, digest: str) -> bytes | None:
    """Return a bundle's signed manifest, if the device was ever offered it."""
    query = select(bundle.c.envelope).where(bundle.c.digest == digest, _offered(device_id))
    return tx.execute(query).scalar()


def offered_file(tx: Transaction, device_id: DeviceId, sha256: str) -> str:
    """Return a bundle that the device was ever offered and that has this file, or nothing.

    One of a valid version, if there is one: versions share files.
    """
    of_bundle = and_(
        model_version.c.model == bundle.c.model, model_version.c.version == bundle.c.version
    )
    query = (
        select(bundle.c.digest)
        .join(bundle_file, bundle.c.digest == bundle_file.c.digest)
        .outerjoin(model_version, of_bundle)
        .where(bundle_file.c.sha256 == sha256, _offered(device_id))
        .order_by(model_version.c.invalidated_at.is_not(None), bundle.c.digest)
        .limit(1)
    )
    return tx.execute(query).scalar() or ""


def _offered(device_id: DeviceId) -> ColumnElement[bool]:
    # By what the server wrote, never by what the device says it runs: a device that names
    # another's bundle in a heartbeat must not be given its bytes.
    wanted = exists().where(desired.c.device_id == device_id, desired.c.digest == bundle.c.digest)
    before = exists().where(
        execution.c.device_id == device_id,
        execution.c.digest == bundle.c.digest,
        execution.c.offered_at.is_not(None),
    )
    return or_(wanted, before)
