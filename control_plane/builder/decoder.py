"""A causal language model in ONNX Runtime with its cache outside, as a device runs it."""

import os
from pathlib import Path
from typing import Self

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported
import numpy as np
import numpy.typing as npt
import onnxruntime

from control_plane.domain.blueprint import RuntimeSettings

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Cache = dict[str, Floats]

PAST = "past_key_values."
ONLY_FATAL = 4
_LEVELS = {
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


class Decoder:
    """One loaded model."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._past = [entry for entry in session.get_inputs() if entry.name.startswith(PAST)]
        presents = [entry.name.replace(PAST, "present.", 1) for entry in self._past]
        self._outputs = ["logits", *presents]

    @classmethod
    def open(cls, path: Path, runtime: RuntimeSettings | None = None) -> Self:
        """Load a file as the blueprint's runtime settings say."""
        runtime = runtime or RuntimeSettings()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = runtime.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = _LEVELS[runtime.graph_level]
        options.log_severity_level = ONLY_FATAL
        providers = [runtime.provider]
        return cls(onnxruntime.InferenceSession(str(path), options, providers=providers))

    def empty_cache(self) -> Cache:
        """Return the cache before the first token."""
        return {
            entry.name: np.zeros((1, entry.shape[1], 0, entry.shape[3]), np.float32)
            for entry in self._past
        }

    def step(self, ids: Ids, cache: Cache) -> tuple[Floats, Cache]:
        """Ids (1, S) after P cached tokens: logits (1, S, V) and the cache of P + S tokens."""
        logits, *present = self._session.run(self._outputs, {"input_ids": ids, **cache})
        return logits, dict(zip(cache, present, strict=True))

    def log_probabilities(self, ids: Ids) -> Floats:
        """Ids (S): log-probabilities (S, V) of the token after each."""
        logits, _ = self.step(ids[None, :], self.empty_cache())
        centred = logits[0] - logits[0].max(-1, keepdims=True)
        return np.asarray(centred - np.log(np.exp(centred).sum(-1, keepdims=True)), np.float32)
