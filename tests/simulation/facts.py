"""What the database says, read past the code under test, after each commit."""

import json
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

STEPS = ("QUEUED", "OFFERED", "DOWNLOADING", "STAGED", "BENCHMARKING", "ACTIVATING", "SOAKING")
IN_FLIGHT = frozenset(STEPS[1:])
ENDED = frozenset({"SUCCEEDED", "REVERTED", "ABORTED"})


class Part(NamedTuple):
    """One execution."""

    id: str
    rollout: str
    device: str
    wave: int
    blueprint: str
    digest: str
    previous: str
    state: str
    reason: str
    generation: int
    revert_generation: int
    reverted: int
    offered_at: str | None


class Wanted(NamedTuple):
    """One device's newest order."""

    device: str
    generation: int
    action: str
    digest: str
    execution: str


@dataclass(frozen=True)
class Rollout:
    """One rollout: its state, what its machine keeps, and what its document says."""

    name: str
    state: str
    machine: dict[str, Any]
    spec: dict[str, Any]
    order: tuple[str, str]
    """Sorts by age."""
    pending: str = ""
    """What is left of taking devices back, as the database has it."""
    authors: frozenset[str] = frozenset()

    @property
    def halted(self) -> set[str]:
        return set(self.machine.get("halted", ()))

    @property
    def wave(self) -> int:
        return int(self.machine.get("wave", -1))

    @property
    def priority(self) -> int:
        return int(self.spec.get("priority", 50))

    @property
    def begun(self) -> bool:
        return self.state != "DRAFT" and self.state not in ENDED

    def pace(self) -> tuple[dict[str, Any], bool]:
        """Return the pace of the newest wave, and whether it is the wave's own."""
        whole, own = self.spec["pace"], self.spec["waves"][self.wave].get("pace")
        return (whole, False) if own is None else ({**whole, **own}, True)


@dataclass
class Facts:
    """The rows that invariants speak of."""

    parts: dict[str, Part] = field(default_factory=dict)
    rollouts: dict[str, Rollout] = field(default_factory=dict)
    wanted: dict[str, Wanted] = field(default_factory=dict)
    tallies: Counter[tuple[str, int, str, str]] = field(default_factory=Counter)

    def of(self, rollout: str) -> list[Part]:
        return [part for part in self.parts.values() if part.rollout == rollout]


_PARTS = (
    "SELECT id, rollout, device_id, wave, blueprint, digest, previous, state, reason, generation,"
    " revert_generation, reverted, offered_at FROM execution"
)
_ROLLOUTS = (
    "SELECT name, state, machine, spec, created_at, pending, created_by, edited_by FROM rollout"
)
_WANTED = (
    "SELECT device_id, generation, action, digest, execution_id FROM desired WHERE generation > 0"
)
_TALLIES = "SELECT rollout, wave, blueprint, state, n FROM tally WHERE n > 0"
_JOINABLE = (
    "SELECT d.id FROM device d JOIN device_label l ON l.device_id = d.id"
    " JOIN bundle b ON b.blueprint = d.blueprint AND b.version = ?"
    " WHERE d.state = 'active' AND l.key = 'ring' AND l.value = 'on' AND NOT EXISTS"
    " (SELECT 1 FROM execution e JOIN rollout r ON r.name = e.rollout, rollout mine"
    "  WHERE mine.name = ? AND e.device_id = d.id AND e.offered_at IS NOT NULL"
    "  AND r.priority >= mine.priority AND r.created_at > mine.created_at)"
)
_SEEN = "SELECT rowid, device_id, boot, seq FROM report_seen WHERE rowid > ? ORDER BY rowid"


class Reader:
    """Reads facts; what has not changed since is not parsed again."""

    def __init__(self, raw: sqlite3.Connection) -> None:
        self._raw = raw
        self._rollouts: dict[tuple[Any, ...], Rollout] = {}
        self._seen = 0

    def read(self) -> Facts:
        """Return what the database says now."""
        run = self._raw.execute
        facts = Facts()
        for row in run(_PARTS):
            facts.parts[row[0]] = Part(*row)
        for row in run(_ROLLOUTS):
            facts.rollouts[row[0]] = self._rollout(row)
        for row in run(_WANTED):
            facts.wanted[row[0]] = Wanted(*row)
        for rollout, wave, blueprint, state, n in run(_TALLIES):
            facts.tallies[rollout, wave, blueprint, state] = n
        return facts

    def _rollout(self, row: tuple[Any, ...]) -> Rollout:
        found = self._rollouts.get(row)
        if found is None:
            name, state, machine, spec, created_at, pending, *authors = row
            found = Rollout(
                name, state, json.loads(machine), json.loads(spec), (created_at, name),
                pending, frozenset(authors) - {""},
            )  # fmt: skip
            self._rollouts[row] = found
        return found

    def fresh_reports(self) -> list[tuple[str, int, int]]:
        """Return the keys of the reports that were counted since the last call."""
        rows = self._raw.execute(_SEEN, (self._seen,)).fetchall()
        if rows:
            self._seen = rows[-1][0]
        return [(device, boot, seq) for _, device, boot, seq in rows]

    def is_seen(self, device: str, boot: int, seq: int) -> bool:
        query = "SELECT 1 FROM report_seen WHERE device_id = ? AND boot = ? AND seq = ?"
        return self._raw.execute(query, (device, boot, seq)).fetchone() is not None

    def joinable(self, rollout: Rollout) -> set[str]:
        """Return the devices that a dynamic rollout takes in: those no newer one has taken over."""
        asked = rollout.spec["version"], rollout.name
        return {row[0] for row in self._raw.execute(_JOINABLE, asked)}

    def count(self, table: str) -> int:
        return int(self._raw.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608 - a name of ours
