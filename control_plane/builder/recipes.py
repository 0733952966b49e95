"""Carries out recipes: a source file in, an artifact's file out, with ONNX Runtime's own tools.

Works in the current folder, which must be private: the tools leave files behind when they fail.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, assert_never

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported
import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from control_plane.builder import graph
from control_plane.builder.decoder import Decoder
from control_plane.builder.errors import BuildError
from control_plane.domain.recipe import Blocks, Copy, Dynamic, Half, Recipe, Static

Ids = npt.NDArray[np.int64]

CACHED_SHARE = 4
"""A calibration window's first quarter goes into the cache, as it is when decoding."""


class Kitchen:
    """Carries out recipes on one source.

    Args:
        source: the fp32 graph.
        vocab_size: tells the output matrix from the others.
        calibration: windows of token ids (1, S), for static recipes only.
        work: a private folder.
    """

    def __init__(
        self, source: Path, vocab_size: int, calibration: Sequence[Ids], work: Path
    ) -> None:
        self._source = source
        self._vocab_size = vocab_size
        self._calibration = calibration
        self._work = work
        self._prepared: Path | None = None

    def cook(self, recipe: Recipe, target: Path) -> None:
        """Write the artifact of one recipe to `target`."""
        match recipe.method:
            case Copy():
                model = graph.load(self._source)
            case Half():
                model = convert_float_to_float16(graph.load(self._source), keep_io_types=True)
            case Dynamic(signed=signed):
                model = self._dynamic(signed=signed)
            case Blocks() as blocks:
                model = self._blocks(blocks)
            case Static(operators=operators):
                model = self._static(operators)
            case other:
                assert_never(other)
        graph.save_canonical(model, target)

    def _prepare(self) -> Path:
        # Folds constants, so that a tied (turned) embedding counts as a weight. Symbolic shape
        # inference gives up on exported decoders, and is not needed for these recipes.
        if self._prepared is None:
            prepared = self._work / "prepared.onnx"
            quant_pre_process(str(self._source), str(prepared), skip_symbolic_shape=True)
            self._prepared = prepared
        return self._prepared

    def _dynamic(self, *, signed: bool) -> onnx.ModelProto:
        made = self._work / "dynamic.onnx"
        kind = QuantType.QInt8 if signed else QuantType.QUInt8
        quantize_dynamic(str(self._prepare()), str(made), weight_type=kind, per_channel=True)
        return graph.load(made)

    def _blocks(self, blocks: Blocks) -> onnx.ModelProto:
        model = graph.load(self._prepare())
        if blocks.head_bits != blocks.bits:
            model = self._head(model, blocks)
        return _n_bits(model, blocks.bits, blocks.block_size, ("MatMul", "Gather"), [])

    def _head(self, model: onnx.ModelProto, blocks: Blocks) -> onnx.ModelProto:
        shapes = graph.weights_of(model, "MatMul")
        others = [name for name, shape in shapes.items() if shape[-1] != self._vocab_size]
        if len(others) == len(shapes):
            raise BuildError("no MatMul with the vocabulary's width: there is no output matrix")
        return _n_bits(model, blocks.head_bits, blocks.block_size, ("MatMul",), others)

    def _static(self, operators: tuple[str, ...]) -> onnx.ModelProto:
        if not self._calibration:
            raise BuildError("eval/heldout.txt is too short to calibrate on as well")
        made = self._work / "static.onnx"
        quantize_static(
            str(self._prepare()),
            str(made),
            _Calibration(self._source, self._calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=list(operators) or None,
            extra_options={"MatMulConstBOnly": True} if operators else {},
        )
        return graph.load(made)


def _n_bits(
    model: onnx.ModelProto, bits: int, block: int, operators: tuple[str, ...], exclude: list[str]
) -> onnx.ModelProto:
    # Brings sympy along, which is most of a build's start; other recipes do without.
    from onnxruntime.quantization.matmul_nbits_quantizer import (  # noqa: PLC0415
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    settings = DefaultWeightOnlyQuantConfig(
        block_size=block,
        is_symmetric=False,
        accuracy_level=4,  # int8 activations: without it decoding is twice as slow
        bits=bits,
        op_types_to_quantize=operators,
    )
    quantizer = MatMulNBitsQuantizer(model, algo_config=settings, nodes_to_exclude=exclude)
    quantizer.process()
    return quantizer.model.model


class _Calibration(CalibrationDataReader):  # type: ignore[misc] # onnxruntime is untyped
    """Windows of tokens, their first part already in the cache."""

    def __init__(self, source: Path, windows: Sequence[Ids]) -> None:
        self._decoder = Decoder.open(source)
        self._windows = windows
        self._feeds = self._all()

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        return next(self._feeds, None)

    def rewind(self) -> None:
        """Start again at the first window."""
        self._feeds = self._all()

    def _all(self) -> Iterator[dict[str, npt.NDArray[Any]]]:
        for window in self._windows:
            cached = window.shape[1] // CACHED_SHARE
            _, cache = self._decoder.step(window[:, :cached], self._decoder.empty_cache())
            yield {"input_ids": window[:, cached:], **cache}
