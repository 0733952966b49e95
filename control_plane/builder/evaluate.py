"""Measures one file in a fresh process: speed and memory first, then quality against the source.

``python -m control_plane.builder.evaluate TASK ANSWER``. A file that crashes the runtime takes
only this process with it. Speed here ranks recipes; only the device's own trial judges them.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from agent.protocol.manifest import GoldenPrompt, GoldenSet
from control_plane.builder import heldout
from control_plane.builder import job as files
from control_plane.builder.decoder import Decoder, Ids
from control_plane.builder.job import Numbers, Task
from control_plane.domain import model as layout
from control_plane.domain.errors import InvalidError

PROMPT_TOKENS, DECODED_TOKENS = 32, 32
TIMED_S = 0.1

Floats = npt.NDArray[np.float32]


def measure(task: Task) -> Numbers:
    """Measure one file.

    Raises:
        InvalidError: the source's own evaluation files are wrong.
    """
    folder = Path(task.folder)
    if task.is_source:
        _prepare(task, folder)
    windows = heldout.judged(folder)
    decoder, measured = _speed(task, windows[0, : PROMPT_TOKENS + 1])
    if task.is_source:
        return Numbers(quality=_as_source(decoder, folder, windows), measured=measured)
    return Numbers(quality=_against_source(decoder, folder, windows), measured=measured)


def _prepare(task: Task, folder: Path) -> None:
    upload = Path(task.upload)
    tokenizer = heldout.open_tokenizer(upload / layout.TOKENIZER, task.descriptor)
    text = layout.check_held_out((upload / layout.HELD_OUT).read_bytes())
    prompts = layout.parse_prompts((upload / layout.PROMPTS).read_bytes())
    windows = heldout.cut(
        tokenizer, text, task.descriptor, task.evaluation.windows, task.evaluation.tokens
    )
    heldout.save(folder, windows, heldout.golden_tokens(tokenizer, prompts, task.descriptor))


def _speed(task: Task, prompt: Ids) -> tuple[Decoder, dict[str, float]]:
    started = time.perf_counter()
    decoder = Decoder.open(Path(task.model), task.runtime)
    measured = {"load_ms": (time.perf_counter() - started) * 1000}
    ids = prompt[None, :-1]
    measured["first_token_ms"] = _processor_ms(lambda: decoder.step(ids, decoder.empty_cache()))
    measured["token_ms"] = _processor_ms(lambda: _decode(decoder, ids)) / DECODED_TOKENS
    memory = _peak_memory_mb()
    return decoder, measured if memory is None else {**measured, "memory_mb": memory}


def _processor_ms(work: Callable[[], object]) -> float:
    """Return milliseconds of processor time of one call.

    Calls are timed together, because some kernels count processor time in steps of 4 ms.
    """
    work()
    calls, started = 0, time.process_time()
    while (spent := time.process_time() - started) < TIMED_S:
        work()
        calls += 1
    return spent * 1000 / calls


def _decode(decoder: Decoder, prompt: Ids) -> None:
    logits, cache = decoder.step(prompt[:, :1], decoder.empty_cache())
    for _ in range(DECODED_TOKENS - 1):
        logits, cache = decoder.step(logits[:, -1:].argmax(-1), cache)


def _peak_memory_mb() -> float | None:
    # getrusage would tell the parent's footprint; only Linux tells this process's own peak.
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = status.read_text().splitlines()
    peak = next((line for line in lines if line.startswith("VmHWM:")), None)
    return None if peak is None else int(peak.split()[1]) / 1024


def _as_source(decoder: Decoder, folder: Path, windows: Ids) -> dict[str, float]:
    """Keep what the source says, for the candidates; return its perplexity."""
    losses: list[float] = []
    for index, window in enumerate(windows):
        ours = decoder.log_probabilities(window[:-1])
        np.save(folder / f"source-{index}.npy", ours)
        losses.extend(_losses(ours, window))
    prompts = [
        GoldenPrompt(id=name, tokens=ids, expected=_argmax(decoder, ids))
        for name, ids in heldout.golden(folder).items()
    ]
    golden = msgspec.json.encode(GoldenSet(prompts=prompts), order="sorted")
    (folder / files.GOLDEN).write_bytes(golden)
    perplexity = math.exp(statistics.fmean(losses))
    if not math.isfinite(perplexity):
        raise InvalidError(
            f"{layout.GRAPH} gives numbers that are not finite on {layout.HELD_OUT}",
            field=layout.GRAPH,
        )
    return {"perplexity": perplexity}


def _against_source(decoder: Decoder, folder: Path, windows: Ids) -> dict[str, float]:
    rows = list(_compare(decoder, folder, windows))
    ours, theirs, divergences, agreements = (
        np.concatenate(part) for part in zip(*rows, strict=True)
    )
    golden = msgspec.json.decode((folder / files.GOLDEN).read_bytes(), type=GoldenSet)
    found = {
        "perplexity": _exp(ours.mean()),
        "perplexity_ratio": _exp(ours.mean() - theirs.mean()),
        "kl_mean": float(divergences.mean()),
        "kl_p99": float(np.quantile(divergences, 0.99)),
        "top1_agreement": float(agreements.mean()),
        "golden_agreement": _golden_agreement(decoder, golden),
    }
    # A number that is not finite is left out: whoever judges refuses what is missing.
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _compare(decoder: Decoder, folder: Path, windows: Ids) -> Iterator[tuple[Floats, ...]]:
    """Yield per window: our losses, the source's, divergence (nats), and whether we agree."""
    for index, window in enumerate(windows):
        ours = decoder.log_probabilities(window[:-1])
        theirs = np.load(folder / f"source-{index}.npy")
        divergence = (np.exp(theirs) * (theirs - ours)).sum(-1)
        agree = theirs.argmax(-1) == ours.argmax(-1)
        yield _losses(ours, window), _losses(theirs, window), divergence, agree


def _losses(predicted: Floats, window: Ids) -> Floats:
    return np.asarray(-predicted[np.arange(len(window) - 1), window[1:]])


def _exp(value: float) -> float:
    return float(np.exp(np.float64(min(value, 700.0))))


def _argmax(decoder: Decoder, ids: list[int]) -> list[int]:
    logits, _ = decoder.step(np.array([ids], np.int64), decoder.empty_cache())
    return [int(token) for token in logits[0].argmax(-1)]


def _golden_agreement(decoder: Decoder, golden: GoldenSet) -> float:
    agreed = total = 0
    for prompt in golden.prompts:
        ours = _argmax(decoder, prompt.tokens)
        agreed += sum(map(int.__eq__, ours, prompt.expected))
        total += len(prompt.expected)
    return agreed / total


def _rounded(numbers: Numbers) -> Numbers:
    """Drop digits that mean nothing; people read these."""
    quality = {name: float(f"{value:.6g}") for name, value in numbers.quality.items()}
    measured = {name: round(value, 3) for name, value in numbers.measured.items()}
    return Numbers(quality=quality, measured=measured)


def main() -> None:
    """Measure what the task file says, and write the answer."""
    task = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Task)
    try:
        numbers = _rounded(measure(task))
    except InvalidError as error:
        numbers = Numbers(error=error.message, field=error.field)
    files.write(Path(sys.argv[2]), numbers)


if __name__ == "__main__":
    main()
