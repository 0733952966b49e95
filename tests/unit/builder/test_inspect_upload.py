import contextlib
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from control_plane.builder.inspect_upload import check_graph, inspect
from control_plane.builder.inspection import inspect_apart
from control_plane.domain.errors import InvalidError
from control_plane.domain.model import Descriptor
from tests.support import tiny_lm

DESCRIPTOR = Descriptor(
    vocab_size=tiny_lm.VOCABULARY,
    context_length=tiny_lm.CONTEXT,
    eos_token_id=0,
    kv_layers=1,
    kv_heads=tiny_lm.HEADS,
    head_dim=tiny_lm.HEAD_DIM,
)
BYTES = tiny_lm.graph().SerializeToString()


def refusal(path: Path, descriptor: Descriptor = DESCRIPTOR) -> InvalidError:
    with pytest.raises(InvalidError) as refused:
        check_graph(path, descriptor)
    return refused.value


def test_a_whole_folder_passes(folder: Path) -> None:
    assert inspect(folder) == DESCRIPTOR
    inspect_apart(folder.parent, 8192)


@given(cut=st.integers(0, len(BYTES) - 1))
def test_a_graph_truncated_anywhere_is_refused(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(BYTES[:cut])
    assert refusal(path).field.startswith("model.onnx")


@given(at=st.integers(0, len(BYTES) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_harmless_but_never_an_accident(
    at: int, bit: int, tmp_path: Path
) -> None:
    damaged = bytearray(BYTES)
    damaged[at] ^= 1 << bit
    path = tmp_path / "model.onnx"
    path.write_bytes(damaged)
    with contextlib.suppress(InvalidError):
        check_graph(path, DESCRIPTOR)


@given(data=st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    assert refusal(path).field.startswith("model.onnx")


@pytest.mark.parametrize("head", [b"PK\x03\x04", b"\x80\x04\x95"])
def test_a_pickle_or_an_archive_in_disguise_is_named_as_such(head: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(head + b"\0" * 100)
    assert "pickle" in refusal(path).message


def outside(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def outside_in_an_attribute(model: onnx.ModelProto) -> None:
    tensor = onnx.TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights")
    model.graph.node.append(helper.make_node("Constant", [], ["c"], "c", value=tensor))


def foreign(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Run", ["x"], ["c"], "c", domain="my.shell"))


def function(model: onnx.ModelProto) -> None:
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("", "Twice", ["a"], ["b"], body, opsets))


def endless(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["c"], "for-ever", body=body))


def endless_inside(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    loop = helper.make_node("Loop", ["", ""], ["c"], "for-ever", body=inner)
    branch = helper.make_graph([loop], "branch", [], [])
    model.graph.node.append(
        helper.make_node("If", ["x"], ["d"], "if", then_branch=branch, else_branch=branch)
    )


def short(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = b"\0" * 8


def huge(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [2**40, 2**40]


def old(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 7


def unconnected(model: onnx.ModelProto) -> None:
    model.graph.node[-1].input[0] = "nowhere"


def extra_input(model: onnx.ModelProto) -> None:
    value = helper.make_tensor_value_info("secret", TensorProto.FLOAT, [1])
    model.graph.input.append(value)


def no_logits(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "hidden"
    model.graph.node[-1].output[0] = "hidden"


def half_cache(model: onnx.ModelProto) -> None:
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.FLOAT16


@pytest.mark.parametrize(
    ("harm", "where", "says"),
    [
        (outside, "external_data", "lies in another file"),
        (outside_in_an_attribute, "external_data", "lies in another file"),
        (foreign, "graph.node", "my.shell"),
        (function, "functions", "inline"),
        (endless, "graph.node", "Loop"),
        (endless_inside, "graph.node", "Loop"),
        (short, "initializer", "has 8 bytes"),
        (huge, "initializer", "its shape says"),
        (old, "opset_import", "opset 7"),
        (unconnected, "", "not valid ONNX"),
        (extra_input, "graph.input", "'secret'"),
        (no_logits, "graph.output", "'logits'"),
        (half_cache, "graph.input", "not of type FLOAT"),
    ],
)
def test_a_graph_that_could_do_harm_is_refused_by_name(
    harm: Callable[[onnx.ModelProto], None], where: str, says: str, tmp_path: Path
) -> None:
    model = tiny_lm.graph()
    harm(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    refused = refusal(path)
    assert says in refused.message
    assert where in refused.field


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kv_heads": 3}, "size 2 in dimension 1, model.json says 3"),
        ({"head_dim": 8}, "size 16 in dimension 3, model.json says 8"),
        ({"vocab_size": 301}, "size 300 in dimension 2, model.json says 301"),
        ({"kv_layers": 2}, "which model.json promises"),
    ],
)
def test_a_descriptor_that_disagrees_with_the_graph_is_refused(
    change: dict[str, int], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(BYTES)
    fields = {name: getattr(DESCRIPTOR, name) for name in DESCRIPTOR.__dataclass_fields__}
    assert says in refusal(path, Descriptor(**{**fields, **change})).message


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folder: Path) -> None:
    text = (folder / "model.json").read_text().replace("300", "290")
    (folder / "model.json").write_text(text)
    with pytest.raises(InvalidError) as refused:
        inspect(folder)
    assert refused.value.field == "model.json:vocab_size"


def test_a_file_that_is_no_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(InvalidError) as refused:
        inspect(folder)
    assert refused.value.field == "tokenizer.json"


def test_the_confined_inspection_says_the_same(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(BYTES[: len(BYTES) // 2])
    with pytest.raises(InvalidError) as refused:
        inspect_apart(folder.parent, 8192)
    assert refused.value.field == "model.onnx"
    assert "truncated or damaged" in refused.value.message


def test_a_parser_that_runs_out_of_memory_refuses_the_upload(folder: Path) -> None:
    with pytest.raises(InvalidError, match=r"model\.onnx cannot be inspected") as refused:
        inspect_apart(folder.parent, 64)
    assert refused.value.field == "model.onnx"
