import json

import pytest
import yaml

from control_plane.cli.output import Form, show, size, table

ROWS = [{"id": "edge-1", "labels": {"site": "vie"}, "online": True, "ratio": 1.23456, "none": None}]


def test_a_table_is_aligned_and_never_cut() -> None:
    rows = [{"a": "x", "b": "y" * 300}, {"a": "longer", "b": "z"}]
    lines = table(rows, [("A", "a"), ("B", "b")]).splitlines()
    assert lines == ["A       B", "x       " + "y" * 300, "longer  z"]


def test_values_are_written_for_people() -> None:
    columns = [
        ("L", "labels"),
        ("O", "online"),
        ("R", "ratio"),
        ("N", "none"),
        ("D", "labels.site"),
    ]
    assert table(ROWS, columns).splitlines()[1].split() == ["site=vie", "yes", "1.235", "-", "vie"]


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in table([{"a": "\x1b[31mred"}], [("A", "a")])


def test_json_and_yaml_are_the_whole_answer(capsys: pytest.CaptureFixture[str]) -> None:
    show(ROWS, Form.JSON, [])
    assert json.loads(capsys.readouterr().out) == ROWS
    show(ROWS, Form.YAML, [])
    assert yaml.safe_load(capsys.readouterr().out) == ROWS


def test_names_come_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    show([*ROWS, {"id": "edge-2"}], Form.NAME, [("DEVICE", "id"), ("L", "labels")])
    assert capsys.readouterr().out == "edge-1\nedge-2\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 20, "5.0 MiB"),
        (1 << 42, "4096.0 GiB"),
    ],
)
def test_sizes_are_written_for_people(count: int, text: str) -> None:
    assert size(count) == text
