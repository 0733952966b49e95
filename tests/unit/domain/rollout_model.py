"""A rollout and its devices in memory: carries decisions out as the store does."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from agent.protocol.words import ExecutionState
from control_plane.domain import gates
from control_plane.domain.gates import Group, Measured
from control_plane.domain.rollout import (
    IN_FLIGHT,
    TERMINAL,
    GatePolicy,
    Pace,
    RolloutSpec,
    RolloutState,
    Timeouts,
    WaveSpec,
    moves_forward,
)
from control_plane.domain.rollout_machine import advance
from control_plane.domain.rollout_view import (
    Approve,
    Decision,
    EndWave,
    Event,
    Join,
    Machine,
    Offer,
    Room,
    SendBack,
    Tick,
    TimeOut,
    View,
    Withdraw,
)
from control_plane.domain.windows import Opening

E = ExecutionState
ACTIVATED = frozenset({E.ACTIVATING, E.SOAKING, E.SUCCEEDED, E.TIMED_OUT})
GOOD = Measured(n=1, sum_log=0.0, sum_log2=0.0, sum_var=1e-6)


@dataclass(frozen=True)
class Part:
    """One device's part."""

    wave: int
    blueprint: str
    state: ExecutionState = E.QUEUED
    silent: bool = False
    to_return: bool = False
    site: str = ""


OPEN, CLOSED = Opening(-1e9, 1e9), Opening(1e9, 2e9)


@dataclass(frozen=True)
class World:
    """A rollout with all its devices."""

    spec: RolloutSpec
    parts: tuple[Part, ...]
    machine: Machine = field(default_factory=Machine)
    now: float = 0.0
    window: Opening = OPEN
    """The download window, where the policy asks for one."""
    approvals: frozenset[tuple[int, str]] = frozenset()
    """Who has approved which wave; "author" wrote the rollout."""
    elsewhere: Mapping[str, int] = field(default_factory=dict)
    """Devices that other rollouts have in flight, by site."""
    newcomers: int = 0

    @cached_property
    def view(self) -> View:
        keys = sorted({(part.wave, part.blueprint) for part in self.parts})
        overdue = sum(part.silent and part.state in IN_FLIGHT for part in self.parts)
        to_return = sum(part.to_return for part in self.parts)
        groups = tuple(self._group(*key) for key in keys)
        asked = self.spec.windows.download is not None
        return View(
            self.spec,
            self.machine,
            groups,
            overdue,
            to_return,
            download=self.window if asked else None,
            approvals=self._approved(self.machine.wave + 1),
            authors=("author",),
            rooms=self._rooms() if self.spec.budgets else None,
            newcomers=self.newcomers,
        )

    def _approved(self, wave: int) -> tuple[str, ...]:
        return tuple(sorted(who for of, who in self.approvals if of == wave))

    def _rooms(self) -> tuple[Room, ...]:
        halted = self.machine.halted
        waves = range(len(self.spec.waves))
        return tuple(Room(len(self._free(w, halted)), text="a site is full") for w in waves)

    def in_flight_at(self, site: str) -> int:
        """Return how many devices of a site are disturbed, by whichever rollout."""
        mine = sum(part.site == site and part.state in IN_FLIGHT for part in self.parts)
        return mine + self.elsewhere.get(site, 0)

    def _free(self, wave: int, halted: frozenset[str]) -> list[int]:
        """Return the queued devices of a wave that the budget, if there is one, has room for."""
        most = self.spec.budgets[0].max if self.spec.budgets else len(self.parts)
        taken: dict[str, int] = {}
        free: list[int] = []
        for i, part in enumerate(self.parts):
            if part.wave != wave or part.state is not E.QUEUED or part.blueprint in halted:
                continue
            busy = self.in_flight_at(part.site) + taken.get(part.site, 0)
            if not part.site or busy < most:
                taken[part.site] = taken.get(part.site, 0) + 1
                free.append(i)
        return free

    def _group(self, wave: int, blueprint: str) -> Group:
        mine = [p for p in self.parts if (p.wave, p.blueprint) == (wave, blueprint)]
        counts: dict[ExecutionState, int] = {}
        measured: dict[str, Measured] = {}
        for part in mine:
            counts[part.state] = counts.get(part.state, 0) + 1
            if part.state is E.SUCCEEDED:
                for name in (gates.TRIALS, *self.spec.gates.tolerance):
                    measured[name] = measured.get(name, Measured()).merged(GOOD)
        return Group(wave, blueprint, counts, measured)

    def step(self, event: Event, now: float | None = None) -> "tuple[World, tuple[Decision, ...]]":
        """Apply one event, once."""
        machine, decisions = advance(self.view, event, self.now if now is None else now)
        world = replace(self, machine=machine)
        if isinstance(event, Approve):  # as the store keeps it, once the machine has taken it
            given = (self.machine.wave + 1, event.who)
            world = replace(world, approvals=self.approvals | {given})
        for decision in decisions:
            world = world.carry_out(decision)
        return world, decisions

    def settle(self, now: float | None = None) -> "tuple[World, tuple[Decision, ...]]":
        """Tick until nothing changes."""
        world, made = self, tuple[Decision, ...]()
        while True:
            after, decisions = world.step(Tick(), now)
            made += decisions
            if after == world:
                return world, made
            world = after

    def carry_out(self, decision: Decision) -> "World":
        match decision:
            case Offer(wave, n, halted, _):
                next_up = self._free(wave, halted)
                return self.put({i: replace(self.parts[i], state=E.OFFERED) for i in next_up[:n]})
            case Withdraw(for_good, blueprint):
                return self._withdraw(for_good=for_good, blueprint=blueprint)
            case TimeOut():
                return self.put(
                    {
                        i: replace(p, state=E.TIMED_OUT, silent=False)
                        for i, p in enumerate(self.parts)
                        if p.silent and p.state in IN_FLIGHT
                    }
                )
            case EndWave(wave, halted):
                late = {
                    i: replace(p, state=E.TIMED_OUT, silent=False)
                    for i, p in enumerate(self.parts)
                    if p.wave == wave and p.state not in TERMINAL and p.blueprint not in halted
                }
                return self.put(late)
            case Join(n):
                new = [Part(len(self.spec.waves) - 1, "x") for _ in range(n)]
                return replace(self, parts=(*self.parts, *new), newcomers=0)
            case SendBack(blueprint=blueprint):
                back = {
                    i: replace(p, to_return=True)
                    for i, p in enumerate(self.parts)
                    if p.state in ACTIVATED and blueprint in ("", p.blueprint)
                }
                return self.put(back)._withdraw(for_good=True, blueprint=blueprint)
            case _:
                return self

    def _withdraw(self, *, for_good: bool, blueprint: str) -> "World":
        mine = {i: p for i, p in enumerate(self.parts) if blueprint in ("", p.blueprint)}
        if for_good:
            left = {i: p for i, p in mine.items() if p.state not in TERMINAL}
            return self.put({i: replace(p, state=E.CANCELED) for i, p in left.items()})
        offered = {i: p for i, p in mine.items() if p.state is E.OFFERED}
        return self.put({i: replace(p, state=E.QUEUED, silent=False) for i, p in offered.items()})

    def put(self, changed: Mapping[int, Part]) -> "World":
        parts = tuple(changed.get(i, part) for i, part in enumerate(self.parts))
        return replace(self, parts=parts)

    def report(self, index: int, state: ExecutionState) -> "World":
        """A device reports; the store lets only forward moves through."""
        part = self.parts[index]
        if part.state is E.QUEUED or not moves_forward(part.state, state):
            return self
        return self.put({index: replace(part, state=state)})

    def says(self, index: int, **facts: bool) -> "World":
        part = self.parts[index]
        silent = facts.get("silent", part.silent)
        to_return = facts.get("to_return", part.to_return)
        return self.put({index: replace(part, silent=silent, to_return=to_return)})

    def states(self) -> list[ExecutionState]:
        return [part.state for part in self.parts]


def spec(**changes: Any) -> RolloutSpec:
    """Two waves, no soak, one device in flight, no failure allowed."""
    plain = RolloutSpec(
        name="r",
        model="m",
        version="2",
        waves=(WaveSpec("canary", count=1), WaveSpec("everyone", percent=100)),
        soak_s=0.0,
        pace=Pace(max_in_flight=10, per_minute=1000),
        gates=GatePolicy(tolerance={"token_ms": 0.1}),
        timeouts=Timeouts(silent_s=100.0, execution_s=1000.0),
    )
    return replace(plain, **changes)


__all__ = ["E", "Part", "RolloutState", "World", "spec"]
