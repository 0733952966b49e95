"""The loop: an event, the machine, the journal, the effects; and the only clock of the agent.

The journal is written before any effect is carried out and before any report leaves, so what the
control plane hears is durable here, and a kill at any instant resumes from what was written.
"""

import logging
import queue
import random
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from agent import hardware, telemetry
from agent.config import Config, DataFolder
from agent.errors import DiskError, IllegalTransitionError
from agent.files import Files
from agent.journal import Entry, Journal, Record
from agent.lifecycle import (
    Cancel,
    Effect,
    Event,
    Idle,
    Moment,
    OperatorRollback,
    Probed,
    Report,
    ReportBench,
    ReportState,
    Standing,
    Started,
    State,
    Switched,
    Tick,
)
from agent.link import Connected, Disconnected, News, Received
from agent.machine import step
from agent.protocol import messages
from agent.protocol.backoff import MOST_TOLD_S
from agent.protocol.errors import ProtocolError
from agent.protocol.manifest import Manifest
from agent.protocol.messages import Ack, BackOff, Bench, BundleRef, Command
from agent.slots import Slots
from agent.transitions import wake_at
from agent.work import Work

log = logging.getLogger(__name__)

FOREVER_S = 3600.0
JITTER = 0.1
DISK_RETRY_S = 5.0


class Stop:
    """Someone wants this process to end."""


class LookForRequests:
    """Someone left a request in the data folder."""


class Uplink(Protocol):
    """What the runtime needs of the link."""

    def start(self) -> None: ...
    def publish(
        self, channel: str, message: bytes, *, retain: bool = False, qos: int = 1
    ) -> None: ...
    def stop(self) -> None: ...


Item = Event | News | Stop | LookForRequests
Inbox = queue.SimpleQueue[Item]
"""SimpleQueue, since a signal handler may put into it at any instant."""


def moment() -> Moment:
    """Read both clocks."""
    return Moment(wall=time.time(), steady=time.monotonic())  # noqa: TID251 - the one place


class Runtime:
    """One running agent."""

    def __init__(
        self,
        *,
        device: str,
        config: Config,
        folder: DataFolder,
        files: Files,
        journal: Journal,
        slots: Slots,
        work: Work,
        inbox: Inbox,
    ) -> None:
        self._device = device
        self._config = config
        self._folder = folder
        self._files = files
        self._journal = journal
        self._slots = slots
        self._work = work
        self._inbox = inbox
        self._link: Uplink | None = None
        self._connected = False
        self._healthy = True
        self._born = time.monotonic()
        self._heartbeat_at = self._resend_at = self._quiet_until = 0.0
        self._record = Record()
        self._told_to_stop = False

    def tell_to_stop(self) -> None:
        """End the loop soon; a signal handler may call this."""
        self._told_to_stop = True
        self._inbox.put(Stop())

    @property
    def state(self) -> State:
        return self._record.state

    # --- from start to stop -----------------------------------------------------------------

    def start(self) -> int:
        """Find our footing after whatever ended the last run; return the boot epoch."""
        found = self._slots.sound()
        record = self._journal.load()
        if record is None:
            log.info("journal.none recovering_from=slots")
            record = Record(state=Idle(standing=recovered(self._slots.active(), found)))
        # Also above a journal that was lost: the server has seen (boot, seq) pairs of before.
        boot = max(record.boot + 1, int(moment().wall))
        self._record = msgspec.structs.replace(record, boot=boot, seq=0)
        started = Started(
            device=self._device,
            blueprint=self._config.blueprint,
            link=self._slots.active(),
            sound=tuple(sorted(found)),
        )
        self._take(started)
        log.info("agent.started device=%s boot=%s state=%s", self._device, boot, _name(self.state))
        return boot

    def run(self, link: Uplink | None, until: Callable[[State], bool] = lambda _: False) -> None:
        """Take what comes until someone says stop, or `until` holds."""
        self._link = link
        if link is not None:
            link.start()
        self._look_for_requests()
        while not until(self.state):
            item = self._next()
            if isinstance(item, Stop):
                break
            if item is not None:
                self._handle(item)
            self._run_timers()
        self._work.cancel()
        if link is not None:
            link.stop()
        log.info("agent.stopped state=%s", _name(self.state))

    def _next(self) -> Item | None:
        due = [self._heartbeat_at, self._resend_at] if self._connected else []
        wake = wake_at(self.state)
        if wake is not None:
            due.append(wake)
        pause = min(due, default=time.monotonic() + FOREVER_S) - time.monotonic()
        try:
            return self._inbox.get(timeout=max(0.0, min(pause, FOREVER_S)))
        except queue.Empty:
            return None

    def _run_timers(self) -> None:
        now = time.monotonic()
        wake = wake_at(self.state)
        if wake is not None and now >= wake:
            self._take(Tick())
        if self._connected and now >= self._heartbeat_at:
            self._beat(now)
        if self._connected and now >= self._resend_at:
            self._resend(now)

    # --- what comes -------------------------------------------------------------------------

    def _handle(self, item: Item) -> None:
        match item:
            case Connected():
                self._connected = True
                self._greet()
            case Disconnected():
                self._connected = False
            case Received():
                self._receive(item)
            case LookForRequests():
                self._look_for_requests()
            case Stop():
                return
            case Probed(healthy=healthy):
                self._healthy = healthy
                self._take(item)
            case Switched():
                self._healthy = True  # as far as anyone knows yet
                self._take(item)
            case _:
                self._take(item)

    def _receive(self, item: Received) -> None:
        try:
            match item.channel:
                case "desired" if item.payload:
                    self._work.check_order(item.payload)
                case "ack":
                    self._forget(messages.decode(item.payload, Ack))
                case "cmd":
                    self._obey(item.payload)
                case _:
                    return
        except ProtocolError as error:
            log.warning("message.malformed channel=%s error=%s", item.channel, error)

    def _obey(self, payload: bytes) -> None:
        command = messages.decode(payload, Command)
        if command.expires <= moment().wall:
            return
        if command.name == "hello":
            self._greet()
        elif command.name == "back-off":
            self._be_patient(messages.decode(payload, BackOff).seconds)

    def _be_patient(self, seconds: float) -> None:
        """Do without signs of life and repeats for a while; what is new is told at once."""
        pause = min(seconds, MOST_TOLD_S) * random.uniform(0.5, 1)  # noqa: S311 - guards nothing
        self._quiet_until = self._heartbeat_at = self._resend_at = time.monotonic() + pause

    def _look_for_requests(self) -> None:
        if self._files.exists(self._folder.rollback_request):
            self._files.remove(self._folder.rollback_request)
            self._take(OperatorRollback())

    # --- the step ---------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        """Machine, journal, effects: in this order, whatever comes."""
        now = moment()
        try:
            state, effects = step(self.state, event, now)
        except IllegalTransitionError:
            log.exception("machine.defect")
            return
        record = msgspec.structs.replace(self._record, state=state)
        fresh: list[Entry] = []
        for effect in effects:
            if isinstance(effect, Report | ReportBench):
                record, entry = _entered(record, effect, now.wall)
                fresh.append(entry)
        if record != self._record or isinstance(event, Started):
            record = self._saved(record)
        if state != self.state:
            log.info("state.entered state=%s event=%s", _name(state), _name(event))
        self._record = record
        for entry in fresh:
            self._send(entry.channel, entry.message.encode())
        for effect in effects:
            self._carry_out(effect)

    def _saved(self, record: Record) -> Record:
        """Write the journal; without it nothing goes on, so a full disk is waited out."""
        while True:
            try:
                return self._journal.save(record)
            except DiskError as error:
                if self._told_to_stop:
                    raise
                log.error("journal.unwritten error=%s retry_in_s=%s", error, DISK_RETRY_S)  # noqa: TRY400
                time.sleep(DISK_RETRY_S)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Report() | ReportBench():
                return  # went out with the journal
            case ReportState():
                self._report_state()
            case Cancel():
                self._work.cancel()
            case _:
                self._work.start(effect)

    # --- what leaves ------------------------------------------------------------------------

    def _send(self, channel: str, message: bytes, qos: int = 1) -> None:
        if self._link is not None and self._connected:
            self._link.publish(channel, message, qos=qos)

    def _greet(self) -> None:
        now = time.monotonic()
        facts = hardware.read(self._folder.root)
        greeting = telemetry.hello(self.state, self._record.boot, facts)
        self._send("hello", messages.encode(greeting))
        self._report_state()
        if now >= self._quiet_until:
            self._resend(now)
            self._beat(now)

    def _report_state(self) -> None:
        seq = self._record.seq + 1
        self._record = msgspec.structs.replace(self._record, seq=seq)
        told = telemetry.reported(self.state, self._record.boot, seq)
        self._send("state", messages.encode(told))

    def _beat(self, now: float) -> None:
        uptime = int(now - self._born)
        beat = telemetry.heartbeat(self.state, self._record.boot, uptime, healthy=self._healthy)
        self._send("heartbeat", messages.encode(beat), qos=0)
        # Spread a fleet that was switched on in one second.
        spread = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - guards nothing
        self._heartbeat_at = now + self._config.heartbeat_s * spread

    def _resend(self, now: float) -> None:
        """Send again what nobody has acknowledged."""
        for entry in self._record.outbox:
            self._send(entry.channel, entry.message.encode())
        self._resend_at = now + self._config.resend_s

    def _forget(self, ack: Ack) -> None:
        named = {tuple(pair) for pair in ack.reports}
        kept = tuple(e for e in self._record.outbox if (e.boot, e.seq) not in named)
        if kept != self._record.outbox:
            self._record = self._saved(msgspec.structs.replace(self._record, outbox=kept))


def _entered(record: Record, effect: Report | ReportBench, wall: float) -> tuple[Record, Entry]:
    """Put a report into the outbox under the next sequence number."""
    seq = record.seq + 1
    if isinstance(effect, Report):
        channel, message = "events", _event(record.boot, seq, effect, wall)
    else:
        channel, message = "bench", _bench(record.boot, seq, effect)
    entry = Entry(channel=channel, boot=record.boot, seq=seq, message=message.decode())
    return msgspec.structs.replace(record, seq=seq, outbox=(*record.outbox, entry)), entry


def _event(boot: int, seq: int, report: Report, wall: float) -> bytes:
    return messages.encode(
        messages.Event(
            boot=boot,
            seq=seq,
            generation=report.generation,
            execution=report.execution,
            state=report.state,
            reason=report.reason,
            digest=report.digest,
            at=wall,
        )
    )


def _bench(boot: int, seq: int, report: ReportBench) -> bytes:
    bundle = report.order.bundle
    bench = Bench(
        boot=boot,
        seq=seq,
        generation=report.order.generation,
        execution=report.order.execution,
        candidate=bundle.digest if bundle else "",
        incumbent=report.incumbent,
        verdict=report.trial.verdict,
        metrics=list(report.trial.metrics),
        seconds=report.trial.seconds,
        blocks=report.trial.blocks,
    )
    message = messages.encode(bench)
    if len(message) > messages.MAX_MESSAGE:  # the verdict matters more than what it came from
        message = messages.encode(msgspec.structs.replace(bench, blocks={}))
    return message


def recovered(active: str, sound: dict[str, Manifest]) -> Standing:
    """Return what a device stands on that lost its journal: the active bundle, if it is whole."""
    refs = {digest: _ref(digest, manifest) for digest, manifest in sound.items()}
    good = refs.get(active)
    others = sorted(
        (ref for digest, ref in refs.items() if digest != active), key=lambda ref: ref.release
    )
    newest = others[-1] if others else None
    if good is None:
        good, newest = newest, None
    # At least what runs: the journal knew the true floor, and only a confirm may raise it.
    floors = {good.model: good.release} if good is not None else {}
    return Standing(good=good, previous=newest, floors=floors)


def _ref(digest: str, manifest: Manifest) -> BundleRef:
    size = sum(file.size for file in manifest.files)
    return BundleRef(digest, manifest.model, manifest.version, manifest.release, size)


def _name(value: object) -> str:
    return type(value).__name__
