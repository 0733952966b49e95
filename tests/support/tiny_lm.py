"""A model folder in milliseconds: a random one-layer causal LM, tokenizer and eval files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY, WIDTH, HEADS, HEAD_DIM, CONTEXT = 300, 32, 2, 16, 64
FLOAT, WHOLE = TensorProto.FLOAT, TensorProto.INT64

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "reads",
    "a",
    "small",
    "model",
    "and",
    "writes",
    "one",
    "token",
    "after",
    "another",
]


def write_folder(folder: Path, *, seed: int = 0) -> Path:
    """Write a whole model folder."""
    (folder / "eval").mkdir(parents=True)
    onnx.save(graph(seed), str(folder / "model.onnx"))
    _tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "model.json").write_text(json.dumps(descriptor()))
    (folder / "eval" / "heldout.txt").write_text(_text())
    prompts = [{"id": f"p{i}", "text": " ".join(WORDS[i : i + 6])} for i in range(4)]
    (folder / "eval" / "prompts.json").write_text(json.dumps({"schema": 1, "prompts": prompts}))
    return folder


def descriptor() -> dict[str, Any]:
    """What model.json says."""
    return {
        "schema": 1,
        "kind": "causal-lm",
        "vocab_size": VOCABULARY,
        "context_length": CONTEXT,
        "eos_token_id": 0,
        "kv_layers": 1,
        "kv_heads": HEADS,
        "head_dim": HEAD_DIM,
    }


def _text() -> str:
    draw = np.random.default_rng(7)
    documents = [" ".join(draw.choice(WORDS, 40)) for _ in range(24)]
    return "\n<|end|>\n".join(documents) + "\n"


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_text()], trainer)
    return tokenizer


def graph(seed: int = 0) -> onnx.ModelProto:
    """The graph: embedding, one attention layer with a cache, output matrix."""
    cache = ["batch", HEADS, "past", HEAD_DIM]
    present = ["batch", HEADS, "total", HEAD_DIM]
    return helper.make_model(
        helper.make_graph(
            _nodes(),
            "tiny",
            [
                helper.make_tensor_value_info("input_ids", WHOLE, ["batch", "seq"]),
                helper.make_tensor_value_info("past_key_values.0.key", FLOAT, cache),
                helper.make_tensor_value_info("past_key_values.0.value", FLOAT, cache),
            ],
            [
                helper.make_tensor_value_info("logits", FLOAT, ["batch", "seq", VOCABULARY]),
                helper.make_tensor_value_info("present.0.key", FLOAT, present),
                helper.make_tensor_value_info("present.0.value", FLOAT, present),
            ],
            [numpy_helper.from_array(value, name) for name, value in _weights(seed).items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )


def _weights(seed: int) -> dict[str, np.ndarray[Any, Any]]:
    draw = np.random.default_rng(seed)
    inner = HEADS * HEAD_DIM

    def matrix(rows: int, columns: int, scale: float) -> np.ndarray[Any, Any]:
        return (draw.standard_normal((rows, columns)) * scale).astype(np.float32)

    return {
        "embedding": matrix(VOCABULARY, WIDTH, 1.0),
        "q": matrix(WIDTH, inner, 0.2),
        "k": matrix(WIDTH, inner, 0.2),
        "v": matrix(WIDTH, inner, 0.2),
        "o": matrix(inner, WIDTH, 0.2),
        # Peaked answers, so that rounding rarely changes the most likely token.
        "head": matrix(WIDTH, VOCABULARY, 0.6),
        "split": np.array([0, 0, HEADS, HEAD_DIM], np.int64),
        "join": np.array([0, 0, inner], np.int64),
        "scale": np.array(HEAD_DIM**-0.5, np.float32),
        "never": np.array(-1e9, np.float32),
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "rows": np.array([1], np.int64),
        "first": np.array([0], np.int64),
    }


def _nodes() -> list[onnx.NodeProto]:
    node = helper.make_node
    nodes = [node("Gather", ["embedding", "input_ids"], ["x"], "embed")]
    for part in ("q", "k", "v"):
        nodes += [
            node("MatMul", ["x", part], [f"{part}_flat"], f"{part}_proj"),
            node("Reshape", [f"{part}_flat", "split"], [f"{part}_split"], f"{part}_split"),
            node(
                "Transpose", [f"{part}_split"], [f"{part}_new"], f"{part}_turn", perm=[0, 2, 1, 3]
            ),
        ]
    past = "past_key_values.0"
    nodes += [
        node("Concat", [f"{past}.key", "k_new"], ["present.0.key"], "keys", axis=2),
        node("Concat", [f"{past}.value", "v_new"], ["present.0.value"], "values", axis=2),
        # Position of each query and key, to let a token see itself and what came before.
        node("Shape", ["present.0.key"], ["total"], "total", start=2, end=3),
        node("Shape", [f"{past}.key"], ["before"], "before", start=2, end=3),
        node("Squeeze", ["total", "first"], ["total_n"], "total_n"),
        node("Squeeze", ["before", "first"], ["before_n"], "before_n"),
        node("Range", ["before_n", "total_n", "one"], ["queries"], "queries"),
        node("Range", ["zero", "total_n", "one"], ["keys_at"], "keys_at"),
        node("Unsqueeze", ["queries", "rows"], ["queries_column"], "column"),
        node("Greater", ["keys_at", "queries_column"], ["future"], "future"),
        node("Transpose", ["present.0.key"], ["k_turned"], "turn", perm=[0, 1, 3, 2]),
        node("MatMul", ["q_new", "k_turned"], ["raw"], "scores"),
        node("Mul", ["raw", "scale"], ["scaled"], "scaled"),
        node("Where", ["future", "never", "scaled"], ["masked"], "mask"),
        node("Softmax", ["masked"], ["weights"], "softmax", axis=-1),
        node("MatMul", ["weights", "present.0.value"], ["mixed"], "mix"),
        node("Transpose", ["mixed"], ["mixed_turned"], "turn_back", perm=[0, 2, 1, 3]),
        node("Reshape", ["mixed_turned", "join"], ["joined"], "join"),
        node("MatMul", ["joined", "o"], ["attended"], "o_proj"),
        node("Add", ["x", "attended"], ["y"], "residual"),
        node("MatMul", ["y", "head"], ["logits"], "lm_head"),
    ]
    return nodes
