"""Trials as devices sent them, and their mergeable summaries per wave and blueprint."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Row, TextClause, bindparam, select, text

from agent.protocol.messages import Bench, Metric
from agent.protocol.words import Verdict
from control_plane.domain import gates
from control_plane.domain.gates import Measured
from control_plane.store.bulk import as_records, chunks, records
from control_plane.store.database import Transaction
from control_plane.store.progress import Part
from control_plane.store.schema import bench, bench_metric, bench_tally, bundle

Summaries = dict[str, Measured]


@dataclass(frozen=True)
class BenchRow:
    """One stored trial with its metrics."""

    id: int
    device: str
    rollout: str
    wave: int
    blueprint: str
    candidate: str
    incumbent: str
    verdict: str
    at: datetime
    metrics: list[dict[str, Any]]


class Trial(NamedTuple):
    """A reported trial with the part that it belongs to."""

    part: Part
    report: Bench
    conclusive: bool
    """Whether it counts, if it is the newest of its execution."""

    @property
    def order(self) -> tuple[int, int]:
        return self.report.boot, self.report.seq

    @property
    def key(self) -> tuple[str, int, int]:
        """Return what no other trial has."""
        return self.part.device, *self.order


def unknown(tx: Transaction, trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that are not stored, each once."""
    if not trials:
        return []
    rows = [{"device": one[0], "boot": one[1], "seq": one[2]} for one in (t.key for t in trials)]
    known = {tuple(row) for row in tx.execute(_known(tx.dialect.name), {"rows": as_records(rows)})}
    return list({trial.key: trial for trial in trials if trial.key not in known}.values())


def add(tx: Transaction, now: datetime, trials: Sequence[Trial]) -> None:
    """Store trials with their metrics."""
    if not trials:
        return
    values = {"rows": as_records([_row(trial) for trial in trials]), "at": now}
    made = {tuple(row[1:]): row[0] for row in tx.execute(_add(tx.dialect.name), values).all()}
    metrics = [
        _metric(made[trial.key], metric)
        for trial in trials
        for metric in {metric.name: metric for metric in trial.report.metrics}.values()
    ]
    if metrics:
        tx.execute(_add_metrics(tx.dialect.name), {"rows": as_records(metrics)})


def counted(
    tx: Transaction, executions: Collection[str]
) -> dict[str, tuple[tuple[int, int], Summaries]]:
    """Return (boot, seq) and summary of each execution's newest conclusive trial."""
    if not executions:
        return {}
    wanted = as_records([{"part": one} for one in sorted(executions)])
    # In this order the newest of an execution is what stays.
    newest = {
        row.execution_id: row for row in tx.execute(_newest(tx.dialect.name), {"rows": wanted})
    }
    measured: dict[int, dict[str, tuple[float | None, float | None, str]]] = {}
    for some in chunks(sorted(row.id for row in newest.values())):
        for row in tx.execute(select(bench_metric).where(bench_metric.c.bench_id.in_(some))):
            measured.setdefault(row.bench_id, {})[row.name] = (*numbers(row), row.verdict)
    return {
        part: (
            (row.boot, row.seq),
            summed(row.verdict, row.incumbent, measured.get(row.id, {})),
        )
        for part, row in newest.items()
    }


def summaries(report: Bench) -> Summaries:
    """Return what one conclusive trial adds to the tallies."""
    measured = {m.name: (*numbers(m), m.verdict.value) for m in report.metrics}
    return summed(report.verdict.value, report.incumbent, measured)


def count(tx: Transaction, added: Sequence[tuple[Part, Mapping[str, Measured]]]) -> None:
    """Add to the tallies of the waves and blueprints of these parts."""
    sums: dict[tuple[str, int, str, str], Measured] = {}
    for part, measured in added:
        for name, one in measured.items():
            key = (part.rollout, part.wave, part.blueprint, name)
            sums[key] = sums[key].merged(one) if key in sums else one
    rows = [
        {"rollout": key[0], "wave": key[1], "blueprint": key[2], "metric": key[3], **asdict(one)}
        for key, one in sorted(sums.items())
    ]
    if rows:
        tx.execute(_count(tx.dialect.name), {"rows": as_records(rows)})


# Built once: every tick of every rollout reads them.
_TALLIES = (
    select(bench_tally)
    .where(bench_tally.c.rollout == bindparam("of"), bench_tally.c.n > 0)
    .order_by(*bench_tally.primary_key.columns)
)


def tallies(tx: Transaction, name: str) -> dict[tuple[int, str], Summaries]:
    """Return the summaries by wave and blueprint."""
    found: dict[tuple[int, str], Summaries] = {}
    for row in tx.execute(_TALLIES, {"of": name}):
        one = Measured(row.n, row.sum_log, row.sum_log2, row.sum_var, row.regressed)
        found.setdefault((row.wave, row.blueprint), {})[row.metric] = one
    return found


def page(
    tx: Transaction, *, rollout: str, device: str, before_id: int | None, limit: int
) -> list[BenchRow]:
    """Return trials, the newest first."""
    query = select(bench).order_by(bench.c.id.desc()).limit(limit)
    if rollout:
        query = query.where(bench.c.rollout == rollout)
    if device:
        query = query.where(bench.c.device_id == device)
    if before_id is not None:
        query = query.where(bench.c.id < before_id)
    rows = tx.execute(query).all()
    metrics: dict[int, list[dict[str, Any]]] = {row.id: [] for row in rows}
    for some in chunks(list(metrics)):
        wanted = select(bench_metric).where(bench_metric.c.bench_id.in_(some))
        for found in tx.execute(
            wanted.order_by(bench_metric.c.bench_id, bench_metric.c.name)
        ).mappings():
            values = dict(found)
            metrics[values.pop("bench_id")].append(values)
    return [
        BenchRow(
            row.id, row.device_id, row.rollout, row.wave, row.blueprint, row.candidate,
            row.incumbent, row.verdict, row.at, metrics[row.id],
        )
        for row in rows
    ]  # fmt: skip


def versions(tx: Transaction, digests: Sequence[str]) -> dict[str, str]:
    """Return the model version of each bundle that we know."""
    found: dict[str, str] = {}
    for some in chunks(sorted(set(digests))):
        query = select(bundle.c.digest, bundle.c.version).where(bundle.c.digest.in_(some))
        found.update((row[0], row[1]) for row in tx.execute(query))
    return found


def numbers(metric: Metric | Row[Any]) -> tuple[float | None, float | None]:
    """Return what is summed: ratio and upper bound; of golden prompts their share and limit."""
    if metric.name == gates.GOLDEN:
        return metric.candidate, metric.limit
    return metric.ratio, metric.ci_high


def summed(
    verdict: str, incumbent: str, measured: Mapping[str, tuple[float | None, float | None, str]]
) -> Summaries:
    """Return what a trial adds: of each metric its `numbers` and its verdict."""
    bad = int(verdict != Verdict.PASS.value)
    found = {gates.TRIALS: Measured(n=1, regressed=bad)}
    if not incumbent:
        found[gates.FIRST_TRIALS] = Measured(n=1, regressed=bad)
    for name, (value, bound, judged) in measured.items():
        golden = name == gates.GOLDEN
        one = gates.disagreed(value, bound) if golden else gates.paired(value, bound)
        if one is not None and (golden or name in gates.METRICS):
            worse = int(judged != Verdict.PASS.value)
            found[name] = Measured(one.n, one.sum_log, one.sum_log2, one.sum_var, worse)
    return found


def negated(added: Summaries) -> Summaries:
    """Return what takes a trial out of the tallies again."""
    return {
        name: Measured(-one.n, -one.sum_log, -one.sum_log2, -one.sum_var, -one.regressed)
        for name, one in added.items()
    }


def _row(trial: Trial) -> dict[str, Any]:
    part, report = trial.part, trial.report
    return {
        "device": part.device,
        "boot": report.boot,
        "seq": report.seq,
        "part": part.id,
        "rollout": part.rollout,
        "wave": part.wave,
        "blueprint": part.blueprint,
        "candidate": report.candidate,
        "incumbent": report.incumbent,
        "verdict": report.verdict.value,
        "seconds": report.seconds,
        "blocks": report.blocks,
    }


def _metric(bench_id: int, metric: Metric) -> dict[str, Any]:
    return {
        "bench_id": bench_id,
        "name": metric.name,
        "unit": metric.unit,
        "candidate": metric.candidate,
        "incumbent": metric.incumbent,
        "ratio": metric.ratio,
        "ci_low": metric.ci_low,
        "ci_high": metric.ci_high,
        "tolerance": metric.tolerance,
        "bound": metric.limit,
        "n": metric.n,
        "verdict": metric.verdict.value,
    }


# --- the statements ---------------------------------------------------------------------------
# Each reads its batch from one JSON value (`bulk.records`); built once for a database.


@cache
def _known(dialect: str) -> TextClause:
    asked = records(dialect, "rows", device="text", boot="bigint", seq="bigint")
    return text(
        f"SELECT b.device_id, b.boot, b.seq FROM {asked} JOIN bench b"  # noqa: S608 - our own words
        " ON b.device_id = rows.device AND b.boot = rows.boot AND b.seq = rows.seq"
    )


@cache
def _add(dialect: str) -> TextClause:
    trials = records(
        dialect, "rows", device="text", boot="bigint", seq="bigint", part="text", rollout="text",
        wave="integer", blueprint="text", candidate="text", incumbent="text", verdict="text",
        seconds="double precision", blocks="json",
    )  # fmt: skip
    return text(
        "INSERT INTO bench (device_id, boot, seq, execution_id, rollout, wave, blueprint,"  # noqa: S608 - our own words
        " candidate, incumbent, verdict, seconds, blocks, at)"
        " SELECT device, boot, seq, part, rollout, wave, blueprint, candidate, incumbent, verdict,"
        f" seconds, blocks, :at FROM {trials} WHERE true"
        " RETURNING id, device_id, boot, seq"
    ).bindparams(bindparam("at", type_=bench.c.at.type))


@cache
def _add_metrics(dialect: str) -> TextClause:
    number = "double precision"
    metrics = records(
        dialect, "rows", bench_id="bigint", name="text", unit="text", candidate=number,
        incumbent=number, ratio=number, ci_low=number, ci_high=number, tolerance=number,
        bound=number, n="integer", verdict="text",
    )  # fmt: skip
    return text(
        "INSERT INTO bench_metric (bench_id, name, unit, candidate, incumbent, ratio, ci_low,"  # noqa: S608 - our own words
        ' ci_high, tolerance, "limit", n, verdict)'
        " SELECT bench_id, name, unit, candidate, incumbent, ratio, ci_low, ci_high, tolerance,"
        f" bound, n, verdict FROM {metrics}"
    )


@cache
def _newest(dialect: str) -> TextClause:
    wanted = records(dialect, "rows", part="text")
    return text(
        "SELECT b.id, b.execution_id, b.boot, b.seq, b.verdict, b.incumbent"  # noqa: S608 - our own words
        f" FROM {wanted} JOIN bench b ON b.execution_id = rows.part"
        f" WHERE b.verdict <> '{Verdict.INCONCLUSIVE.value}' ORDER BY b.boot, b.seq"
    )


@cache
def _count(dialect: str) -> TextClause:
    number = "double precision"
    sums = records(
        dialect, "rows", rollout="text", wave="integer", blueprint="text", metric="text",
        n="integer", sum_log=number, sum_log2=number, sum_var=number, regressed="integer",
    )  # fmt: skip
    added = ", ".join(
        f"{name} = bench_tally.{name} + excluded.{name}"
        for name in ("n", "sum_log", "sum_log2", "sum_var", "regressed")
    )
    return text(
        "INSERT INTO bench_tally (rollout, wave, blueprint, metric, n, sum_log, sum_log2, sum_var,"  # noqa: S608 - our own words
        " regressed) SELECT rollout, wave, blueprint, metric, n, sum_log, sum_log2, sum_var,"
        f" regressed FROM {sums} WHERE true"
        f" ON CONFLICT (rollout, wave, blueprint, metric) DO UPDATE SET {added}"
    )
