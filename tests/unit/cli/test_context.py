import json
from pathlib import Path

import pytest

from control_plane.cli.context import DEFAULT_URL, current
from control_plane.cli.exits import CliError, Exit
from control_plane.cli.options import labels, seconds


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("FLOTILLA_URL", "FLOTILLA_TOKEN", "FLOTILLA_CA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLOTILLA_DATA", str(tmp_path))
    return tmp_path


def local(data: Path) -> None:
    endpoint = {"url": "http://127.0.0.1:9999/", "token_file": "admin.token"}
    (data / "endpoint.json").write_text(json.dumps(endpoint))
    (data / "admin.token").write_text("fla_local\n")


def test_without_anything_it_is_the_default_address_and_no_token(data: Path) -> None:
    found = current()
    assert (found.url, found.token) == (DEFAULT_URL, "")


def test_the_data_folder_says_where_and_as_whom(data: Path) -> None:
    local(data)
    found = current()
    assert (found.url, found.token) == ("http://127.0.0.1:9999", "fla_local")


def test_the_environment_goes_first(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local(data)
    monkeypatch.setenv("FLOTILLA_URL", "https://fleet.example/")
    monkeypatch.setenv("FLOTILLA_TOKEN", "fla_mine")
    found = current()
    assert (found.url, found.token) == ("https://fleet.example", "fla_mine")


def test_the_local_token_never_goes_to_another_address(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local(data)
    monkeypatch.setenv("FLOTILLA_URL", "https://fleet.example")
    assert current().token == ""


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_broken_endpoint_file_is_named(data: Path, text: str) -> None:
    (data / "endpoint.json").write_text(text)
    with pytest.raises(CliError, match=r"endpoint\.json") as caught:
        current()
    assert caught.value.code is Exit.USAGE


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90), ("90s", 90), ("5m", 300), ("1.5h", 5400), ("250ms", 0.25)]
)
def test_durations_are_read(text: str, expected: float) -> None:
    assert seconds(text, "--timeout") == expected


@pytest.mark.parametrize("text", ["", "soon", "5 minutes", "-3s"])
def test_a_wrong_duration_is_named(text: str) -> None:
    with pytest.raises(CliError, match="--timeout"):
        seconds(text, "--timeout")


def test_labels_are_set_and_taken_away() -> None:
    assert labels(["site=vie", "ring=", "old-"], "label") == {
        "site": "vie",
        "ring": "",
        "old": None,
    }


@pytest.mark.parametrize("text", ["site", "=vie", "-"])
def test_a_wrong_label_is_named(text: str) -> None:
    with pytest.raises(CliError, match="key=value"):
        labels([text], "label")
