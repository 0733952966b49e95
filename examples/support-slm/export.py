"""A trained network as the folder that `model push` takes: lean ONNX, tokenizer, eval set."""

import json
import logging
import platform
from pathlib import Path

import numpy as np
import onnx
import torch
from corpus import END, Corpus, golden_prompts, join_documents
from network import Cache, LanguageModel
from onnx import numpy_helper
from runtime import Decoder
from tokenizers import Tokenizer
from torch import Tensor, nn

LICENCE = "PSF-2.0"
OPSET = 18
TOLERANCE = 1e-3
"""Greatest difference allowed between a logit from torch and from ONNX Runtime."""


def write_version(
    folder: Path, model: LanguageModel, tokenizer: Tokenizer, corpus: Corpus, steps: int
) -> None:
    """Write one version, and check the written model against the one in memory."""
    evaluation = folder / "eval"
    evaluation.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (evaluation / "heldout.txt").write_text(join_documents(corpus.held_out), encoding="utf-8")
    _write_json(evaluation / "prompts.json", _prompts(corpus))
    _write_json(folder / "model.json", _descriptor(model, tokenizer, corpus, steps))
    export(model, folder / "model.onnx")
    worst = greatest_difference(model, folder / "model.onnx")
    print(f"{folder}: greatest difference between torch and ONNX Runtime {worst:.1e}")
    if worst > TOLERANCE:
        raise SystemExit(f"{folder}/model.onnx computes something else than the trained network")


def _prompts(corpus: Corpus) -> dict[str, object]:
    prompts = golden_prompts(corpus.held_out)
    return {
        "schema": 1,
        "prompts": [{"id": f"p{n:02}", "text": text} for n, text in enumerate(prompts, 1)],
    }


def _descriptor(
    model: LanguageModel, tokenizer: Tokenizer, corpus: Corpus, steps: int
) -> dict[str, object]:
    shape = model.shape
    return {
        "schema": 1,
        "kind": "causal-lm",
        "vocab_size": shape.vocabulary,
        "context_length": shape.context,
        "eos_token_id": tokenizer.token_to_id(END),
        "kv_layers": shape.kv_layers,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "licence": LICENCE,
        "trained_on": (
            f"docstrings and help topics of the Python {platform.python_version()} standard"
            f" library (sha256 {corpus.digest()}), {steps} steps"
        ),
        "parameters": model.parameter_count(),
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class FlatCache(nn.Module):
    """The network with its cache as a flat list, as ONNX sees it: key 0, value 0, key 1, ..."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        logits, caches = self.model(input_ids, list(zip(past[::2], past[1::2], strict=True)))
        return logits, *(tensor for cache in caches for tensor in cache)


def export(model: LanguageModel, path: Path) -> None:
    """Write `path`: batch, new tokens and cached tokens are free, and the cache may be empty."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    past = [tensor for cache in random_caches(model, batch=2, length=5) for tensor in cache]
    free = torch.export.Dim.AUTO
    names = [
        f"past_key_values.{layer}.{part}"
        for layer in range(model.shape.kv_layers)
        for part in ("key", "value")
    ]
    program = torch.onnx.export(
        FlatCache(model).eval(),
        (torch.zeros(2, 4, dtype=torch.long), past),
        dynamo=True,
        opset_version=OPSET,
        input_names=["input_ids", *names],
        output_names=["logits", *(name.replace("past_key_values", "present") for name in names)],
        dynamic_shapes={"input_ids": {0: free, 1: free}, "past": [{0: free, 2: free}] * len(past)},
        verbose=False,
    )
    proto = program.model_proto
    fold_transposed_weights(proto.graph)
    strip(proto)
    name_free_sizes(proto.graph)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def fold_transposed_weights(graph: onnx.GraphProto) -> None:
    """Store a weight the way MatMul reads it, so that quantizers see a constant.

    Only where Transpose nodes are all that use it: the embedding, which Gather reads too,
    would be stored twice.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {name: [] for name in weights}
    for node in graph.node:
        for name in node.input:
            if name in readers:
                readers[name].append(node)
    renamed: dict[str, str] = {}
    for name, nodes in readers.items():
        if nodes and all(node.op_type == "Transpose" for node in nodes):
            turned = np.ascontiguousarray(numpy_helper.to_array(weights[name]).T)
            weights[name].CopyFrom(numpy_helper.from_array(turned, name))
            renamed.update((node.output[0], name) for node in nodes)
    kept = [node for node in graph.node if node.output[0] not in renamed]
    for node in kept:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(kept)


def strip(proto: onnx.ModelProto) -> None:
    """Drop what only the exporter's authors need: traces, source paths, intermediate shapes."""
    graph = proto.graph
    del proto.metadata_props[:]
    del graph.metadata_props[:]
    del graph.value_info[:]
    for part in (proto, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("doc_string")
        if not isinstance(part, onnx.ModelProto | onnx.GraphProto):
            del part.metadata_props[:]


def name_free_sizes(graph: onnx.GraphProto) -> None:
    """Replace the exporter's numbered symbols with words."""
    for value in (*graph.input, *graph.output):
        sizes = value.type.tensor_type.shape.dim
        sizes[0].dim_param = "batch"
        if value.name.startswith("past_key_values."):
            sizes[2].dim_param = "past"
        elif value.name.startswith("present."):
            sizes[2].dim_param = "total"
        else:
            sizes[1].dim_param = "sequence"


def random_caches(model: LanguageModel, batch: int, length: int) -> list[Cache]:
    """Caches of noise (batch, K, length, E) for every application of a layer."""
    size = (batch, model.shape.kv_heads, length, model.shape.head_dim)
    return [(torch.randn(size), torch.randn(size)) for _ in range(model.shape.kv_layers)]


@torch.no_grad()
def greatest_difference(model: LanguageModel, path: Path) -> float:
    """Largest gap between logits, over shapes that the export never saw.

    Whole prompts from an empty cache, and the same prompts token by token through the cache.
    """
    decoder = Decoder.open(path)
    draw = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch, length in ((1, 1), (1, 33), (3, 17), (1, model.shape.context)):
        ids = torch.randint(0, model.shape.vocabulary, (batch, length), generator=draw)
        expected = model(ids)[0].numpy()
        whole, _ = decoder.step(ids.numpy(), decoder.empty_cache(batch))
        worst = max(worst, float(np.abs(whole - expected).max()))
        cache = decoder.empty_cache(batch)
        for position in range(length):
            logits, cache = decoder.step(ids.numpy()[:, position : position + 1], cache)
            worst = max(worst, float(np.abs(logits[:, 0] - expected[:, position]).max()))
    return worst
