"""What the judge judges: the database's own ledger, its rows, and what the devices saw and said."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class SaidKey(NamedTuple):
    """Names a report."""

    device: str
    boot: int
    seq: int


class Said(NamedTuple):
    """A report that a device has made; of a trial `state` is empty and `reason` its verdict."""

    execution: str
    generation: int
    state: str
    reason: str
    digest: str


class Heard(NamedTuple):
    """An order that reached a device."""

    device: str
    generation: int
    action: str
    execution: str
    rollout: str


# --- the ledger: what was committed, in its order ---------------------------------------------


class PartMoved(NamedTuple):
    """A device's part in a rollout changed its state; `before` is empty when it was planned."""

    id: str
    rollout: str
    device: str
    wave: int
    blueprint: str
    before: str
    after: str
    offered_at: float


class RolloutMoved(NamedTuple):
    """A rollout changed its state, or opened a wave; `wave` is -1 before the first."""

    name: str
    state: str
    wave: int


class Ordered(NamedTuple):
    """A device was given a new order."""

    device: str
    generation: int
    action: str
    execution: str
    rollout: str


Entry = PartMoved | RolloutMoved | Ordered


# --- rows -------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A row of `execution`."""

    rollout: str
    device: str
    wave: int
    blueprint: str
    state: str


class Step(NamedTuple):
    """A row of `execution_event`."""

    execution: str
    before: str
    after: str


class Ran(NamedTuple):
    """A row of `device_history`: from here on the device ran this."""

    device: str
    digest: str
    execution: str


class Trial(NamedTuple):
    """A row of `bench`, with the ratio of its time per token."""

    key: SaidKey
    execution: str
    verdict: str
    ratio: float | None


class Summary(NamedTuple):
    """A row of `bench_tally`, in part."""

    n: int
    sum_log: float


TallyKey = tuple[str, int, str, str]
"""Rollout, wave, blueprint, and state; or metric."""


class Rules(NamedTuple):
    """What a rollout's document promises."""

    max_in_flight: int
    per_minute: int
    max_failures: int
    a_site: int
    """Devices of one site in flight at once."""


@dataclass
class Evidence:
    """All of it, when nothing is under way any more."""

    rules: Mapping[str, Rules] = field(default_factory=dict)
    sites: Mapping[str, str] = field(default_factory=dict)
    ledger: Sequence[Entry] = ()

    said: Mapping[SaidKey, Said] = field(default_factory=dict)
    acked: frozenset[SaidKey] = frozenset()
    heard: Sequence[Heard] = ()
    applied: Mapping[str, int] = field(default_factory=dict)
    """The newest generation that each device has carried out."""
    runs: Mapping[str, str] = field(default_factory=dict)
    """The digest of what each device runs."""

    seen: frozenset[SaidKey] = frozenset()
    parts: Mapping[str, Part] = field(default_factory=dict)
    tallies: Counter[TallyKey] = field(default_factory=Counter)
    steps: Sequence[Step] = ()
    history: Sequence[Ran] = ()
    trials: Sequence[Trial] = ()
    summaries: Mapping[TallyKey, Summary] = field(default_factory=dict)
    wanted: Mapping[str, int] = field(default_factory=dict)
    """The generation of each device's newest order."""
    decided: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    """Decisions by rollout, wave and kind."""
    drift: Mapping[str, int] = field(default_factory=dict)
    """Counts of the fleet that are not its rows, and by how much."""
    glimpses: Sequence[str] = ()
    """What was wrong at moments in between, one line each."""
