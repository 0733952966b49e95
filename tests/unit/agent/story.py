"""Builders of the machine's values, and a world that carries out effects in memory."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from agent.lifecycle import (
    Activating,
    BundleStaged,
    Cancel,
    CheckSlot,
    Collect,
    Download,
    Effect,
    Event,
    FetchManifest,
    Idle,
    ManifestRead,
    Moment,
    Ordered,
    Probe,
    Probed,
    Report,
    Restore,
    Reverting,
    RunTrial,
    SlotSound,
    Soaking,
    Standing,
    Started,
    State,
    StepFailed,
    Switch,
    Switched,
    Tick,
    TrialEnded,
    Waiting,
)
from agent.machine import step
from agent.protocol.manifest import File, Golden, Limits, Manifest, ModelIO, Runtime, Source
from agent.protocol.messages import ActivationWindow, BundleRef, Order, TrialPolicy
from agent.protocol.words import Action, ExecutionState, Reason, Verdict
from agent.transitions import running, wake_at

DEVICE = "edge-1"
BOARD = "board"
NOW = Moment(wall=1_000_000.0, steady=100.0)
TERMINAL = {
    ExecutionState.SUCCEEDED,
    ExecutionState.FAILED,
    ExecutionState.REJECTED,
    ExecutionState.ROLLED_BACK,
    ExecutionState.CANCELED,
    ExecutionState.SUPERSEDED,
}
# A forged envelope ends nothing, nor does one that is sent again renewed, and a person may take
# back what had succeeded.
NOT_AN_END = {
    Reason.ORDER_SIGNATURE,
    Reason.ORDER_DEVICE,
    Reason.ORDER_EXPIRED,
    Reason.OPERATOR,
}


def later(seconds: float) -> Moment:
    return Moment(NOW.wall + seconds, NOW.steady + seconds)


def bundle(version: str = "1.0.0", release: int = 1, *, model: str = "slm") -> BundleRef:
    return BundleRef(f"digest-of-{model}-{version}", model, version, release, 10)


OLD = bundle("1.0.0", 1)
NEW = bundle("2.0.0", 2)


def manifest(of: BundleRef, **changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "model": of.model,
        "version": of.version,
        "release": of.release,
        "blueprint": BOARD,
        "recipe": "int8",
        "files": [File("model.onnx", of.size, "0" * 64)],
        "runtime": Runtime(),
        "io": ModelIO("causal-lm", "model.onnx", 8, 8, 0, 1, 1, 1),
        "limits": Limits(),
        "golden": Golden("model.onnx", 0.9),
        "quality": {},
        "source": Source("0" * 64, 1, {}),
    }
    return Manifest(**{**fields, **changes})


def order(generation: int = 1, what: BundleRef | None = NEW, **changes: Any) -> Order:
    fields: dict[str, Any] = {
        "order": f"o{generation}",
        "device": DEVICE,
        "generation": generation,
        "issued": 999_000,
        "expires": 1_100_000,
        "action": Action.RUN,
        "execution": f"x{generation}",
        "bundle": what,
        "trial": TrialPolicy(retry_s=300),
        "soak_s": 30,
        "max_tries": 3,
    }
    return Order(**{**fields, **changes})


def ordered(generation: int = 1, what: BundleRef | None = NEW, **changes: Any) -> Ordered:
    return Ordered(order=order(generation, what, **changes), envelope=f"envelope {generation}")


def standing(good: BundleRef | None = OLD, **changes: Any) -> Standing:
    floors = {good.model: good.release} if good else {}
    return Standing(
        **{"device": DEVICE, "blueprint": BOARD, "good": good, "floors": floors, **changes}
    )


def started(link: str, sound: Iterable[str]) -> Started:
    return Started(device=DEVICE, blueprint=BOARD, link=link, sound=tuple(sorted(sound)))


@dataclass
class World:
    """A device whose disk and children are variables; every effect succeeds unless told."""

    state: State = field(default_factory=lambda: Idle(standing=standing()))
    link: str = OLD.digest
    slots: set[str] = field(default_factory=lambda: {OLD.digest})
    now: Moment = NOW
    verdict: Verdict = Verdict.PASS
    healthy: bool = True
    fails: dict[str, Reason] = field(default_factory=dict)
    """Name of an effect to the reason that it fails with."""
    reports: list[Report] = field(default_factory=list)
    pending: list[Effect] = field(default_factory=list)

    def take(self, event: Event) -> None:
        """Take one event; its effects wait in `pending`."""
        before = self.state
        self.state, effects = step(self.state, event, self.now)
        # What the journal holds is what comes back after a power cut.
        self.state = msgspec.json.decode(msgspec.json.encode(self.state), type=State)
        for effect in effects:
            self._check_window(before, effect)
            self._note(effect)
        self.check()

    def _check_window(self, before: State, effect: Effect) -> None:
        """Assert that trial and switch begin inside the order's window, by a true clock."""
        begins = isinstance(effect, RunTrial) or (
            isinstance(self.state, Activating) and not isinstance(before, Activating)
        )
        if not begins or self.state.order.action is not Action.RUN:  # type: ignore[union-attr]  # both have one
            return
        window = self.state.order.activate  # type: ignore[union-attr]  # both have one
        if isinstance(window, ActivationWindow):
            assert window.not_before <= self.now.wall < window.not_after, "outside its window"
            assert self.state.order.issued <= self.now.wall, "by a clock that is wrong"  # type: ignore[union-attr]  # both have one

    def _note(self, effect: Effect) -> None:
        match effect:
            case Report():
                self.reports.append(effect)
            case FetchManifest() | Download() | CheckSlot() | RunTrial() | Switch() | Probe():
                self.pending = [effect]
            case Cancel():
                self.pending = []
            case Restore():
                assert effect.digest in {"", *self.slots}
                self.link = effect.digest
            case Collect():
                self.slots &= {*effect.keep, self.link}
            case _:
                return

    def carry_out(self) -> bool:
        """Carry out the effect that waits, if one does."""
        if not self.pending:
            return False
        effect = self.pending.pop()
        reason = self.fails.get(type(effect).__name__)
        self.take(self._failure(effect, reason) if reason else self._answer(effect))
        return True

    def _failure(self, effect: Effect, reason: Reason) -> Event:
        if isinstance(effect, Probe):
            return Probed(generation=effect.generation, healthy=False)
        generation = effect.order.generation if isinstance(effect, RunTrial) else None
        return StepFailed(generation=generation or effect.generation, reason=reason)  # type: ignore[union-attr]  # only tasks wait

    def _answer(self, effect: Effect) -> Event:
        match effect:
            case FetchManifest(generation=generation):
                wanted = self.state.order.bundle  # type: ignore[union-attr]  # Verifying
                assert wanted is not None
                return ManifestRead(generation=generation, manifest=manifest(wanted))
            case Download(generation=generation):
                self.slots.add(effect.bundle.digest)
                return BundleStaged(generation=generation)
            case CheckSlot(generation=generation):
                assert effect.digest in self.slots
                return SlotSound(generation=generation)
            case RunTrial():
                assert effect.order.bundle is not None
                assert effect.order.bundle.digest in self.slots, "an unverified bundle was tried"
                return TrialEnded(generation=effect.order.generation, verdict=self.verdict)
            case Switch(generation=generation):
                if effect.digest and effect.digest not in self.slots:
                    return StepFailed(generation=generation, reason=Reason.BUNDLE_DIGEST)
                self.link = effect.digest
                return Switched(generation=generation)
            case Probe(generation=generation):
                assert self.link == effect.digest, "a bundle was probed that is not active"
                return Probed(generation=generation, healthy=self.healthy)
            case _:
                raise AssertionError(effect)

    def settle(self) -> None:
        """Carry out what waits and let time pass until nothing changes any more."""
        for _ in range(100):
            if self.carry_out():
                continue
            due = wake_at(self.state)
            if due is not None:
                wall = self.now.wall + 1
                if isinstance(self.state, Waiting):
                    window = self.state.order.activate
                    assert isinstance(window, ActivationWindow)
                    wall = max(wall, window.not_before)
                self.now = Moment(wall, max(due, self.now.steady))
                self.take(Tick())
            elif isinstance(self.state, Waiting):
                self._next_window(self.state.order)
            else:
                return
        raise AssertionError(f"does not settle: {self.state}")

    def _next_window(self, missed: Order) -> None:
        """Order the same again for another window, as the control plane does."""
        wall = int(self.now.wall)
        again = msgspec.structs.replace(
            missed,
            generation=missed.generation + 1,
            order=f"o{missed.generation + 1}",
            issued=min(missed.issued, wall),
            expires=wall + 100_000,
            activate=ActivationWindow(wall, wall + 10_000),
        )
        self.take(Ordered(order=again, envelope=f"envelope {again.generation}"))

    def until(self, kind: type[Any]) -> None:
        """Go on until the state is of this kind."""
        while not isinstance(self.state, kind):
            assert self.carry_out(), f"stuck in {self.state}"

    def kill(self) -> None:
        """Lose everything but the disk; start again."""
        self.pending = []
        self.now = Moment(self.now.wall + 60, 0.0)
        self.take(started(self.link, self.slots))

    def check(self) -> None:
        """Assert what must hold at every instant."""
        good = self.state.standing.good
        assert self.link == "" or self.link in self.slots, "the active slot is not whole"
        assert good is None or good.digest in self.slots, "last known good was thrown away"
        assert good is None or self.link, "a device with a model runs none"
        if isinstance(self.state, Soaking):
            assert self.link == self.state.order.bundle.digest  # type: ignore[union-attr]  # RUN
        elif isinstance(self.state, Idle):
            runs = running(self.state)
            assert self.link == (runs.digest if runs else "")
        assert isinstance(self.state, Reverting | Idle) or len(self.slots) <= 3
        self._check_reports()

    def _check_reports(self) -> None:
        ends: dict[str, set[tuple[ExecutionState, str]]] = {}
        for told in self.reports:
            if told.state in TERMINAL and told.reason not in NOT_AN_END:
                ends.setdefault(told.execution, set()).add((told.state, told.digest))
        for execution, found in ends.items():
            assert len(found) == 1, f"{execution} ended in two ways: {found}"

    @property
    def end(self) -> tuple[ExecutionState, Reason]:
        """Return how the newest report ended."""
        return self.reports[-1].state, self.reports[-1].reason
