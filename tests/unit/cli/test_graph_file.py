from pathlib import Path

import pytest

from control_plane.cli.exits import CliError, Exit
from control_plane.cli.graph_file import check_whole
from tests.support import tiny_lm


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return tiny_lm.write_folder(tmp_path / "model") / "model.onnx"


def test_a_whole_graph_passes(graph: Path) -> None:
    check_whole(graph)


@pytest.mark.parametrize("left", [0.001, 0.5, 0.999])
def test_a_truncated_graph_is_refused_with_what_is_missing(graph: Path, left: float) -> None:
    whole = graph.read_bytes()
    graph.write_bytes(whole[: int(len(whole) * left)])
    with pytest.raises(CliError, match="truncated or damaged after") as refused:
        check_whole(graph)
    assert refused.value.code is Exit.USAGE
    assert str(graph) in refused.value.message


@pytest.mark.parametrize("data", [b"\xff" * 20, b"\x07", b"\x80", b"\x0a\x80", b"\x0d\x00\x00"])
def test_what_is_no_graph_is_refused(tmp_path: Path, data: bytes) -> None:
    place = tmp_path / "model.onnx"
    place.write_bytes(data)
    with pytest.raises(CliError, match="truncated or damaged"):
        check_whole(place)
