"""Refuses a graph that is damaged, reaches outside its file, or is not what model.json says.

``python -m control_plane.builder.inspect_upload FOLDER`` does it in a confined process, because
parsing a stranger's file is already a risk.
"""

import math
import sys
from collections.abc import Iterable
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from control_plane.builder import graph as graphs
from control_plane.builder import job as files
from control_plane.builder.heldout import open_tokenizer
from control_plane.builder.job import Inspection, Result
from control_plane.builder.process import confine
from control_plane.domain import model as layout
from control_plane.domain.errors import InvalidError
from control_plane.domain.model import Descriptor

DOMAINS = frozenset(("", "ai.onnx", "com.microsoft"))
OPSETS = range(13, 30)
MAX_NODES = 100_000
# These can run for ever on a few bytes of input, and no exported decoder needs them.
REFUSED = frozenset(("Loop", "Scan", "SequenceMap"))
# Several of these share a byte.
PACKED = frozenset((onnx.TensorProto.INT4, onnx.TensorProto.UINT4))
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def inspect(folder: Path) -> Descriptor:
    """Check a whole upload; raise `InvalidError` naming file and field, or return model.json."""
    descriptor, _ = layout.parse_descriptor((folder / layout.DESCRIPTOR).read_bytes())
    layout.parse_prompts((folder / layout.PROMPTS).read_bytes())
    layout.check_held_out((folder / layout.HELD_OUT).read_bytes())
    open_tokenizer(folder / layout.TOKENIZER, descriptor)
    check_graph(folder / layout.GRAPH, descriptor)
    return descriptor


def check_graph(path: Path, descriptor: Descriptor) -> None:
    """Check the graph alone."""
    model = _parse(path)
    _check_shape_of_file(model)
    for graph in graphs.graphs(model.graph):
        _check_nodes(graph)
        for tensor in graph.initializer:
            _check_tensor(tensor)
    _check_interface(model.graph, descriptor)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:  # ValueError: names not UTF-8
        raise _refuse(f"is not valid ONNX: {str(error).strip().splitlines()[0]}") from error


def _parse(path: Path) -> onnx.ModelProto:
    with path.open("rb") as file:
        if file.read(4).startswith(PICKLES):
            raise _refuse("is a Python pickle or an archive, not ONNX; export the model to ONNX")
    try:
        model = graphs.load(path)
    except (DecodeError, ValueError) as error:
        raise _refuse(
            "cannot be read as ONNX: the file is truncated or damaged; upload it again"
        ) from error
    if not model.graph.node or not model.graph.output:
        raise _refuse("has no graph: the file is empty, truncated or not ONNX")
    return model


def _check_shape_of_file(model: onnx.ModelProto) -> None:
    for opset in model.opset_import:
        _check_domain(opset.domain, "opset_import")
        if opset.domain in {"", "ai.onnx"} and opset.version not in OPSETS:
            raise _refuse(
                f"uses opset {opset.version}; {OPSETS[0]} to {OPSETS[-1]} are taken", "opset_import"
            )
    if model.functions:
        # Nested functions expand exponentially when the file is loaded.
        raise _refuse(f"defines {len(model.functions)} functions; inline them", "functions")


def _check_nodes(graph: onnx.GraphProto) -> None:
    if len(graph.node) > MAX_NODES:
        raise _refuse(f"has {len(graph.node)} nodes; at most {MAX_NODES}", "graph.node")
    for index, node in enumerate(graph.node):
        where = f"graph.node[{index}]"
        _check_domain(node.domain, where)
        if node.op_type in REFUSED:
            raise _refuse(f"node {node.name!r:.80} is a {node.op_type}; unroll it", where)
        for attribute in node.attribute:
            for tensor in (attribute.t, *attribute.tensors):
                _check_tensor(tensor)


def _check_domain(domain: str, where: str) -> None:
    if domain not in DOMAINS:
        raise _refuse(
            f"needs operators of {domain!r:.80}; known: {', '.join(sorted(DOMAINS - {''}))}", where
        )


def _check_tensor(tensor: onnx.TensorProto) -> None:
    where = f"initializer {tensor.name!r:.80}"
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise _refuse(
            f"{where} lies in another file; save the model as one file without external data",
            "external_data",
        )
    if tensor.HasField("raw_data"):
        try:
            item = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        except KeyError as error:
            raise _refuse(f"{where} has an unknown data type", "initializer") from error
        wanted, found = math.prod(tensor.dims) * item, len(tensor.raw_data)
        fits = found <= wanted if tensor.data_type in PACKED else found == wanted
        if any(dim < 0 for dim in tensor.dims) or not fits:
            raise _refuse(f"{where} has {found} bytes, its shape says {wanted}", "initializer")


def _check_interface(graph: onnx.GraphProto, descriptor: Descriptor) -> None:
    past = [f"{layer}.{part}" for layer in range(descriptor.kv_layers) for part in ("key", "value")]
    cache = (None, descriptor.kv_heads, None, descriptor.head_dim)
    whole, number = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    wanted_in = {f"past_key_values.{name}": (number, cache) for name in past}
    _check_values("input", inputs, {"input_ids": (whole, (None, None)), **wanted_in})
    logits = (number, (None, None, descriptor.vocab_size))
    wanted_out = {f"present.{name}": (number, cache) for name in past}
    _check_values("output", graph.output, {"logits": logits, **wanted_out})


Wanted = dict[str, tuple[int, tuple[int | None, ...]]]


def _check_values(side: str, values: Iterable[onnx.ValueInfoProto], wanted: Wanted) -> None:
    found = {value.name: value.type.tensor_type for value in values}
    for name in wanted.keys() - found.keys():
        raise _refuse(
            f"has no {side} {name!r}, which {layout.DESCRIPTOR} promises", f"graph.{side}"
        )
    for name in found.keys() - wanted.keys():
        raise _refuse(f"has an {side} {name!r:.80} that nobody would feed or read", f"graph.{side}")
    for name, (kind, shape) in wanted.items():
        _check_value(f"{side} {name!r}", f"graph.{side}", found[name], kind, shape)


def _check_value(
    what: str,
    where: str,
    found: onnx.TypeProto.Tensor,
    kind: int,
    shape: tuple[int | None, ...],
) -> None:
    if found.elem_type != kind:
        raise _refuse(f"{what} is not of type {onnx.TensorProto.DataType.Name(kind)}", where)
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in found.shape.dim]
    if len(dims) != len(shape):
        raise _refuse(f"{what} has {len(dims)} dimensions, expected {len(shape)}", where)
    for place, (dim, fixed) in enumerate(zip(dims, shape, strict=True)):
        if dim != fixed:
            raise _refuse(
                f"{what} has size {dim or 'free'} in dimension {place}, {layout.DESCRIPTOR} says "
                f"{fixed or 'free'}",
                where,
            )


def _refuse(what: str, where: str = "") -> InvalidError:
    field = f"{layout.GRAPH}:{where}" if where else layout.GRAPH
    return InvalidError(f"{layout.GRAPH} {what}", field=field)


def main() -> None:
    """Inspect the upload in a job's folder and write what was found."""
    folder = Path(sys.argv[1])
    job = files.read_job(folder / files.JOB, Inspection)
    confine(job.caps)
    try:
        inspect(folder / files.SOURCE)
        result = Result()
    except InvalidError as error:
        result = Result(error=error.message, field=error.field)
    files.write(folder / files.RESULT, result)


if __name__ == "__main__":
    main()
