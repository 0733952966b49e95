"""A causal language model in onnxruntime, driven one step at a time with its cache outside."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from agent.protocol.errors import MalformedError
from agent.protocol.manifest import Manifest, Runtime

# Read once, at import: without it onnxruntime opens sockets and writes into the home folder.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.floating]
Cache = dict[str, npt.NDArray[np.floating]]

PAST, PRESENT = "past_key_values.", "present."
LEVELS = {
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
QUIET = 3  # errors only; a warning per load would drown the log


@dataclass(frozen=True, slots=True)
class Decoder:
    """One loaded model."""

    session: onnxruntime.InferenceSession
    vocab_size: int
    past: tuple[str, ...]
    empty: Cache

    @classmethod
    def open(cls, folder: Path, manifest: Manifest) -> Self:
        """Load a bundle's model; `MalformedError` if it is not the model that the manifest says."""
        io = manifest.io
        session = onnxruntime.InferenceSession(
            str(folder / io.entry),
            _options(manifest.runtime),
            providers=[manifest.runtime.provider],
        )
        inputs = {entry.name: entry for entry in session.get_inputs()}
        past = tuple(name for name in inputs if name.startswith(PAST))
        if "input_ids" not in inputs or len(inputs) != len(past) + 1:
            raise MalformedError(f"{io.entry}: inputs {sorted(inputs)[:8]} are not a causal-lm's")
        if len(past) != 2 * io.kv_layers:
            raise MalformedError(f"{io.entry}: {len(past)} cache inputs, io.kv_layers says other")
        shape = (1, io.kv_heads, 0, io.head_dim)
        empty: Cache = {name: np.zeros(shape, TYPES[inputs[name].type]) for name in past}
        return cls(session, io.vocab_size, past, empty)

    def step(self, ids: Ids, cache: Cache) -> tuple[Logits, Cache]:
        """Return the logits (sequence, vocabulary) after each of `ids`, and the longer cache."""
        # Some kernels read out of bounds instead of refusing.
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise MalformedError(f"token id outside 0..{self.vocab_size - 1}")
        names = ["logits", *(PRESENT + name.removeprefix(PAST) for name in self.past)]
        logits, *present = self.session.run(names, {"input_ids": ids[None, :], **cache})
        return logits[0], dict(zip(self.past, present, strict=True))

    def most_likely(self, logits: Logits) -> Ids:
        """Return the most likely next token of each position; always inside the vocabulary."""
        return np.asarray(logits[:, : self.vocab_size].argmax(axis=-1), np.int64)


def _options(runtime: Runtime) -> onnxruntime.SessionOptions:
    if runtime.graph_level not in LEVELS:
        raise MalformedError(f"runtime.graph_level {runtime.graph_level[:40]!r} is unknown")
    if runtime.provider not in onnxruntime.get_available_providers():
        raise MalformedError(f"runtime.provider {runtime.provider[:40]!r} is not on this device")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = runtime.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = LEVELS[runtime.graph_level]
    options.log_severity_level = QUIET
    return options
