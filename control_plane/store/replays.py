"""Everything that is stored of one rollout's devices, for replaying it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from agent.protocol.words import ExecutionState, Verdict
from control_plane.domain.device import DeviceFacts, DeviceId
from control_plane.store import benches, executions
from control_plane.store.benches import Summaries
from control_plane.store.database import Transaction
from control_plane.store.executions import ExecutionRow
from control_plane.store.schema import (
    bench,
    bench_metric,
    decision,
    device,
    device_label,
    execution,
    execution_event,
)


@dataclass(frozen=True)
class Moved:
    """One move in an execution's history."""

    at: datetime
    before: ExecutionState
    after: ExecutionState
    reason: str


@dataclass(frozen=True)
class Tried:
    """One conclusive trial: what it adds to the tallies, and each metric's ratio and low bound."""

    at: datetime
    added: Summaries
    ratios: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Decided:
    """One decision or act, with what replaying it needs."""

    at: datetime
    wave: int
    kind: str
    evidence: list[dict[str, Any]]
    event: dict[str, Any]
    by_person: bool
    """A person's act itself, and not what was decided upon it."""
    reason: str


def parts(tx: Transaction, name: str) -> list[ExecutionRow]:
    """Return every part of a rollout, in the order of its plan."""
    query = select(*executions.columns()).where(execution.c.rollout == name)
    rows = tx.execute(query.order_by(execution.c.wave, execution.c.position))
    return [executions.read_row(row) for row in rows]


def moves(tx: Transaction, name: str) -> dict[str, list[Moved]]:
    """Return the history of each execution."""
    query = (
        select(
            execution_event.c.execution_id,
            execution_event.c.at,
            execution_event.c.before,
            execution_event.c.after,
            execution_event.c.reason,
        )
        .join(execution, execution.c.id == execution_event.c.execution_id)
        .where(execution.c.rollout == name)
        .order_by(execution_event.c.id)
    )
    found: dict[str, list[Moved]] = {}
    for row in tx.execute(query):
        step = Moved(row.at, ExecutionState(row.before), ExecutionState(row.after), row.reason)
        found.setdefault(row.execution_id, []).append(step)
    return found


def trials(tx: Transaction, name: str) -> dict[str, list[Tried]]:
    """Return the conclusive trials of each execution, in the order in which they count."""
    mine = (bench.c.rollout == name, bench.c.verdict != Verdict.INCONCLUSIVE.value)
    metrics: dict[int, list[Any]] = {}
    found_metrics = (
        select(bench_metric).join(bench, bench.c.id == bench_metric.c.bench_id).where(*mine)
    )
    for metric in tx.execute(found_metrics):
        metrics.setdefault(metric.bench_id, []).append(metric)
    columns = (bench.c.id, bench.c.execution_id, bench.c.at, bench.c.verdict, bench.c.incumbent)
    query = select(*columns).where(*mine).order_by(bench.c.boot, bench.c.seq)
    found: dict[str, list[Tried]] = {}
    for row in tx.execute(query):
        of_it = metrics.get(row.id, [])
        measured = {one.name: (*benches.numbers(one), one.verdict) for one in of_it}
        tried = Tried(
            row.at,
            benches.summed(row.verdict, row.incumbent, measured),
            {
                one.name: (one.ratio, one.ci_low)
                for one in of_it
                if one.ratio is not None and one.ci_low is not None
            },
        )
        found.setdefault(row.execution_id, []).append(tried)
    return found


def decisions(tx: Transaction, name: str) -> list[Decided]:
    """Return every decision of a rollout, the oldest first."""
    columns = ("at", "wave", "kind", "evidence", "inputs", "reason")
    query = select(*(decision.c[column] for column in columns)).where(decision.c.rollout == name)
    return [
        Decided(
            row.at,
            row.wave,
            row.kind,
            row.evidence,
            row.inputs["event"],
            by_person=row.inputs["decision"] is None,
            reason=row.reason,
        )
        for row in tx.execute(query.order_by(decision.c.id))
    ]


def facts(tx: Transaction, name: str) -> dict[str, DeviceFacts]:
    """Return what is known today of a rollout's devices, as selectors of waves see it."""
    mine = select(execution.c.device_id).where(execution.c.rollout == name)
    labels: dict[str, dict[str, str]] = {}
    for row in tx.execute(select(device_label).where(device_label.c.device_id.in_(mine))):
        labels.setdefault(row.device_id, {})[row.key] = row.value
    columns = (device.c.id, device.c.state, device.c.blueprint, device.c.hardware)
    return {
        row.id: DeviceFacts(
            DeviceId(row.id),
            state=row.state,
            blueprint=row.blueprint,
            hardware=row.hardware,
            labels=labels.get(row.id, {}),
        )
        for row in tx.execute(select(*columns).where(device.c.id.in_(mine)))
    }
