"""One observation of a trial: a block of the candidate and a block of the incumbent, in turn."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from statistics import fmean, median
from typing import NamedTuple, Protocol, Self, TypeVar

import msgspec

from agent.trial.process import BlockCrashedError
from agent.trial.readings import PREFILLS, ROUNDS, BlockRequest, Ended, Loaded, Slice, Step

CANDIDATE, INCUMBENT = "candidate", "incumbent"
TRIM = 0.1  # of the slices at either end: a slice that was interrupted says nothing

R = TypeVar("R", bound=msgspec.Struct)


class Block(Protocol):
    """A running block: `BlockProcess`, or a test's stand-in."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def read(self, kind: type[R]) -> R: ...
    def ask(self, step: str, kind: type[R]) -> R: ...
    def end(self, kind: type[R]) -> R: ...


Start = Callable[[BlockRequest], Block]
"""Starts a block's process."""


class _Measured(NamedTuple):
    load_ms: float
    memory_mb: float
    slices: Mapping[Step, list[float]]


def measure(
    requests: Mapping[str, BlockRequest],
    start: Start,
    *,
    together: bool,
    flip: bool,
) -> dict[str, float]:
    """Run one block per side and return one value per series.

    Args:
        requests: side (candidate, incumbent) to its block.
        start: how a block's process is started.
        together: both models are in memory at once and their slices alternate on one processor,
            which cancels most of the device's noise; else one block follows the other.
        flip: the second side starts.
    """
    order = sorted(requests, reverse=flip)
    found: dict[str, _Measured] = {}
    for sides in [order] if together else [[side] for side in order]:
        found |= _in_turn({side: requests[side] for side in sides}, start)
    series = {
        f"{side}.{name}": value
        for side, one in found.items()
        for name, value in _summary(one).items()
    }
    if len(found) > 1:
        series |= _ratios(found[CANDIDATE], found[INCUMBENT], apart=not together)
    # Six digits are more than a clock gives, and keep the report small.
    return {name: float(f"{value:.6g}") for name, value in series.items()}


def _in_turn(requests: Mapping[str, BlockRequest], start: Start) -> dict[str, _Measured]:
    """Load the sides one after the other, then alternate their slices: A B B A A B B A."""
    order = list(requests)
    blocks: dict[str, Block] = {}
    loaded: dict[str, Loaded] = {}
    slices: dict[str, dict[Step, list[float]]] = {
        side: {step: [] for step in Step} for side in order
    }
    cpu = -1
    with ExitStack() as stack:
        for side in order:
            request = msgspec.structs.replace(requests[side], cpu=cpu)
            blocks[side] = stack.enter_context(start(request))
            loaded[side] = blocks[side].read(Loaded)
            cpu = loaded[side].cpu
        for number, step in enumerate(_steps(requests[order[0]])):
            for side in order if number % 2 == 0 else reversed(order):
                read = blocks[side].ask(step, Slice)
                if not read.ms > 0:
                    raise BlockCrashedError(requests[side].folder, f"{step} of {read.ms}")
                slices[side][step].append(read.ms)
        return {
            side: _Measured(loaded[side].load_ms, blocks[side].end(Ended).memory_mb, slices[side])
            for side in order
        }


def _steps(request: BlockRequest) -> list[Step]:
    decoding = [Step.DECODE] * (request.tokens // request.slice)
    return [Step.REFERENCE, *[Step.PREFILL] * PREFILLS, *decoding] * ROUNDS


def _summary(one: _Measured) -> dict[str, float]:
    medians = {step.value: median(values) for step, values in one.slices.items()}
    return {"load_ms": one.load_ms, "memory_mb": one.memory_mb, **medians}


def _ratios(candidate: _Measured, incumbent: _Measured, *, apart: bool) -> dict[str, float]:
    """Return candidate / incumbent; the reference kernel's only where the blocks were apart."""
    found = {
        "ratio.load_ms": candidate.load_ms / incumbent.load_ms,
        "ratio.memory_mb": candidate.memory_mb / incumbent.memory_mb,
    }
    for step in Step:
        if apart or step is not Step.REFERENCE:
            pairs = zip(candidate.slices[step], incumbent.slices[step], strict=True)
            # Of logarithms, so that swapping the sides gives exactly the inverse.
            centre = _trimmed_mean([math.log(a / b) for a, b in pairs])
            found[f"ratio.{step.value}"] = math.exp(centre)
    return found


def _trimmed_mean(values: Sequence[float]) -> float:
    cut = int(len(values) * TRIM)
    return fmean(sorted(values)[cut : len(values) - cut])
