"""The trial: candidate against incumbent on this device, in processes of its own.

``python -m agent.benchmark`` reads a `TrialRequest` (JSON) on stdin and writes a `TrialResult` on
stdout; it exits 0 whatever the verdict is. ``python -m agent.benchmark --probe FOLDER [LOCK]``
loads a bundle, in turn with the trials that share LOCK, and generates a few tokens: exit 0 healthy,
1 unhealthy with a `TrialError` code on stdout.
Neither numpy nor onnxruntime is imported here: they live in `agent.trial.block`, a process a block.
"""

import fcntl
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from agent import verdict
from agent.protocol import manifest as manifests
from agent.protocol.errors import ProtocolError
from agent.protocol.manifest import Manifest
from agent.protocol.messages import Metric, TrialPolicy
from agent.protocol.words import Verdict
from agent.trial.pair import CANDIDATE, INCUMBENT, Block, measure
from agent.trial.process import (
    BlockCrashedError,
    BlockMalformedError,
    BlockProcess,
    BlockTimeoutError,
)
from agent.trial.readings import PROMPT_TOKENS, SLICE_TOKENS, BlockRequest, Checked, Task
from agent.verdict import Judgement, Terms

CPU = "CPUExecutionProvider"
PROBE_S = 120.0  # the slowest board loads the largest model that its blueprint allows in less
MEMINFO = Path("/proc/meminfo")
PROCESS_MB = 96  # a block without its model
LOAD_FACTOR = 2.0  # peak of a model while it loads, per byte of its files
# Limits are judged without statistics; a second process shows that the first was no accident.
UNPAIRED_BLOCKS = 2
USAGE = 2

T = TypeVar("T")


class TrialError(StrEnum):
    """Why a trial has no verdict; stable codes."""

    NONE = ""
    BUNDLE_MALFORMED = "bundle.malformed"
    """The candidate's manifest.json, golden set or model is not what it should be."""
    CANDIDATE_CRASHED = "candidate.crashed"
    """The candidate does not load, raises, or kills its process, twice in a row."""
    CANDIDATE_NOT_FINITE = "candidate.not_finite"
    """Only from a probe: the model answers with numbers that are none."""
    INCUMBENT_CRASHED = "incumbent.crashed"
    DEADLINE = "deadline"


class TrialRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to try. A bundle folder holds its verified files and `manifest.json` (the payload)."""

    candidate: str
    incumbent: str = ""
    """Folder of the running bundle; empty if there is none: only absolute limits are judged."""
    policy: TrialPolicy = TrialPolicy()
    seed: int = 0
    """Which side starts; so that a fleet does not favour one of them."""
    lock: str = ""
    """File that agents on one machine lock in turn, so that their trials do not overlap."""
    deadline_s: float = 600.0
    """Longest time of the trial itself; waiting for the lock does not count."""


class TrialResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. With `error` set the verdict is inconclusive and nothing was proven."""

    verdict: Verdict
    metrics: list[Metric] = []
    seconds: float = 0.0
    blocks: dict[str, list[float]] = {}
    error: TrialError = TrialError.NONE


class TrialFailedError(Exception):
    """A trial cannot go on; `code` says why."""

    def __init__(self, code: TrialError) -> None:
        super().__init__(code)
        self.code = code


StartBlock = Callable[[BlockRequest, float], Block]
"""Starts a block that must answer before a deadline (of time.monotonic())."""


def available_mb() -> float:
    """Return the memory that a process may take without swapping; infinite where unknown."""
    if not MEMINFO.exists():
        return float("inf")
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) / 1024


def run_trial(
    request: TrialRequest,
    start: StartBlock = BlockProcess,
    available: Callable[[], float] = available_mb,
) -> TrialResult:
    """Run one trial to its verdict."""
    with _turn(request.lock):
        began = time.monotonic()
        trial = _Trial(request, start, available, began + request.deadline_s)
        try:
            found = trial.run()
            result = TrialResult(verdict=found.verdict, metrics=found.metrics)
        except TrialFailedError as error:
            sys.stderr.write(f"trial: {error}: {error.__cause__}\n")
            result = TrialResult(verdict=Verdict.INCONCLUSIVE, error=error.code)
        seconds = round(time.monotonic() - began, 3)
        return msgspec.structs.replace(result, seconds=seconds, blocks=trial.blocks)


class _Trial:
    """One trial under way; `blocks` holds what was measured, whatever happens."""

    def __init__(
        self,
        request: TrialRequest,
        start: StartBlock,
        available: Callable[[], float],
        deadline: float,
    ) -> None:
        self.request = request
        self.start: Callable[[BlockRequest], Block] = lambda block: start(block, deadline)
        self.available = available
        self.folders = {CANDIDATE: request.candidate}
        if request.incumbent:
            self.folders[INCUMBENT] = request.incumbent
        self.blocks: dict[str, list[float]] = {}

    def run(self) -> Judgement:
        bundles = {side: _manifest(side, folder) for side, folder in self.folders.items()}
        by = self._terms(bundles[CANDIDATE])
        plan = verdict.looks(self.request.policy) if by.paired else [UNPAIRED_BLOCKS]
        self.blocks["looks"] = [float(look) for look in plan]
        found = verdict.judge(self.blocks, by)
        if found.verdict is Verdict.WRONG_OUTPUT:  # not worth a single block
            return found
        pair = partial(
            measure,
            _requests(self.request.policy, bundles, self.folders),
            self.start,
            together=_needed_mb(bundles) <= self.available(),
        )
        for look in plan:
            self._measure_until(look, pair)
            found = verdict.judge(self.blocks, by)
            if found.verdict is not Verdict.INCONCLUSIVE:
                break
        return found

    def _terms(self, candidate: Manifest) -> Terms:
        """Check the candidate's outputs, once, and return what the trial is judged by."""
        read = self._attempt(partial(self._check, Task.GOLDEN))
        return verdict.terms(
            self.request.policy,
            candidate.limits,
            agreement=read.agreeing / read.positions if read.finite else 0.0,
            min_agreement=candidate.golden.min_agreement,
            paired=bool(self.request.incumbent),
        )

    def _check(self, task: Task) -> Checked:
        with self.start(BlockRequest(task=task, folder=self.request.candidate)) as block:
            return block.end(Checked)

    def _measure_until(self, look: int, pair: Callable[..., dict[str, float]]) -> None:
        for index in range(len(self.blocks.get("candidate.token_ms", ())), look):
            flip = (index + self.request.seed) % 2 == 1
            for name, value in self._attempt(partial(pair, flip=flip)).items():
                self.blocks.setdefault(name, []).append(value)

    def _attempt(self, work: Callable[[], T]) -> T:
        """Do it, and once more after a crash: one kill may be the device's fault, two are not."""
        try:
            try:
                return work()
            except BlockMalformedError:
                raise
            except BlockCrashedError:
                return work()
        except BlockTimeoutError as error:
            raise TrialFailedError(TrialError.DEADLINE) from error
        except BlockCrashedError as error:
            code = TrialError.CANDIDATE_CRASHED
            if error.folder != self.request.candidate:
                code = TrialError.INCUMBENT_CRASHED
            elif isinstance(error, BlockMalformedError):
                code = TrialError.BUNDLE_MALFORMED
            raise TrialFailedError(code) from error


def _manifest(side: str, folder: str) -> Manifest:
    try:
        return manifests.decode((Path(folder) / "manifest.json").read_bytes())
    except (ProtocolError, OSError) as error:
        mine = side == CANDIDATE
        code = TrialError.BUNDLE_MALFORMED if mine else TrialError.INCUMBENT_CRASHED
        raise TrialFailedError(code) from error


def _requests(
    policy: TrialPolicy, bundles: Mapping[str, Manifest], folders: Mapping[str, str]
) -> dict[str, BlockRequest]:
    """Return the same work for both sides, whatever their contexts and threads are."""
    context = min(bundle.io.context_length for bundle in bundles.values())
    tokens = max(1, min(policy.tokens, context // 2))
    per_slice = min(SLICE_TOKENS, tokens)
    prompt = max(1, min(PROMPT_TOKENS, context - tokens))
    runtimes = [bundle.runtime for bundle in bundles.values()]
    wall = any(runtime.threads != 1 or runtime.provider != CPU for runtime in runtimes)
    return {
        side: BlockRequest(
            task=Task.MEASURE,
            folder=folder,
            prompt=prompt,
            tokens=tokens,
            slice=per_slice,
            wall=wall,
        )
        for side, folder in folders.items()
    }


def _needed_mb(bundles: Mapping[str, Manifest]) -> float:
    files = sum(file.size for bundle in bundles.values() for file in bundle.files)
    return LOAD_FACTOR * files / 2**20 + PROCESS_MB * len(bundles)


@contextmanager
def _turn(lock: str) -> Iterator[None]:
    """Wait until no other trial of this machine runs; the kernel ends a dead holder's turn."""
    if not lock:
        yield
        return
    with Path(lock).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def probe(folder: str, start: StartBlock = BlockProcess) -> TrialError:
    """Load a bundle and generate a few tokens; `NONE` if it is healthy."""
    request = BlockRequest(task=Task.PROBE, folder=folder)
    try:
        with start(request, time.monotonic() + PROBE_S) as block:
            read = block.end(Checked)
    except BlockTimeoutError:
        return TrialError.DEADLINE
    except BlockMalformedError:
        return TrialError.BUNDLE_MALFORMED
    except BlockCrashedError:
        return TrialError.CANDIDATE_CRASHED
    return TrialError.NONE if read.finite else TrialError.CANDIDATE_NOT_FINITE


def main(arguments: list[str]) -> int:
    """Run as the module's docstring says."""
    # Told to stop, the coordinator takes its blocks along: leaving their context kills them.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    match arguments:
        case []:
            return _main_trial()
        case ["--probe", folder, *lock] if len(lock) <= 1:
            with _turn("".join(lock)):
                code = probe(folder)
            sys.stdout.write(f"{code or 'healthy'}\n")
            return 1 if code else 0
        case _:
            sys.stderr.write(
                "usage: python -m agent.benchmark [--probe FOLDER [LOCK]] < request.json\n"
            )
            return USAGE


def _main_trial() -> int:
    try:
        request = msgspec.json.decode(sys.stdin.buffer.read(), type=TrialRequest)
    except msgspec.MsgspecError as error:
        sys.stderr.write(f"trial request: {error}\n")
        return USAGE
    sys.stdout.buffer.write(msgspec.json.encode(run_trial(request)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
