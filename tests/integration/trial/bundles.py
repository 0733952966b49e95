"""Bundles for trials: a tiny causal LM made with onnx.helper, and the shipped example's."""

import hashlib
import json
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from agent.protocol import manifest as manifests
from agent.protocol.manifest import (
    File,
    Golden,
    GoldenPrompt,
    GoldenSet,
    Limits,
    Manifest,
    ModelIO,
    Runtime,
    Source,
)

VOCAB, WIDTH, CONTEXT = 64, 32, 64
NO_LIMITS = Limits()
EXAMPLE = Path("examples/support-slm/models")


def tiny_bundle(
    folder: Path,
    *,
    layers: int = 1,
    seed: int = 0,
    scale: float = 1.0,
    limits: Limits = NO_LIMITS,
    extra: int = 0,
) -> Path:
    """Write a bundle of a random causal LM; `extra` adds matrix products per token (slower)."""
    folder.mkdir(parents=True)
    onnx.save(_tiny_model(layers, seed, scale, extra), folder / "model.onnx")
    # What the model says is decided by the last token alone, so numpy can say it as well.
    tokens = np.random.default_rng(1).integers(0, VOCAB, (4, 12))
    expected = _embedding(seed)[tokens] @ _embedding(seed).T
    prompts = [
        GoldenPrompt(f"g{index}", row.tolist(), best.tolist())
        for index, (row, best) in enumerate(zip(tokens, expected.argmax(-1), strict=True))
    ]
    io = ModelIO("causal-lm", "model.onnx", VOCAB, CONTEXT, 0, layers, 2, WIDTH // 2)
    return finish(folder, GoldenSet(prompts), io, limits)


def finish(folder: Path, golden: GoldenSet, io: ModelIO, limits: Limits = NO_LIMITS) -> Path:
    """Write golden.json and manifest.json beside a model."""
    (folder / "golden.json").write_bytes(msgspec.json.encode(golden))
    manifest = Manifest(
        model="tiny",
        version="1.0.0",
        release=1,
        blueprint="test",
        recipe="fp32",
        files=[_file(folder / name) for name in ("model.onnx", "golden.json")],
        runtime=Runtime(),
        io=io,
        limits=limits,
        golden=Golden("golden.json", 0.9),
        quality={},
        source=Source("0" * 64, 1, {}),
    )
    (folder / "manifest.json").write_bytes(manifests.encode(manifest))
    return folder


def example_bundle(version: str, folder: Path) -> Path:
    """Write the shipped model as a bundle, unquantized; its golden set holds only its prompts."""
    from tokenizers import Tokenizer  # noqa: PLC0415 - only the examples need it

    source = EXAMPLE / version
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes((source / "model.onnx").read_bytes())
    said = json.loads((source / "model.json").read_text())
    io = msgspec.convert({**said, "entry": "model.onnx"}, ModelIO)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    texts = json.loads((source / "eval" / "prompts.json").read_text())["prompts"]
    golden = [(text["id"], tokenizer.encode(text["text"]).ids) for text in texts]
    return finish(folder, GoldenSet([GoldenPrompt(i, ids, ids) for i, ids in golden]), io)


def _file(path: Path) -> File:
    data = path.read_bytes()
    return File(path.name, len(data), hashlib.sha256(data).hexdigest())


def _embedding(seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((VOCAB, WIDTH)).astype(np.float32)


def _tiny_model(layers: int, seed: int, scale: float, extra: int) -> onnx.ModelProto:
    """Logits are embedding times its transpose; the cache grows as a real one's does."""
    weights = [
        numpy_helper.from_array(_embedding(seed), "embedding"),
        numpy_helper.from_array(_embedding(seed).T * np.float32(scale), "head"),
        numpy_helper.from_array(np.array([0, 0, 2, WIDTH // 2]), "split"),
        numpy_helper.from_array(np.zeros((WIDTH, 4096), np.float32), "wide"),
        numpy_helper.from_array(np.zeros((4096, WIDTH), np.float32), "narrow"),
    ]
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["x0"]),
        helper.make_node("Reshape", ["x0", "split"], ["heads"]),
        helper.make_node("Transpose", ["heads"], ["state"], perm=[0, 2, 1, 3]),
    ]
    for index in range(extra):
        nodes += [
            helper.make_node("MatMul", [f"x{index}", "wide"], [f"w{index}"]),
            helper.make_node("MatMul", [f"w{index}", "narrow"], [f"n{index}"]),
            helper.make_node("Add", [f"x{index}", f"n{index}"], [f"x{index + 1}"]),
        ]
    nodes.append(helper.make_node("MatMul", [f"x{extra}", "head"], ["logits"]))
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", VOCAB])]
    for layer in range(layers):
        for part in ("key", "value"):
            past, present = f"past_key_values.{layer}.{part}", f"present.{layer}.{part}"
            shape = ["batch", 2, "past", WIDTH // 2]
            inputs.append(helper.make_tensor_value_info(past, TensorProto.FLOAT, shape))
            nodes.append(helper.make_node("Concat", [past, "state"], [present], axis=2))
            shape = ["batch", 2, "total", WIDTH // 2]
            outputs.append(helper.make_tensor_value_info(present, TensorProto.FLOAT, shape))
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
