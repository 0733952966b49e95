"""Quantized builds of one version: sound ones, and one that is a well-known mistake."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # as in runtime.py, whichever is imported first
import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from runtime import Decoder, Ids

CALIBRATION_WINDOWS = 24
CACHED = 32
"""Tokens that calibration puts into the cache before the rest of a window."""

Recipe: TypeAlias = Callable[[Path, Path, Sequence[Ids]], None]
"""Source file, file to write, windows of token ids (1, S) to calibrate on."""


def int8_dynamic(source: Path, target: Path, _windows: Sequence[Ids]) -> None:
    """Weights of every MatMul, the embedding table too, in int8 with a scale per channel."""
    with_constants(source, target)
    quantize_dynamic(target, target, weight_type=QuantType.QInt8, per_channel=True)


def int4_blocks(source: Path, target: Path, _windows: Sequence[Ids]) -> None:
    """Weights of every MatMul, the embedding table too, in int4 with a scale per 32 values."""
    with_constants(source, target)
    settings = DefaultWeightOnlyQuantConfig(
        block_size=32,
        is_symmetric=False,
        accuracy_level=4,
        op_types_to_quantize=("MatMul", "Gather"),
    )
    quantizer = MatMulNBitsQuantizer(onnx.load(target), algo_config=settings)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target))


def static_weights(source: Path, target: Path, windows: Sequence[Ids]) -> None:
    """Static int8 where it is harmless: MatMul with a constant, and Gather."""
    _static(source, target, windows, ["MatMul", "Gather"], {"MatMulConstBOnly": True})


def static_everything(source: Path, target: Path, windows: Sequence[Ids]) -> None:
    """Static int8 of every operator. The mistake: one scale spans the mask's -1e9 and 0."""
    _static(source, target, windows, None, {})


def _static(
    source: Path,
    target: Path,
    windows: Sequence[Ids],
    operators: list[str] | None,
    options: dict[str, bool],
) -> None:
    with_constants(source, target)
    quantize_static(
        target,
        target,
        CachedWindows(source, windows[:CALIBRATION_WINDOWS]),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=operators,
        extra_options=options,
    )


RECIPES: dict[str, Recipe] = {
    "int8 dynamic, per channel": int8_dynamic,
    "int4, blocks of 32": int4_blocks,
    "int8 static, MatMul and Gather": static_weights,
    "int8 static, every operator": static_everything,
}


def with_constants(source: Path, target: Path) -> None:
    """Fold constants, so that the output matrix (the embedding, turned) counts as a weight."""
    quant_pre_process(source, target, skip_symbolic_shape=True)


class CachedWindows(CalibrationDataReader):
    """Windows of tokens to calibrate on, their first part already in the cache."""

    def __init__(self, source: Path, windows: Sequence[Ids]) -> None:
        self.decoder = Decoder.open(source)
        self.windows = windows
        self.rewind()

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Inputs of the next run, or None at the end."""
        return next(self.feeds, None)

    def rewind(self) -> None:
        """Start again at the first window."""
        self.feeds = self._feeds()

    def _feeds(self) -> Iterator[dict[str, np.ndarray]]:
        for window in self.windows:
            _, cache = self.decoder.step(window[:, :CACHED], self.decoder.empty_cache(1))
            yield {"input_ids": window[:, CACHED:], **cache}
