"""The database's own ledger of what it committed, kept by triggers, and the rows beside it.

A trigger writes in the transaction that it watches: what is in the ledger was committed, all of it
is there, and of one rollout it is in the order of the commits, since whoever moves its rows holds
its lock. No poll can be as sure of "at any instant".
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, text

from control_plane.bootstrap import Application
from control_plane.store import rollups, tallies
from control_plane.store.database import Transaction
from tests.chaos.evidence import (
    Entry,
    Ordered,
    Part,
    PartMoved,
    Ran,
    RolloutMoved,
    SaidKey,
    Step,
    Summary,
    TallyKey,
    Trial,
)

_PART = {
    "id": "{new}.id",
    "rollout": "{new}.rollout",
    "device": "{new}.device_id",
    "wave": "{new}.wave",
    "blueprint": "{new}.blueprint",
    "before": "{old}",
    "after": "{new}.state",
    "offered_at": "{new}.offered_at",
}
_ORDER = {
    "device": "{new}.device_id",
    "generation": "{new}.generation",
    "action": "{new}.action",
    "execution": "{new}.execution_id",
    "rollout": "{new}.rollout",
}
_WAVE = {
    "postgresql": "({row}.machine->>'wave')::int",
    "sqlite": "json_extract({row}.machine, '$.wave')",
}
_KINDS: dict[str, type[Entry]] = {"part": PartMoved, "rollout": RolloutMoved, "order": Ordered}


def install(app: Application) -> None:
    """Have the database keep the ledger from now on."""
    with app.database.transaction() as tx:
        dialect = tx.dialect.name
        number = "BIGSERIAL" if dialect == "postgresql" else "INTEGER"
        tx.execute(text(f"CREATE TABLE ledger (n {number} PRIMARY KEY, kind TEXT, body TEXT)"))
        for statement in _triggers(dialect):
            tx.exec_driver_sql(statement)


def _triggers(dialect: str) -> Iterator[str]:
    old, new = (_WAVE[dialect].format(row=row) for row in ("OLD", "NEW"))
    wave = {"name": "NEW.name", "state": "NEW.state", "wave": new}
    changed = f"OLD.state <> NEW.state OR {old} <> {new}"
    moved = "OLD.state <> NEW.state"
    newer = "OLD.generation <> NEW.generation"
    begun = "NEW.generation > 0"
    planned, part = _facts(_PART, "''"), _facts(_PART, "OLD.state")
    yield from _trigger(dialect, "part", "INSERT ON execution", "", planned)
    yield from _trigger(dialect, "part", "UPDATE ON execution", moved, part)
    yield from _trigger(dialect, "rollout", "INSERT ON rollout", "", wave)
    yield from _trigger(dialect, "rollout", "UPDATE ON rollout", changed, wave)
    yield from _trigger(dialect, "order", "INSERT ON desired", begun, _facts(_ORDER))
    yield from _trigger(dialect, "order", "UPDATE ON desired", newer, _facts(_ORDER))


def _facts(facts: dict[str, str], old: str = "") -> dict[str, str]:
    return {name: value.format(new="NEW", old=old) for name, value in facts.items()}


def _trigger(
    dialect: str, kind: str, event: str, when: str, facts: dict[str, str]
) -> Iterator[str]:
    pairs = ", ".join(f"'{name}', {value}" for name, value in facts.items())
    make = "json_build_object" if dialect == "postgresql" else "json_object"
    write = f"INSERT INTO ledger (kind, body) VALUES ('{kind}', {make}({pairs}))"  # noqa: S608 - our own words
    name = f"ledger_{kind}_{event.split(maxsplit=1)[0].lower()}"
    only = f"WHEN ({when})" if when else ""
    head = f"CREATE TRIGGER {name} AFTER {event} FOR EACH ROW {only}"
    if dialect == "postgresql":
        write = write.replace("))", ")::text)")
        yield (
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN {write}; RETURN NULL; END $$"
        )
        yield f"{head} EXECUTE FUNCTION {name}()"
    else:
        yield f"{head} BEGIN {write}; END"


# --- reading ------------------------------------------------------------------------------------


def entries(tx: Connection) -> list[Entry]:
    """Return the ledger; nobody may be writing any more."""
    found: list[Entry] = []
    for kind, body in tx.execute(text("SELECT kind, body FROM ledger ORDER BY n")):
        facts = json.loads(body)
        if kind == "part":
            facts["offered_at"] = _seconds(facts["offered_at"])
        found.append(_KINDS[kind](**facts))
    return found


def _seconds(at: str | None) -> float:
    if at is None:
        return 0.0
    read = datetime.fromisoformat(at)
    return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()


def rows(app: Application) -> dict[str, Any]:
    """Return what the database says, as fields of `Evidence`."""
    with app.database.reading() as tx:
        run = _runner(tx)
        labels = "SELECT device_id, value FROM device_label WHERE key = 'site'"
        return {
            "ledger": entries(tx),
            "sites": dict(run(labels)),
            "seen": frozenset(
                SaidKey(*row) for row in run("SELECT device_id, boot, seq FROM report_seen")
            ),
            "parts": {
                row[0]: Part(*row[1:])
                for row in run(
                    "SELECT id, rollout, device_id, wave, blueprint, state FROM execution"
                )
            },
            "tallies": _tallies(tx),
            "steps": [
                Step(*row)
                for row in run(
                    'SELECT execution_id, "before", "after" FROM execution_event ORDER BY id'
                )
            ],
            "history": [
                Ran(*row)
                for row in run(
                    "SELECT device_id, digest, COALESCE(execution_id, '') FROM device_history"
                    " WHERE kind = 'active' ORDER BY id"
                )
            ],
            "trials": [
                Trial(SaidKey(*row[:3]), *row[3:])
                for row in run(
                    "SELECT b.device_id, b.boot, b.seq, b.execution_id, b.verdict, m.ratio"
                    " FROM bench b LEFT JOIN bench_metric m"
                    " ON m.bench_id = b.id AND m.name = 'token_ms'"
                )
            ],
            "summaries": {
                (row[0], row[1], row[2], row[3]): Summary(row[4], row[5])
                for row in run(
                    "SELECT rollout, wave, blueprint, metric, n, sum_log FROM bench_tally"
                )
            },
            "wanted": dict(run("SELECT device_id, generation FROM desired WHERE generation > 0")),
            "decided": Counter(
                (row[0], row[1], row[2]) for row in run("SELECT rollout, wave, kind FROM decision")
            ),
            "drift": {f"{facet} {value}": n for (facet, value), n in rollups.drift(tx).items()},
        }


def _tallies(tx: Connection) -> Counter[TallyKey]:
    found: Counter[TallyKey] = Counter()
    for row in tx.execute(text("SELECT rollout, wave, blueprint, state, n FROM tally")):
        found[row[0], row[1], row[2], row[3]] = row[4]
    return +found


def _runner(tx: Connection) -> Any:
    def run(query: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in tx.execute(text(query))]

    return run


def glimpse(app: Application, names: list[str]) -> list[str]:
    """Compare counts with rows at one moment, whatever is going on; return what is wrong.

    Raises what the database raises when it is away.
    """
    with app.database.rehearsing() as tx:
        if tx.dialect.name == "postgresql":
            tx.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        wrong = [
            f"tallies: for a moment those of {name} were {counted}, the rows {rows_are}"
            for name in names
            if (counted := tallies.read(tx, name)) != (rows_are := tallies.recount(tx, name))
        ]
        drift = rollups.drift(tx)
    return wrong + (
        [f"tallies: for a moment the fleet's counts were off by {drift}"] if drift else []
    )


def waiting(tx: Transaction) -> int:
    """Return how many messages are in the outbox."""
    return int(tx.execute(text("SELECT count(*) FROM outbox")).scalar_one())


def wanted(tx: Transaction) -> dict[str, int]:
    """Return the generation of each device's newest order; 0 for a device without one."""
    query = (
        "SELECT device.id, coalesce(desired.generation, 0) FROM device"
        " LEFT JOIN desired ON desired.device_id = device.id"
    )
    return {row[0]: row[1] for row in tx.execute(text(query))}


def state(tx: Transaction, name: str) -> str:
    """Return a rollout's state; empty for none."""
    found = tx.execute(text("SELECT state FROM rollout WHERE name = :name"), {"name": name})
    return str(found.scalar() or "")


def value(tx: Transaction, query: str, facts: Mapping[str, str]) -> int:
    """Return the one number that a query finds."""
    return int(tx.execute(text(query), facts).scalar_one())
