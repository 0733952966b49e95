"""The shipped file in ONNX Runtime: one decoding step at a time, as a device runs it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

# Read once, at import: without it onnxruntime opens sockets and writes into the home folder.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
KeyValues = dict[str, Floats]
"""`past_key_values.N.key|value` to (B, K, P, E)."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """A causal language model with its cache outside, on one thread."""

    session: onnxruntime.InferenceSession

    @classmethod
    def open(cls, path: Path) -> Self:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return cls(
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        )

    def empty_cache(self, batch: int) -> KeyValues:
        return {
            entry.name: np.zeros((batch, entry.shape[1], 0, entry.shape[3]), np.float32)
            for entry in self.session.get_inputs()
            if entry.name.startswith("past_key_values.")
        }

    def step(self, ids: Ids, cache: KeyValues) -> tuple[Floats, KeyValues]:
        """Ids (B, S) after P cached tokens -> logits (B, S, V) and the cache of P + S tokens."""
        logits, *present = self.session.run(None, {"input_ids": ids, **cache})
        return logits, dict(zip(cache, present, strict=True))
