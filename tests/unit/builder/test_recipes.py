import os
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported
import numpy as np
import onnx
import pytest

from control_plane.builder import graph
from control_plane.builder.decoder import Decoder
from control_plane.builder.errors import BuildError
from control_plane.builder.recipes import Kitchen
from control_plane.domain.recipe import RECIPES, Recipe
from tests.support import tiny_lm

WINDOWS = [np.arange(start, start + 32)[None, :] for start in (3, 40, 90)]


def cook(folder: Path, work: Path, recipe: Recipe, calibration: int = 3) -> bytes:
    work.mkdir()
    kitchen = Kitchen(folder / "model.onnx", tiny_lm.VOCABULARY, WINDOWS[:calibration], work)
    kitchen.cook(recipe, work / "out.onnx")
    return (work / "out.onnx").read_bytes()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_gives_the_same_bytes_every_time_and_they_decode(
    recipe: Recipe, folder: Path, tmp_path: Path
) -> None:
    first = cook(folder, tmp_path / "a", recipe)
    assert first == cook(folder, tmp_path / "another-name", recipe)
    decoder = Decoder.open(tmp_path / "a" / "out.onnx")
    logits, cache = decoder.step(np.array([[5, 6, 7]]), decoder.empty_cache())
    logits, cache = decoder.step(np.array([[8]]), cache)
    assert logits.shape == (1, 1, tiny_lm.VOCABULARY)
    assert {value.shape for value in cache.values()} == {(1, tiny_lm.HEADS, 4, tiny_lm.HEAD_DIM)}


def test_each_recipe_is_smaller_than_the_source_where_it_says_so(
    folder: Path, tmp_path: Path
) -> None:
    sizes = {name: len(cook(folder, tmp_path / name, recipe)) for name, recipe in RECIPES.items()}
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
    assert sizes["int8-dynamic"] < 0.4 * sizes["fp32"]
    assert sizes["int4-block32"] < sizes["int4-mixed"] < sizes["int8-dynamic"]


def test_the_mixed_recipe_keeps_eight_bits_in_the_output_matrix_only(
    folder: Path, tmp_path: Path
) -> None:
    cook(folder, tmp_path / "work", RECIPES["int4-mixed"])
    made = graph.load(tmp_path / "work" / "out.onnx")
    bits = {
        node.name: next(a.i for a in node.attribute if a.name == "bits")
        for node in made.graph.node
        if node.op_type == "MatMulNBits"
    }
    head = {name for name in bits if name.startswith("lm_head")}
    assert {bits[name] for name in head} == {8}
    assert {bits[name] for name in bits.keys() - head} == {4}
    assert len(bits) == 5


def test_nothing_that_a_tool_noted_is_left_in_an_artifact(folder: Path, tmp_path: Path) -> None:
    model = tiny_lm.graph()
    model.doc_string = model.graph.doc_string = model.graph.node[0].doc_string = "a note"
    model.metadata_props.add(key="author", value="somebody")
    onnx.save(model, str(folder / "model.onnx"))
    made = cook(folder, tmp_path / "work", RECIPES["fp32"])
    assert b"a note" not in made
    assert b"somebody" not in made


def test_a_static_recipe_without_text_to_calibrate_on_says_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="too short to calibrate"):
        cook(folder, tmp_path / "work", RECIPES["static-qdq-matmul"], calibration=0)
