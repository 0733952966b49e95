"""Carries out the machine's effects, one after another in a thread, and answers with events."""

import hashlib
import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent import children, hardware, signatures
from agent.benchmark import TrialError, TrialRequest, TrialResult
from agent.cancellation import Cancellation
from agent.config import Config
from agent.download import Downloader
from agent.errors import CanceledError, ChildError, DownloadError, SlotError, StepError
from agent.lifecycle import (
    BundleStaged,
    CheckSlot,
    Collect,
    Download,
    Event,
    FetchManifest,
    ManifestRead,
    Ordered,
    OrderRefused,
    Probe,
    Probed,
    Restore,
    RunTrial,
    SlotSound,
    StepFailed,
    Switch,
    Switched,
    TrialEnded,
)
from agent.protocol import envelope as envelopes
from agent.protocol import manifest as manifests
from agent.protocol import messages
from agent.protocol.errors import ProtocolError
from agent.protocol.manifest import File, Manifest
from agent.protocol.messages import BundleRef, Order
from agent.protocol.trust import TrustedKeys
from agent.protocol.words import Reason, Verdict
from agent.slots import Slots

log = logging.getLogger(__name__)

Task = FetchManifest | Download | CheckSlot | RunTrial | Switch | Restore | Probe | Collect
PROBE_S = 180.0
# How many trials of other agents on this machine one may have to wait for, before its own.
QUEUE_OF_TRIALS = 20
# An order that could not be checked now is checked again: while we stay connected nobody sends it.
CHECK_AGAIN_S = (5.0, 30.0, 120.0)


class Lane:
    """A thread that does one thing after another; the one under way can be called off."""

    def __init__(self, name: str, hand_up: Callable[[Event], None]) -> None:
        self._hand_up = hand_up
        self._queue: queue.SimpleQueue[tuple[Callable[[Cancellation], Event | None], Cancellation]]
        self._queue = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open: set[Cancellation] = set()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, task: Callable[[Cancellation], Event | None], *, droppable: bool = True) -> None:
        """Do `task` after what was put before; its event, if any, is handed up."""
        cancel = Cancellation()
        if droppable:
            with self._lock:
                self._open.add(cancel)
        self._queue.put((task, cancel))

    def cancel(self) -> None:
        """Call off what is under way and what waits."""
        with self._lock:
            doomed, self._open = self._open, set()
        for cancel in doomed:
            cancel.cancel()

    def _run(self) -> None:
        while True:
            task, cancel = self._queue.get()
            try:
                cancel.check()
                event = task(cancel)
                cancel.check()
            except CanceledError:
                continue
            except Exception:
                log.exception("lane.defect")
                continue
            with self._lock:
                self._open.discard(cancel)
            if event is not None:
                self._hand_up(event)


class Work:
    """What one device can do."""

    def __init__(
        self,
        *,
        slots: Slots,
        downloader: Downloader,
        config: Config,
        trust: TrustedKeys,
        hand_up: Callable[[Event], None],
    ) -> None:
        self._slots = slots
        self._downloader = downloader
        self._config = config
        self._trust = trust
        # Orders are checked beside the work: a newer one must be able to call it off.
        self._checks = Lane("checks", hand_up)
        self._steps = Lane("steps", hand_up)

    def check_order(self, data: bytes) -> None:
        """Check an envelope's signature: Ordered or OrderRefused follows."""
        self._checks.put(lambda cancel: self._read_order(data, cancel))

    def start(self, task: Task) -> None:
        """Carry out one effect after those before it."""
        droppable = not isinstance(task, Collect | Restore)
        self._steps.put(lambda cancel: self._answer(task, cancel), droppable=droppable)

    def cancel(self) -> None:
        """Call off the step under way."""
        self._steps.cancel()

    # --- orders -----------------------------------------------------------------------------

    def _read_order(self, data: bytes, cancel: Cancellation) -> Event | None:
        for pause in (*CHECK_AGAIN_S, 0.0):
            try:
                return self._check_order(data, cancel)
            except ChildError as error:  # most likely not the order's fault
                log.warning("order.unchecked error=%s", error)
            cancel.wait(pause)
        return None

    def _check_order(self, data: bytes, cancel: Cancellation) -> Event:
        digest = hashlib.sha256(data).hexdigest()
        try:
            payload = signatures.check("order", data, self._trust.order, cancel)
            return Ordered(order=messages.decode(payload, Order), envelope=digest)
        except StepError as error:
            reason, why = error.reason, str(error)
        except ProtocolError as error:
            reason, why = Reason.ORDER_MALFORMED, str(error)
        log.warning("order.refused reason=%s why=%s", reason, why)
        return _refused(data, digest, reason)

    # --- steps ------------------------------------------------------------------------------

    def _answer(self, task: Task, cancel: Cancellation) -> Event | None:
        try:
            return self._perform(task, cancel)
        except StepError as error:
            log.warning("step.failed step=%s reason=%s why=%s", _name(task), error.reason, error)
            return _failed(task, error.reason)
        except ChildError as error:
            log.warning("step.failed step=%s why=%s", _name(task), error)
            return self._child_failed(task, error)
        except (OSError, ProtocolError) as error:
            # Whatever the disk answers, the machine must not wait for ever.
            log.warning("step.failed step=%s why=%s", _name(task), error)
            return _failed(task, Reason.DISK_ERROR)

    def _perform(self, task: Task, cancel: Cancellation) -> Event | None:
        match task:
            case FetchManifest():
                manifest = self._fetch_manifest(task.digest, cancel)
                return ManifestRead(generation=task.generation, manifest=manifest)
            case Download():
                self._download(task.bundle, cancel)
                return BundleStaged(generation=task.generation)
            case CheckSlot():
                self._slots.verify(task.digest)
                return SlotSound(generation=task.generation)
            case RunTrial():
                return self._trial(task, cancel)
            case Switch():
                self._slots.activate(task.digest)
                return Switched(generation=task.generation)
            case Probe():
                healthy = self._healthy(task.digest, cancel)
                return Probed(generation=task.generation, healthy=healthy)
            case Restore():
                self._slots.activate(task.digest)
                return None
            case Collect():
                self._slots.collect(task.keep)
                return None

    def _fetch_manifest(self, digest: str, cancel: Cancellation) -> Manifest:
        stored = self._slots.envelope(digest)
        try:
            if stored is None:
                raise SlotError(Reason.BUNDLE_DIGEST, f"{digest}: not on this disk")
            envelope, manifest = stored, self._judged_manifest(digest, stored, cancel)
        except StepError:  # not here, or rotten: the server has it
            envelope = self._downloader.manifest(digest, cancel)
            manifest = self._judged_manifest(digest, envelope, cancel)
        if not self._config.trial_command and not hardware.has_runtime(manifest.runtime.name):
            message = f"runtime {manifest.runtime.name!r} is not installed on this device"
            raise StepError(Reason.RUNTIME_MISSING, message)
        self._slots.keep_envelope(digest, envelope)
        return manifest

    def _judged_manifest(self, digest: str, envelope: bytes, cancel: Cancellation) -> Manifest:
        payload = signatures.check("manifest", envelope, self._trust.bundle, cancel)
        if manifests.digest(payload) != digest:
            message = f"bundle {digest}: this is the manifest of another bundle"
            raise StepError(Reason.BUNDLE_DIGEST, message)
        try:
            return manifests.decode(payload)
        except ProtocolError as error:
            raise StepError(Reason.BUNDLE_MALFORMED, str(error)) from error

    def _download(self, bundle: BundleRef, cancel: Cancellation) -> None:
        """Stage a bundle; what is already whole in its slot is not fetched again."""
        try:
            self._slots.verify(bundle.digest)
        except SlotError:
            envelope = self._slots.envelope(bundle.digest)
            if envelope is None:
                message = f"bundle {bundle.digest}: its manifest is gone from the disk"
                raise StepError(Reason.DISK_ERROR, message) from None
            payload, _ = envelopes.open_unverified(envelope, envelopes.MANIFEST_TYPE)
            part = self._slots.open_part(bundle.digest, bundle.size)
            for file in manifests.decode(payload).files:
                self._download_file(file, part / file.path, cancel)
            cancel.check()
            self._slots.stage(bundle.digest, envelope)

    def _download_file(self, file: File, to: Path, cancel: Cancellation) -> None:
        """Fetch one file; once more from its start if what came is not what was signed."""
        for _ in range(2):
            self._downloader.file(file, to, cancel)
            if self._slots.take_part(to, file):
                return
        message = f"{file.path}: the server sent other bytes than were signed, twice"
        raise DownloadError(Reason.DOWNLOAD_DIGEST, message)

    # --- trials -----------------------------------------------------------------------------

    def _trial(self, task: RunTrial, cancel: Cancellation) -> Event:
        generation = task.order.generation
        result = self._run_trial(task, self._whole(task.incumbent), cancel)
        if result.error is TrialError.INCUMBENT_CRASHED:
            # What runs cannot be run: there is nothing to compare with, only limits to keep.
            log.warning("trial.incumbent_crashed")
            result = self._run_trial(task, "", cancel)
        match result.error:
            case TrialError.CANDIDATE_CRASHED | TrialError.CANDIDATE_NOT_FINITE:
                return StepFailed(generation=generation, reason=Reason.TRIAL_CRASHED)
            case TrialError.BUNDLE_MALFORMED:
                return StepFailed(generation=generation, reason=Reason.BUNDLE_MALFORMED)
            case _:
                return TrialEnded(
                    generation=generation,
                    verdict=result.verdict,
                    metrics=tuple(result.metrics),
                    seconds=result.seconds,
                    blocks=result.blocks,
                )

    def _whole(self, incumbent: str) -> str:
        """Return the incumbent, or none if it has rotted since it was last read."""
        try:
            if incumbent:
                self._slots.verify(incumbent)
        except SlotError as error:
            log.warning("trial.incumbent_rotten why=%s", error)
            return ""
        return incumbent

    def _run_trial(self, task: RunTrial, incumbent: str, cancel: Cancellation) -> TrialResult:
        bundle = task.order.bundle
        digest = bundle.digest if bundle else ""
        self._slots.verify(digest)  # never run what was not read back just before
        seed = hashlib.sha256(f"{task.order.device} {task.order.generation}".encode()).digest()
        request = TrialRequest(
            candidate=str(self._slots.folder(digest)),
            incumbent=str(self._slots.folder(incumbent)) if incumbent else "",
            policy=task.order.trial,
            seed=seed[0],
            lock=self._config.trial_lock,
            deadline_s=self._config.trial_deadline_s,
        )
        ended = children.run(
            self._trial_command(),
            msgspec.json.encode(request),
            timeout_s=self._longest_wait_s() + self._config.trial_deadline_s + PROBE_S,
            cancel=cancel,
        )
        if ended.status != 0:
            raise ChildError(f"the trial ended with status {ended.status}")
        try:
            return msgspec.json.decode(ended.output, type=TrialResult)
        except msgspec.MsgspecError as error:
            raise ChildError(f"the trial answered nonsense: {error}") from error

    def _child_failed(self, task: Task, error: ChildError) -> Event | None:
        """Blame the candidate for a crash of its trial, but not for a wait in the queue."""
        if isinstance(task, RunTrial):
            if isinstance(error, children.ChildTimeoutError) and self._config.trial_lock:
                generation = task.order.generation
                return TrialEnded(generation=generation, verdict=Verdict.INCONCLUSIVE)
            return _failed(task, Reason.TRIAL_CRASHED)
        return _failed(task, Reason.DOWNLOAD_FAILED)

    def _healthy(self, digest: str, cancel: Cancellation) -> bool:
        """Load the active bundle in a child and let it generate, when it is this agent's turn."""
        try:
            self._slots.verify(digest)
            lock = [self._config.trial_lock] if self._config.trial_lock else []
            folder = str(self._slots.folder(digest))
            ended = children.run(
                [*self._trial_command(), "--probe", folder, *lock],
                b"",
                timeout_s=self._longest_wait_s() + PROBE_S,
                cancel=cancel,
            )
        except (SlotError, ChildError) as error:
            log.warning("probe.failed why=%s", error)
            return False
        return ended.status == 0

    def _longest_wait_s(self) -> float:
        """Return how long the trials of other agents on this machine may take."""
        turns = QUEUE_OF_TRIALS if self._config.trial_lock else 0
        return turns * self._config.trial_deadline_s

    def _trial_command(self) -> list[str]:
        return self._config.trial_command or children.python("agent.benchmark")


def _refused(data: bytes, digest: str, reason: Reason) -> OrderRefused:
    """Return the refusal; the claims of the envelope say which offer it answers."""
    try:
        payload, _ = envelopes.open_unverified(data, envelopes.ORDER_TYPE)
        claimed = messages.decode(payload, Order)
    except ProtocolError:
        return OrderRefused(envelope=digest, reason=reason)
    return OrderRefused(
        envelope=digest,
        reason=reason,
        generation=claimed.generation,
        execution=claimed.execution,
    )


def _failed(task: Task, reason: Reason) -> StepFailed | None:
    match task:
        case Collect() | Restore():
            return None
        case RunTrial():
            return StepFailed(generation=task.order.generation, reason=reason)
        case _:
            return StepFailed(generation=task.generation, reason=reason)


def _name(task: Task) -> str:
    return type(task).__name__
