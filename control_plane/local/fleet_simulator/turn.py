"""PURE: one turn of a simulated device: its state while an event is worked on, and what it says."""

from typing import Any

from msgspec.structs import replace

from agent.protocol import backoff, messages
from agent.protocol.messages import Bench, BundleRef, Event, Heartbeat, Hello, State
from agent.protocol.words import ExecutionState, Reason
from control_plane.local.fleet_simulator.states import (
    Device,
    Effect,
    Kept,
    Moment,
    Say,
    Stage,
    Standing,
    Traits,
    Work,
)

AGENT = "simulated"
CAPABILITIES = ["causal-lm", "range", "revert"]
JITTER = 0.1
"""Of heartbeats, as the agent's: spreads a fleet that was switched on in one second."""
OVERTAKEN_S = 2.0
"""How much later than its successors a message comes that they overtake, at most."""
_WORDS = {
    Stage.VERIFYING: ExecutionState.DOWNLOADING,
    Stage.DOWNLOADING: ExecutionState.DOWNLOADING,
    Stage.WAITING: ExecutionState.STAGED,
    Stage.BENCHMARKING: ExecutionState.BENCHMARKING,
    Stage.HOLDING: ExecutionState.BENCHMARKING,
    Stage.ACTIVATING: ExecutionState.ACTIVATING,
    Stage.SOAKING: ExecutionState.SOAKING,
    Stage.REVERTING: ExecutionState.SOAKING,
}


class Turn:
    """What becomes of a device in one event; thrown away after it.

    Args:
        traits: the device.
        device: its state before.
        now: the time.
    """

    __slots__ = ("device", "effects", "now", "traits")

    def __init__(self, traits: Traits, device: Device, now: Moment) -> None:
        self.traits = traits
        self.device = device
        self.now = now
        self.effects: list[Effect] = []

    @property
    def standing(self) -> Standing:
        return self.device.standing

    def change(self, **values: Any) -> None:
        """Change fields of the device."""
        self.device = replace(self.device, **values)

    def stand(self, **values: Any) -> None:
        """Change fields of what it stands on."""
        self.device = replace(self.device, standing=replace(self.device.standing, **values))

    # --- reports: kept until they are acknowledged ------------------------------------------

    def report(
        self,
        generation: int,
        execution: str,
        state: ExecutionState,
        reason: Reason = Reason.NONE,
        digest: str | None = None,
    ) -> None:
        """Tell of a transition; without `digest`, last known good runs after it."""
        event = Event(
            boot=self.device.boot,
            seq=self.device.seq + 1,
            generation=generation,
            execution=execution,
            state=state,
            reason=reason,
            digest=digest_of(self.standing.good) if digest is None else digest,
            at=self.now.wall,
        )
        self._keep("events", event)

    def report_trial(self, **found: Any) -> None:
        """Tell what a trial measured."""
        self._keep("bench", Bench(boot=self.device.boot, seq=self.device.seq + 1, **found))

    def _keep(self, channel: str, report: Event | Bench) -> None:
        message = messages.encode(report)
        if isinstance(report, Bench) and len(message) > messages.MAX_MESSAGE:
            message = messages.encode(replace(report, blocks={}))
        kept = Kept(report.seq, channel, message, says(report))
        first = not self.device.kept
        self.change(seq=report.seq, kept=(*self.device.kept, kept))
        if first:
            self.change(resend_at=self.now.steady + self.traits.spec.resend)
        self._say(channel, message, report=report)
        if self._happens(self.traits.spec.link.duplicates, "twice"):
            self._say(channel, message)

    def resend(self) -> None:
        """Send again what nobody has acknowledged."""
        for one in self.device.kept:
            self._say(one.channel, one.message)
        self.change(resend_at=self.now.steady + self.traits.spec.resend)

    # --- what may get lost ------------------------------------------------------------------

    def greet(self) -> None:
        """Say who we are and where we stand, as on every connect."""
        standing = self.standing
        hello = Hello(
            boot=self.device.boot,
            generation=standing.generation,
            digest=digest_of(running(self.device)),
            last_known_good=digest_of(standing.good),
            agent=AGENT,
            capabilities=CAPABILITIES,
            hardware=self.traits.hardware,
            blueprint=self.traits.blueprint,
        )
        self._say("hello", messages.encode(hello))
        self.tell_state()
        if self.device.quiet_until <= self.now.steady:
            self.resend()
            self.beat()

    def tell_state(self) -> None:
        """Tell the whole reported state."""
        standing, work = self.standing, self.device.work
        outcome = standing.outcome if work is None else None
        candidate = None if work is None or work.stage is Stage.REVERTING else work.order.bundle
        state = State(
            boot=self.device.boot,
            seq=self.device.seq + 1,
            generation=standing.generation,
            digest=digest_of(running(self.device)),
            previous=digest_of(standing.previous),
            last_known_good=digest_of(standing.good),
            candidate=digest_of(candidate),
            state=_word(work) if outcome is None else outcome.state,
            reason=Reason.NONE if outcome is None else outcome.reason,
        )
        self.change(seq=state.seq)
        self._say("state", messages.encode(state))

    def beat(self) -> None:
        """Give a sign of life, and plan the next."""
        alive = Heartbeat(
            boot=self.device.boot,
            generation=self.standing.generation,
            digest=digest_of(running(self.device)),
            uptime_s=int(self.now.steady - self.device.born),
        )
        self._say("heartbeat", messages.encode(alive), qos=0)
        spread = 1 + JITTER * (2 * self.draw("beat") - 1)
        self.change(beat_at=self.now.steady + self.traits.spec.heartbeat * spread)

    def be_patient(self, seconds: float) -> None:
        """Do without signs of life and repeats for a random part of `seconds`, as asked."""
        most = min(seconds, backoff.MOST_TOLD_S)
        until = self.now.steady + most * (1 + self.draw("patience")) / 2
        self.change(quiet_until=max(self.device.quiet_until, until))

    # --- the line ---------------------------------------------------------------------------

    def draw(self, what: str) -> float:
        """Return a number in [0, 1) that no other draw of this device shares."""
        self.change(said=self.device.said + 1)
        return self.traits.draws.uniform(what, self.device.boot, self.device.said)

    def _happens(self, share: float, what: str) -> bool:
        return share > 0 and self.draw(what) < share

    def _say(
        self, channel: str, message: bytes, *, qos: int = 1, report: Event | Bench | None = None
    ) -> None:
        if not self.device.connected:
            if report is not None:  # for the record; it is sent at the next connect
                self.effects.append(Say(-1.0, channel, message, qos, report))
            return
        at = max(self.device.line_at, self.now.steady + self.latency())
        if channel != "hello" and self._happens(self.traits.spec.link.reordered, "overtaken"):
            at += OVERTAKEN_S * self.draw("late")
        else:
            self.change(line_at=at)
        self.effects.append(Say(at, channel, message, qos, report))

    def latency(self) -> float:
        """Return how long the next message is on its way, in seconds."""
        link = self.traits.spec.link.latency
        if link.spread <= 1 or link.median <= 0:
            return link.median
        self.change(said=self.device.said + 1)
        return self.traits.draws.lognormal(link.median, link.spread, "latency", self.device.said)


def digest_of(bundle: BundleRef | None) -> str:
    """Return a bundle's digest, empty for none."""
    return "" if bundle is None else bundle.digest


def says(report: Event | Bench) -> str:
    """Return a report in a word or two."""
    if isinstance(report, Bench):
        return report.verdict.value
    return f"{report.state.value} {report.reason.value}".rstrip()


def running(device: Device) -> BundleRef | None:
    """Return what runs: the candidate on probation, else last known good."""
    work = device.work
    soaking = work is not None and work.stage is Stage.SOAKING
    return work.order.bundle if work is not None and soaking else device.standing.good


def _word(work: Work | None) -> ExecutionState | None:
    return None if work is None else _WORDS[work.stage]
