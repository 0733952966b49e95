"""The history of executions: a line for each step, however many are taken at once."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import TextClause, bindparam, text

from control_plane.store.bulk import as_records, records
from control_plane.store.database import Transaction
from control_plane.store.schema import execution_event


def add(tx: Transaction, now: datetime, steps: Sequence[Mapping[str, Any]]) -> None:
    """Write steps, in their order: part (an execution's id), before, after, reason, digest."""
    if steps:
        tx.execute(_add(tx.dialect.name), {"rows": as_records(steps), "at": now})


@cache
def _add(dialect: str) -> TextClause:
    steps = records(
        dialect, "rows", part="text", before="text", after="text", reason="text", digest="text"
    )
    return text(
        'INSERT INTO execution_event (execution_id, at, "before", "after", reason, digest)'  # noqa: S608 - our own words
        f' SELECT part, :at, "before", "after", reason, digest FROM {steps}'
    ).bindparams(bindparam("at", type_=execution_event.c.at.type))
