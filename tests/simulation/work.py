"""A device's work without threads: the agent's own steps, each done at the end of its time."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.benchmark import TrialError, TrialResult
from agent.cancellation import Cancellation
from agent.config import Config
from agent.errors import CanceledError, DownloadError
from agent.files import Files
from agent.lifecycle import Event, Ordered, RunTrial
from agent.protocol.manifest import File
from agent.protocol.messages import Metric
from agent.protocol.trust import TrustedKeys
from agent.protocol.words import Reason, Verdict
from agent.slots import Slots
from agent.work import Task, Work
from tests.simulation import bundles
from tests.simulation.agenda import Agenda
from tests.simulation.chance import Chance

LOST = ("loss", "delay")
SECONDS = {
    "FetchManifest": 5.0,
    "Download": 300.0,
    "CheckSlot": 5.0,
    "RunTrial": 240.0,
    "Switch": 1.0,
    "Restore": 1.0,
    "Probe": 10.0,
    "Collect": 1.0,
    "order": 1.0,
}
"""The longest that each may take."""


@dataclass
class Hands:
    """What a device works with: its clock, its draws, and who is told of an end."""

    agenda: Agenda
    chance: Chance
    run: Callable[[Callable[[], None]], None]
    """Runs a piece of this device's life: in its process, which may be dead or die over it."""
    allowed: Callable[[str], bool]
    """Whether the server gives this device the bundle."""


@dataclass
class Lane:
    """One thing after another, as agent.work's lane does it in a thread."""

    hands: Hands
    hand_up: Callable[[Event], None]
    haste: float
    """What share of its longest time a step takes at most."""
    seconds: float = 1.0
    _waiting: deque[tuple[Callable[[Cancellation], Event | None], Cancellation, float]] = field(
        default_factory=deque
    )
    _open: set[Cancellation] = field(default_factory=set)
    _busy: bool = False

    def put(self, task: Callable[[Cancellation], Event | None], *, droppable: bool = True) -> None:
        cancel = Cancellation()
        if droppable:
            self._open.add(cancel)
        took = self.haste * self.seconds * self.hands.chance.stream("work").random()
        self._waiting.append((task, cancel, took))
        self._next()

    def cancel(self) -> None:
        for cancel in self._open:
            cancel.cancel()
        self._open = set()

    def _next(self) -> None:
        if self._waiting and not self._busy:
            self._busy = True
            task, cancel, took = self._waiting.popleft()
            self.hands.agenda.after(took, lambda: self.hands.run(lambda: self._end(task, cancel)))

    def _end(self, task: Callable[[Cancellation], Event | None], cancel: Cancellation) -> None:
        event = None
        try:
            cancel.check()
            event = task(cancel)
            cancel.check()
        except CanceledError:
            event = None
        self._open.discard(cancel)
        self._busy = False
        if event is not None:
            self.hand_up(event)
        self._next()


class Downloads:
    """The server's bytes, for those who were offered them."""

    def __init__(self, files: Files, hands: Hands) -> None:
        self._files = files
        self._hands = hands

    def manifest(self, digest: str, _cancel: Cancellation) -> bytes:
        self._ask(digest)
        return bundles.BY_DIGEST[digest].envelope

    def file(self, file: File, to: Path, _cancel: Cancellation) -> None:
        data = bundles.FILES[file.sha256]
        if self._hands.chance.happens("bad_download"):
            raise DownloadError(Reason.DOWNLOAD_FAILED, "no answer before the deadline")
        with self._files.appending(to, 0) as out:
            out.write(data[: len(data) // 2])
        with self._files.appending(to, len(data) // 2) as out:
            out.write(data[len(data) // 2 :])

    def _ask(self, digest: str) -> None:
        if not self._hands.allowed(digest):
            raise DownloadError(Reason.DOWNLOAD_REFUSED, "the server refuses this bundle")


class SimulatedWork(Work):
    """The agent's own steps over memory; trials and probes are drawn.

    Args:
        slots: the device's slots.
        files: its disk.
        hands: clock and draws.
        hand_up: takes what happened.
        haste: what share of its longest time a step takes at most.
        trial: draws the result of a trial of a bundle against an incumbent.
    """

    def __init__(
        self,
        *,
        slots: Slots,
        files: Files,
        hands: Hands,
        hand_up: Callable[[Event], None],
        trial: Callable[[str, str], TrialResult],
        ordered: Callable[[Ordered], None],
        haste: float,
    ) -> None:
        self._slots = slots
        self._downloader: Any = Downloads(files, hands)
        self._config = Config(trial_command=["drawn"])
        self._trust = TrustedKeys(bundle={}, order={})
        self._hands = hands
        self._drawn = trial
        self._note = ordered
        self._checks: Any = Lane(hands, hand_up, haste, SECONDS["order"])
        self._steps: Any = Lane(hands, hand_up, haste)

    def start(self, task: Task) -> None:
        self._steps.seconds = SECONDS[type(task).__name__]
        super().start(task)

    def _check_order(self, data: bytes, cancel: Cancellation) -> Event:
        event = super()._check_order(data, cancel)
        if isinstance(event, Ordered):
            self._note(event)
        return event

    def _run_trial(
        self,
        task: RunTrial,
        incumbent: str,
        cancel: Cancellation,  # noqa: ARG002 - what is drawn takes no time
    ) -> TrialResult:
        bundle = task.order.bundle
        digest = bundle.digest if bundle else ""
        self._slots.verify(digest)
        return self._drawn(digest, incumbent)

    def _healthy(self, digest: str, cancel: Cancellation) -> bool:  # noqa: ARG002 - as above
        self._slots.verify(digest)
        return not self._hands.chance.happens("bad_probe")


METRICS = (("token_ms", "ms"), ("first_token_ms", "ms"), ("memory_mb", "MB"), ("load_ms", "ms"))


def drawn_trial(chance: Chance, incumbent: str, bad: float) -> TrialResult:
    """Draw what a trial finds: `bad` is the share of trials that end badly."""
    draw = chance.stream("trial")
    if chance.allowed("bad_trial") and draw.random() < bad:
        kind = draw.randrange(4)
        if kind == 0:
            return TrialResult(verdict=Verdict.INCONCLUSIVE, error=TrialError.CANDIDATE_CRASHED)
        if kind == 1:
            return TrialResult(verdict=Verdict.INCONCLUSIVE, seconds=1.0)
        ratio, verdict = 1.9, Verdict.REGRESSION if kind == 2 else Verdict.WRONG_OUTPUT
        return TrialResult(verdict=verdict, metrics=_metrics(ratio, incumbent, verdict))
    ratio = 0.95 + 0.07 * draw.random()
    return TrialResult(
        verdict=Verdict.PASS, metrics=_metrics(ratio, incumbent, Verdict.PASS), seconds=1.0
    )


def _metrics(ratio: float, incumbent: str, verdict: Verdict) -> list[Metric]:
    if not incumbent:
        return [Metric(name="token_ms", unit="ms", candidate=9.0, n=2, verdict=verdict)]
    return [
        Metric(
            name=name, unit=unit, candidate=10 * ratio, incumbent=10.0, ratio=ratio,
            ci_low=ratio * 0.99, ci_high=ratio * 1.01, tolerance=0.1, n=5, verdict=verdict,
        )
        for name, unit in METRICS
    ]  # fmt: skip
