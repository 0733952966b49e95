"""Reads ONNX graphs: one canonical form for what we write, and walks for what we check."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before anything imports onnxruntime
import onnx

PRODUCER = "flotilla"


def load(path: Path) -> onnx.ModelProto:
    """Read a model; never follows external data."""
    return onnx.load(str(path), load_external_data=False)


def save_canonical(model: onnx.ModelProto, path: Path) -> None:
    """Write a model without what a tool left in it: the same model gives the same bytes."""
    model.producer_name, model.producer_version = PRODUCER, ""
    model.doc_string, model.domain = "", ""
    del model.metadata_props[:]
    for graph in graphs(model.graph):
        graph.doc_string = ""
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
        for value in (*graph.value_info, *graph.input, *graph.output, *graph.initializer):
            value.doc_string = ""
            del value.metadata_props[:]
    path.write_bytes(model.SerializeToString(deterministic=True))


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and every graph inside it (the branches of If and their like)."""
    waiting = [graph]
    while waiting:
        here = waiting.pop()
        yield here
        for node in here.node:
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += attribute.graphs


def weights_of(model: onnx.ModelProto, operator: str) -> dict[str, list[int]]:
    """Return the shape of the constant right side of every node of one operator, by node name."""
    constants = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    return {
        node.name: constants[node.input[1]]
        for node in model.graph.node
        if node.op_type == operator and len(node.input) > 1 and node.input[1] in constants
    }
