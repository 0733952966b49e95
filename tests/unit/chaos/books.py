"""Evidence of a small fleet through two rollouts, one good and one that a gate stops; all in order.

Tests change one thing in it and ask the judge.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

from control_plane.domain.gates import TRIALS
from tests.chaos.evidence import (
    Entry,
    Evidence,
    Heard,
    Ordered,
    Part,
    PartMoved,
    Ran,
    RolloutMoved,
    Rules,
    Said,
    SaidKey,
    Step,
    Summary,
    Trial,
)

GOOD, BAD, DIGEST, OLD = "good", "bad", "new", "old"
BLUEPRINT, SITE = "board", "vie"
BOOT = 7
RATIO = 1.01


@dataclass
class Book:
    """What happens, written down as the database and the devices would."""

    ledger: list[Entry] = field(default_factory=list)
    said: dict[SaidKey, Said] = field(default_factory=dict)
    heard: list[Heard] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    history: list[Ran] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    parts: dict[str, Part] = field(default_factory=dict)
    decided: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    generations: dict[str, int] = field(default_factory=dict)
    at: float = 1000.0

    def plan(self, rollout: str, *waves: int) -> None:
        """Plan a rollout: how many devices each wave has."""
        self.rollout(rollout, "DRAFT", -1)
        number = 0
        for wave, n in enumerate(waves):
            for _ in range(n):
                device = f"d{number}"
                number += 1
                part = Part(rollout, device, wave, BLUEPRINT, "QUEUED")
                self.parts[f"{rollout}/{device}"] = part
                self.ledger.append(self._moved(f"{rollout}/{device}", "", "QUEUED"))

    def rollout(self, name: str, state: str, wave: int) -> None:
        self.ledger.append(RolloutMoved(name, state, wave))

    def opens(self, name: str, wave: int) -> None:
        self.decided[name, wave, "open_wave"] += 1
        self.rollout(name, "RUNNING", wave)

    def offer(self, execution: str) -> None:
        self.at += 1
        self.move(execution, "OFFERED")
        self.order(self.parts[execution].device, "run", execution)

    def order(self, device: str, action: str, execution: str) -> None:
        self.generations[device] = self.generations.get(device, 0) + 1
        words = (action, execution, self.parts[execution].rollout)
        self.ledger.append(Ordered(device, self.generations[device], *words))
        self.heard.append(Heard(device, self.generations[device], *words))

    def move(self, execution: str, after: str) -> None:
        """Move a row, with its line of history."""
        before = self.parts[execution].state
        self.parts[execution] = self.parts[execution]._replace(state=after)
        self.ledger.append(self._moved(execution, before, after))
        self.steps.append(Step(execution, before, after))

    def report(self, execution: str, state: str, digest: str = OLD) -> SaidKey:
        """Let a device say it, and apply it."""
        key = self.say(execution, state, digest)
        self.move(execution, state)
        return key

    def say(self, execution: str, state: str, digest: str = OLD, reason: str = "") -> SaidKey:
        device = self.parts[execution].device
        key = SaidKey(device, BOOT, len(self.said))
        generation = self.generations.get(device, 0)
        self.said[key] = Said(execution, generation, state, reason, digest)
        return key

    def trial(self, execution: str) -> None:
        key = self.say(execution, "", DIGEST, "pass")
        self.trials.append(Trial(key, execution, "pass", RATIO))

    def succeed(self, execution: str) -> None:
        self.offer(execution)
        self.report(execution, "DOWNLOADING")
        self.report(execution, "BENCHMARKING")
        self.trial(execution)
        self.report(execution, "SOAKING", DIGEST)
        self.history.append(Ran(self.parts[execution].device, DIGEST, execution))
        self.report(execution, "SUCCEEDED", DIGEST)

    def fail(self, execution: str) -> None:
        self.report(execution, "DOWNLOADING")
        self.report(execution, "ROLLED_BACK")

    def evidence(self) -> Evidence:
        seen = frozenset(self.said)
        groups = Counter((p.rollout, p.wave, p.blueprint) for p in self._tried())
        summaries = {(*group, TRIALS): Summary(n, 0.0) for group, n in groups.items()}
        for group, n in groups.items():
            summaries[(*group, "token_ms")] = Summary(n, n * math.log(RATIO))
        return Evidence(
            rules={name: Rules(2, 10, 0, 2) for name in (GOOD, BAD)},
            sites=dict.fromkeys(self.generations, SITE),
            ledger=self.ledger,
            said=self.said,
            acked=seen,
            heard=self.heard,
            applied=dict(self.generations),
            runs={line.device: line.digest for line in self.history},
            seen=seen,
            parts=self.parts,
            tallies=Counter((p.rollout, p.wave, p.blueprint, p.state) for p in self.parts.values()),
            steps=self.steps,
            history=self.history,
            trials=self.trials,
            summaries=summaries,
            wanted=dict(self.generations),
            decided=self.decided,
        )

    def _tried(self) -> list[Part]:
        return [self.parts[trial.execution] for trial in self.trials]

    def _moved(self, execution: str, before: str, after: str) -> PartMoved:
        part = self.parts[execution]
        at = self.at if after == "OFFERED" else 0.0
        facts = part.rollout, part.device, part.wave, part.blueprint
        return PartMoved(execution, *facts, before, after, at)


def book() -> Book:
    """Return a whole story: `good` succeeds in two waves, `bad` is halted at its first failure."""
    made = Book()
    made.plan(GOOD, 1, 2)
    made.opens(GOOD, 0)
    made.succeed(f"{GOOD}/d0")
    made.opens(GOOD, 1)
    made.succeed(f"{GOOD}/d1")
    made.succeed(f"{GOOD}/d2")
    made.rollout(GOOD, "SUCCEEDED", 1)
    made.plan(BAD, 3)
    made.opens(BAD, 0)
    made.offer(f"{BAD}/d0")
    made.offer(f"{BAD}/d1")
    made.fail(f"{BAD}/d0")
    made.move(f"{BAD}/d1", "QUEUED")
    made.order("d1", "hold", f"{BAD}/d1")
    made.decided[BAD, 0, "halt"] += 1
    made.rollout(BAD, "HALTED", 0)
    return made
