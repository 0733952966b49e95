"""One process of a trial: one model, driven by the lines on stdin (see `agent.trial.readings`).

A fresh process per block, so that memory layout, caches and heap are drawn anew each time: the
spread between processes is part of what a verdict has to see (Georges et al., OOPSLA 2007).
"""

import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

# The reference kernel is one thread's work; numpy's BLAS reads this once, at import.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import numpy as np

from agent.protocol import manifest as manifests
from agent.protocol.errors import MalformedError, ProtocolError
from agent.protocol.manifest import GoldenSet, Manifest
from agent.trial.decoder import Decoder, Ids
from agent.trial.readings import (
    EXIT_MALFORMED,
    BlockRequest,
    Checked,
    Ended,
    Loaded,
    Slice,
    Step,
    Task,
)

WARM_ROUNDS = 2  # the first run costs 1.5 times the steady time, the second 1.25 times
PROBE_TOKENS = 4
KERNEL_SIDE = 1024  # 4 MB of weights: streams through the caches as decoding does
KERNEL_REPEATS = 4


def perform(request: BlockRequest, steps: Iterable[bytes]) -> Iterator[msgspec.Struct]:
    """Yield the answers to `request`; to measure, one slice for each of `steps`."""
    folder = Path(request.folder)
    match request.task:
        case Task.MEASURE:
            yield from measure(folder, request, steps)
        case Task.GOLDEN:
            yield golden(folder)
        case Task.PROBE:
            yield probe(folder)


def measure(
    folder: Path, request: BlockRequest, steps: Iterable[bytes]
) -> Iterator[Loaded | Slice | Ended]:
    """Load the model and time the steps that are asked for."""
    manifest = read_manifest(folder)
    prompt = _prompt(read_golden(folder, manifest), request.prompt)
    # With one thread the CPU clock does not count the time that other processes took from us.
    clock = time.perf_counter if request.wall else time.process_time
    kernel = _reference_kernel()
    if request.cpu >= 0:
        _stay_on(request.cpu)
    started = clock()
    decoder = Decoder.open(folder, manifest)
    load_ms = (clock() - started) * 1e3
    work = _Work(decoder, prompt, request.slice, kernel)
    for step in (Step.REFERENCE, Step.PREFILL, Step.DECODE) * WARM_ROUNDS:
        work.do(step)
    yield Loaded(load_ms, -1 if request.wall else _stay_on(request.cpu))
    for line in steps:
        step = Step(line.strip().decode())
        started = clock()
        work.do(step)
        per = request.slice if step is Step.DECODE else 1
        yield Slice((clock() - started) * 1e3 / per)
    yield Ended(peak_memory_mb())


class _Work:
    """The timed work on one model; generation goes on from slice to slice."""

    def __init__(
        self, decoder: Decoder, prompt: Ids, tokens: int, kernel: Callable[[], object]
    ) -> None:
        self.decoder = decoder
        self.prompt = prompt
        self.tokens = tokens
        self.kernel = kernel
        self.ids = prompt
        self.cache = decoder.empty

    def do(self, step: Step) -> None:
        match step:
            case Step.REFERENCE:
                self.kernel()
            case Step.PREFILL:
                self.ids, self.cache = self.prompt, self.decoder.empty
                self._step()
            case Step.DECODE:
                for _ in range(self.tokens):
                    self._step()

    def _step(self) -> None:
        logits, self.cache = self.decoder.step(self.ids, self.cache)
        self.ids = self.decoder.most_likely(logits[-1:])


def golden(folder: Path) -> Checked:
    """Compare the model's most likely tokens with the fp32 source's, at every position."""
    manifest = read_manifest(folder)
    prompts = read_golden(folder, manifest).prompts
    decoder = Decoder.open(folder, manifest)
    agreeing = positions = 0
    finite = True
    for prompt in prompts:
        logits, _ = decoder.step(np.array(prompt.tokens, np.int64), decoder.empty)
        finite = finite and bool(np.isfinite(logits).all())
        agreeing += int((decoder.most_likely(logits) == np.array(prompt.expected)).sum())
        positions += len(prompt.tokens)
    return Checked(agreeing, positions, finite)


def probe(folder: Path) -> Checked:
    """Load the model and generate a few tokens; only `finite` says something."""
    manifest = read_manifest(folder)
    decoder = Decoder.open(folder, manifest)
    ids, cache, finite = _prompt(read_golden(folder, manifest), PROBE_TOKENS), decoder.empty, True
    for _ in range(PROBE_TOKENS):
        logits, cache = decoder.step(ids, cache)
        finite = finite and bool(np.isfinite(logits).all())
        ids = decoder.most_likely(logits[-1:])
    return Checked(PROBE_TOKENS, PROBE_TOKENS, finite)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest payload that lies beside a bundle's files."""
    return manifests.decode((folder / "manifest.json").read_bytes())


def read_golden(folder: Path, manifest: Manifest) -> GoldenSet:
    """Read a bundle's golden prompts; `MalformedError` names the prompt that is wrong."""
    try:
        read = msgspec.json.decode((folder / manifest.golden.file).read_bytes(), type=GoldenSet)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedError(f"{manifest.golden.file}: {error}") from error
    if not read.prompts:
        raise MalformedError(f"{manifest.golden.file}: prompts is empty")
    for prompt in read.prompts:
        where = f"{manifest.golden.file}: prompt {prompt.id[:40]!r}"
        if len(prompt.tokens) != len(prompt.expected):
            raise MalformedError(f"{where}: tokens and expected differ in length")
        if not 1 <= len(prompt.tokens) <= manifest.io.context_length:
            raise MalformedError(f"{where}: {len(prompt.tokens)} tokens do not fit the context")
        if not all(0 <= token < manifest.io.vocab_size for token in prompt.tokens):
            raise MalformedError(f"{where}: a token is outside the vocabulary")
    return read


def peak_memory_mb() -> float:
    """Return this process's own peak; ru_maxrss would inherit the parent's on Linux."""
    status = Path("/proc/self/status")
    if not status.exists():  # macOS, where ru_maxrss counts bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


def _prompt(read: GoldenSet, length: int) -> Ids:
    tokens = [token for prompt in read.prompts for token in prompt.tokens]
    return np.resize(np.array(tokens, np.int64), length)


def _stay_on(cpu: int) -> int:
    """Stay on a processor, -1 for the present one; return it, or -1 where that cannot be done."""
    if not hasattr(os, "sched_setaffinity"):  # macOS
        return -1
    # Field 39 of proc_pid_stat(5), counted after the name, which may hold spaces.
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    chosen = cpu if cpu >= 0 else int(stat[36])
    try:
        os.sched_setaffinity(0, {chosen})
    except OSError:  # a sandbox may forbid it; the measurement is then a little noisier
        return -1
    return chosen


def _reference_kernel() -> Callable[[], object]:
    weights = np.full((KERNEL_SIDE, KERNEL_SIDE), 1e-3, np.float32)
    vector = np.ones(KERNEL_SIDE, np.float32)

    def kernel() -> object:
        out = vector
        for _ in range(KERNEL_REPEATS):
            out = weights @ out
        return out

    return kernel


def main() -> int:
    """Answer stdin on stdout."""
    # What a model's native code prints must not pass for an answer.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        request = msgspec.json.decode(sys.stdin.buffer.readline(), type=BlockRequest)
        try:
            for answer in perform(request, sys.stdin.buffer):
                answers.write(msgspec.json.encode(answer) + b"\n")
                answers.flush()
        except (ProtocolError, OSError) as error:
            sys.stderr.write(f"{request.folder}: {error}\n")
            return EXIT_MALFORMED
    return 0


if __name__ == "__main__":
    sys.exit(main())
