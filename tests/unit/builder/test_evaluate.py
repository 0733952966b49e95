import os
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported
import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from agent.protocol.manifest import GoldenSet
from control_plane.builder import heldout
from control_plane.builder.evaluate import measure
from control_plane.builder.job import Evaluation, Numbers, Task
from control_plane.domain.blueprint import RuntimeSettings
from control_plane.domain.errors import InvalidError
from control_plane.domain.model import parse_descriptor
from tests.support import tiny_lm


def run(folder: Path, work: Path, model: Path | None = None) -> Numbers:
    """Measure the source, or a candidate after it."""
    work.mkdir(exist_ok=True)
    descriptor, _ = parse_descriptor((folder / "model.json").read_bytes())
    return measure(
        Task(
            model=str(model or folder / "model.onnx"),
            folder=str(work),
            descriptor=descriptor,
            runtime=RuntimeSettings(),
            is_source=model is None,
            evaluation=Evaluation(windows=4, tokens=48),
            upload=str(folder),
        )
    )


def weights_times(factor: float, path: Path) -> Path:
    model = tiny_lm.graph()
    head = next(tensor for tensor in model.graph.initializer if tensor.name == "head")
    head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) * np.float32(factor), "head"))
    onnx.save(model, str(path))
    return path


def test_the_source_agrees_with_itself_perfectly(folder: Path, tmp_path: Path) -> None:
    source = run(folder, tmp_path / "work")
    same = run(folder, tmp_path / "work", folder / "model.onnx").quality
    assert same["perplexity"] == pytest.approx(source.quality["perplexity"])
    assert (same["perplexity_ratio"], same["kl_mean"], same["kl_p99"]) == (1.0, 0.0, 0.0)
    assert (same["top1_agreement"], same["golden_agreement"]) == (1.0, 1.0)


def test_a_candidate_that_is_surer_diverges_without_changing_its_mind(
    folder: Path, tmp_path: Path
) -> None:
    run(folder, tmp_path / "work")
    surer = weights_times(1.2, tmp_path / "surer.onnx")
    found = run(folder, tmp_path / "work", surer).quality
    assert found["top1_agreement"] == found["golden_agreement"] == 1.0
    assert 0.0 < found["kl_mean"] < found["kl_p99"]
    assert found["perplexity_ratio"] != 1.0


def test_a_candidate_that_says_the_opposite_agrees_nowhere(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "work")
    opposite = weights_times(-1.0, tmp_path / "opposite.onnx")
    found = run(folder, tmp_path / "work", opposite).quality
    assert found["top1_agreement"] == found["golden_agreement"] == 0.0
    assert found["kl_mean"] > 1.0


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_numbers_that_are_not_finite_are_left_out(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "work")
    broken = weights_times(float("nan"), tmp_path / "broken.onnx")
    found = run(folder, tmp_path / "work", broken).quality
    assert not {"kl_mean", "kl_p99", "perplexity_ratio"} & found.keys()


def test_speed_and_memory_are_measured(folder: Path, tmp_path: Path) -> None:
    measured = run(folder, tmp_path / "work").measured
    assert measured.keys() >= {"load_ms", "first_token_ms", "token_ms"}
    assert all(value > 0 for value in measured.values())


def test_the_golden_set_holds_the_sources_own_next_tokens(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "work")
    golden = msgspec.json.decode((tmp_path / "work" / "golden.json").read_bytes(), type=GoldenSet)
    assert [prompt.id for prompt in golden.prompts] == ["p0", "p1", "p2", "p3"]
    assert all(len(prompt.tokens) == len(prompt.expected) > 0 for prompt in golden.prompts)
    descriptor, _ = parse_descriptor((folder / "model.json").read_bytes())
    tokenizer = heldout.open_tokenizer(folder / "tokenizer.json", descriptor)
    assert tokenizer.decode(golden.prompts[0].tokens) == " ".join(tiny_lm.WORDS[:6])


def test_calibration_text_is_never_judged(folder: Path) -> None:
    descriptor, _ = parse_descriptor((folder / "model.json").read_bytes())
    tokenizer = heldout.open_tokenizer(folder / "tokenizer.json", descriptor)
    text = (folder / "eval" / "heldout.txt").read_text()
    windows = heldout.cut(tokenizer, text, descriptor, 4, 32)
    judged = {tuple(row[:-1]) for row in windows.judged.tolist()}
    calibration = {tuple(row) for row in windows.calibration.tolist()}
    assert len(judged) == 4
    assert calibration
    assert not judged & calibration


def test_held_out_text_too_short_to_judge_by_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "eval" / "heldout.txt").write_text("the fox\n")
    with pytest.raises(InvalidError, match="at least 64 are needed") as refused:
        run(folder, tmp_path / "work")
    assert refused.value.field == "eval/heldout.txt"
