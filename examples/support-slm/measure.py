"""Measure shipped versions in ONNX Runtime: held-out quality, quantized builds, decoding speed.

Needs the shipped folders only: no torch, no training text.
"""

import argparse
import json
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from corpus import encode, split_documents
from quantize import RECIPES, int8_dynamic
from runtime import Decoder, Floats, Ids
from tokenizers import Tokenizer

DECODED_TOKENS = 128
ROUNDS = 40


@dataclass(frozen=True, slots=True)
class Version:
    """A shipped folder."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model.onnx"

    def held_out(self) -> list[Ids]:
        """The held-out stream cut into windows (1, S + 1) that overlap by the one token."""
        length = json.loads((self.folder / "model.json").read_text("utf-8"))["context_length"]
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        text = (self.folder / "eval" / "heldout.txt").read_text("utf-8")
        stream = np.array(encode(tokenizer, split_documents(text)), np.int64)
        starts = range(0, len(stream) - length, length)
        return [stream[None, start : start + length + 1] for start in starts]


@dataclass(frozen=True, slots=True)
class Quality:
    """How well a file predicts held-out text, and how far it is from its fp32 source.

    `divergence` is the mean Kullback-Leibler divergence per token in nats, `divergence_p99` its
    99th percentile, `agreement` the share of tokens with the same most likely successor.
    """

    perplexity: float
    divergence: float
    divergence_p99: float
    agreement: float


def compare(candidate: Path, source: Path, windows: Sequence[Ids]) -> Quality:
    """Run both files over the same windows."""
    losses: list[float] = []
    divergences: list[float] = []
    agreements: list[bool] = []
    runs = zip(windows, predict(candidate, windows), predict(source, windows), strict=True)
    for window, ours, theirs in runs:
        successors = window[0, 1:]
        losses.extend(-ours[np.arange(len(successors)), successors])
        divergences.extend((np.exp(theirs) * (theirs - ours)).sum(-1))
        agreements.extend(theirs.argmax(-1) == ours.argmax(-1))
    return Quality(
        perplexity=math.exp(statistics.fmean(losses)),
        divergence=statistics.fmean(divergences),
        divergence_p99=float(np.quantile(divergences, 0.99)),
        agreement=statistics.fmean(agreements),
    )


def predict(model: Path, windows: Sequence[Ids]) -> Iterator[Floats]:
    """Log-probabilities (S, V) of each window's successors."""
    decoder = Decoder.open(model)
    for window in windows:
        logits, _ = decoder.step(window[:, :-1], decoder.empty_cache(1))
        yield _log_softmax(logits[0])


def _log_softmax(logits: Floats) -> Floats:
    centred: Floats = logits - logits.max(-1, keepdims=True)
    totals: Floats = np.exp(centred).sum(-1, keepdims=True)
    return centred - np.log(totals)


def unigram_perplexity(windows: Sequence[Ids]) -> float:
    """The best that token frequencies alone can do: fitted to the very tokens it is scored on."""
    _, counts = np.unique(np.concatenate([window[0, 1:] for window in windows]), return_counts=True)
    shares = counts / counts.sum()
    return math.exp(-float((shares * np.log(shares)).sum()))


def decoding_times(models: Sequence[Path], prompt: Ids) -> npt.NDArray[np.float64]:
    """Processor milliseconds per decoded token, one thread: (ROUNDS, models), interleaved."""
    decoders = [Decoder.open(model) for model in models]
    rounds = [[_decode(decoder, prompt) for decoder in decoders] for _ in range(ROUNDS + 1)]
    return np.array(rounds[1:])


def _decode(decoder: Decoder, prompt: Ids) -> float:
    logits, cache = decoder.step(prompt, decoder.empty_cache(1))
    started = time.process_time()
    for _ in range(DECODED_TOKENS):
        logits, cache = decoder.step(logits[:, -1:].argmax(-1), cache)
    return (time.process_time() - started) * 1000 / DECODED_TOKENS


def print_quality(versions: Sequence[Version]) -> None:
    """Held-out perplexity of each version beside that of word frequencies."""
    windows = versions[0].held_out()
    print(f"unigram: perplexity {unigram_perplexity(windows):.1f}")
    for version in versions:
        quality = compare(version.model, version.model, version.held_out())
        print(f"{version.folder.name}: perplexity {quality.perplexity:.2f}")


def print_recipes(version: Version) -> None:
    """Size and quality of each quantized build of one version."""
    windows = version.held_out()
    source = compare(version.model, version.model, windows)
    size = version.model.stat().st_size
    print(f"{version.folder.name} fp32: {size} bytes, perplexity {source.perplexity:.2f}")
    with tempfile.TemporaryDirectory() as scratch:
        for name, build in RECIPES.items():
            target = Path(scratch) / "model.onnx"
            build(version.model, target, [window[:, :-1] for window in windows])
            quality = compare(target, version.model, windows)
            print(
                f"{name}: size {target.stat().st_size / size:.3f}"
                f" perplexity {quality.perplexity:.2f}"
                f" ({quality.perplexity / source.perplexity - 1:+.2%})"
                f" divergence {quality.divergence:.4f} p99 {quality.divergence_p99:.4f}"
                f" agreement {quality.agreement:.3f}"
            )


def print_speed(versions: Sequence[Version]) -> None:
    """Decoding time of each version, and how many times that of the first."""
    prompt = versions[0].held_out()[0][:, :16]
    with tempfile.TemporaryDirectory() as scratch:
        quantized = [Path(scratch) / f"{version.folder.name}.onnx" for version in versions]
        for version, target in zip(versions, quantized, strict=True):
            int8_dynamic(version.model, target, [])
        times = decoding_times([*(version.model for version in versions), *quantized], prompt)
    kinds = {"fp32": times[:, : len(versions)], "dynamic int8": times[:, len(versions) :]}
    for kind, rounds in kinds.items():
        # Of ratios within a round: what disturbs the machine disturbs both sides.
        slower = np.median(rounds / rounds[:, :1], axis=0)
        for version, time_taken, ratio in zip(
            versions, np.median(rounds, axis=0), slower, strict=True
        ):
            print(f"{version.folder.name} {kind}: {time_taken:.2f} ms a token, {ratio:.2f} times")


def main() -> None:
    """Print the asked-for tables."""
    logging.disable(logging.WARNING)  # the quantizers name every node they skip
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="shipped versions")
    parser.add_argument("--recipes", action="store_true", help="also quantize each version")
    parser.add_argument("--speed", action="store_true", help="also time decoding")
    arguments = parser.parse_args()
    versions = [Version(folder) for folder in arguments.folders]
    print_quality(versions)
    if arguments.recipes:
        for version in versions:
            print_recipes(version)
    if arguments.speed:
        print_speed(versions)


if __name__ == "__main__":
    main()
