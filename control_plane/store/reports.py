"""Which reports have been counted: a report's key is here from the transaction that applied it."""

from collections.abc import Collection
from datetime import datetime
from functools import cache
from typing import NamedTuple

from sqlalchemy import TextClause, bindparam, delete, select, text, tuple_

from control_plane.store.bulk import as_records, records
from control_plane.store.database import Transaction
from control_plane.store.schema import report_seen


class ReportKey(NamedTuple):
    """Names a report: the device, its boot epoch, and the number it gave."""

    device: str
    boot: int
    seq: int


def claim(tx: Transaction, keys: Collection[ReportKey], now: datetime) -> set[ReportKey]:
    """Count reports; return those that nobody counted before.

    One statement decides and writes, so two gateways with the same report cannot both be told
    that it is new.
    """
    if not keys:
        return set()
    rows = [{"device": key.device, "boot": key.boot, "seq": key.seq} for key in sorted(set(keys))]
    values = {"rows": as_records(rows), "at": now}
    return {ReportKey(*row) for row in tx.execute(_claim(tx.dialect.name), values).all()}


@cache
def _claim(dialect: str) -> TextClause:
    claimed = records(dialect, "rows", device="text", boot="bigint", seq="bigint")
    return text(
        "INSERT INTO report_seen (device_id, boot, seq, at)"  # noqa: S608 - our own words
        f" SELECT device, boot, seq, :at FROM {claimed} WHERE true"
        " ON CONFLICT DO NOTHING RETURNING device_id, boot, seq"
    ).bindparams(bindparam("at", type_=report_seen.c.at.type))


def forget(tx: Transaction, before: datetime, limit: int) -> int:
    """Forget the oldest reports counted before a time, at most `limit`; return how many."""
    table = report_seen.c
    keys = (table.device_id, table.boot, table.seq)
    # What another sweep is deleting is not waited for.
    oldest = (
        select(*keys)
        .where(table.at < before)
        .order_by(table.at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return tx.execute(delete(report_seen).where(tuple_(*keys).in_(oldest))).rowcount
