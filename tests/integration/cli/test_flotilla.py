import shutil
import socket
from pathlib import Path

import pytest
import yaml

from control_plane.bootstrap import Application
from control_plane.cli import client as api
from tests.integration.api.support import BLUEPRINT, api_token, client_of, enrol_with
from tests.integration.cli.support import Flotilla

ROOT = Path(__file__).resolve().parents[3]
MODEL = ROOT / "examples/support-slm/models/1.0.0"


@pytest.fixture
def blueprint(tmp_path: Path) -> str:
    path = tmp_path / "blueprint.yaml"
    path.write_text(yaml.safe_dump(BLUEPRINT))
    return str(path)


@pytest.fixture
def devices(sqlite_app: Application) -> list[str]:
    names = ["edge-1", "edge-2"]
    with client_of(sqlite_app, api_token(sqlite_app)) as client:
        for name in names:
            enrol_with(client, name, site="vie")
    return names


# --- exit codes -------------------------------------------------------------------------------


def test_a_wrong_token_exits_with_4(flotilla: Flotilla, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOTILLA_TOKEN", "fla_wrong")
    result = flotilla.run("get", "devices")
    assert result.exit_code == 4
    assert "FLOTILLA_TOKEN" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "words",
    [
        ["device", "show", "nobody"],
        ["device", "quarantine", "nobody"],
        ["get", "blueprint", "none"],
        ["rollout", "status", "none"],
        ["rollout", "wait", "none"],
        ["model", "versions", "none"],
        ["build", "show", "none"],
        ["bundle", "inspect", "a" * 64],
    ],
)
def test_what_is_not_there_exits_with_5(flotilla: Flotilla, words: list[str]) -> None:
    result = flotilla.run(*words)
    assert result.exit_code == 5, result.output
    assert result.stderr.startswith("flotilla: no ")


def test_nobody_at_the_address_exits_with_7(
    flotilla: Flotilla, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    monkeypatch.setenv("FLOTILLA_URL", f"http://127.0.0.1:{port}")
    result = flotilla.run("get", "devices")
    assert result.exit_code == 7
    assert f"127.0.0.1:{port}" in result.stderr
    assert "flotilla up" in result.stderr


@pytest.mark.parametrize("address", ["not a url", "ftp://127.0.0.1", "http://[::1"])
def test_an_address_that_is_none_is_named(
    flotilla: Flotilla, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("FLOTILLA_URL", address)
    result = flotilla.run("get", "devices")
    assert result.exit_code in (2, 7)
    assert address in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["get", "gadgets"],
        ["get", "devices", "--filter", "flavour = "],
        ["get", "builds", "--filter", "x = 1"],
        ["apply", "-f", "/nowhere.yaml"],
        ["model", "push", "slm", "1.0.0", "/nowhere"],
        ["device", "token", "--label", "site"],
        ["rollout", "wait", "x", "--timeout", "soon"],
        ["rollout", "abort", "x", "--mode", "sometimes"],
        ["bundle", "inspect", "nonsense"],
    ],
)
def test_a_wrong_use_exits_with_2_and_says_what(flotilla: Flotilla, words: list[str]) -> None:
    result = flotilla.run(*words)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("flotilla: ")


# --- documents --------------------------------------------------------------------------------


def test_apply_says_what_it_did_and_diff_what_it_would_do(
    flotilla: Flotilla, blueprint: str, tmp_path: Path
) -> None:
    different = flotilla.run("diff", "-f", blueprint)
    assert different.exit_code == 1
    assert "+match:" in different.stdout
    assert flotilla.ok("apply", "-f", blueprint) == "Blueprint plain-cpu: created\n"
    assert flotilla.ok("apply", "-f", blueprint) == "Blueprint plain-cpu: unchanged\n"
    assert flotilla.ok("diff", "-f", blueprint) == ""
    text = Path(blueprint).read_text().replace("512", "256")
    changed = flotilla.run("diff", "-f", "-", stdin=text)
    assert changed.exit_code == 1
    assert "-  memory_mb: 512.0" in changed.stdout
    assert "+  memory_mb: 256.0" in changed.stdout
    assert flotilla.ok("apply", "-f", "-", stdin=text) == "Blueprint plain-cpu: changed\n"


def test_a_folder_is_applied_whole(flotilla: Flotilla) -> None:
    said = flotilla.ok("apply", "-f", str(ROOT / "blueprints"))
    assert len(said.splitlines()) == 3
    names = flotilla.ok("get", "blueprints", "-o", "name").split()
    assert names == ["arm64-board", "x86-64-avx2", "x86-64-vnni"]


def test_what_get_prints_as_yaml_can_be_applied_again(flotilla: Flotilla, blueprint: str) -> None:
    flotilla.ok("apply", "-f", blueprint)
    printed = flotilla.ok("get", "blueprint", "plain-cpu", "-o", "yaml")
    assert flotilla.ok("apply", "-f", "-", stdin=printed) == "Blueprint plain-cpu: unchanged\n"


def test_one_wrong_document_keeps_all_of_them_out(
    flotilla: Flotilla, blueprint: str, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(Path(blueprint).read_text().replace("recipes:", "recipies:"))
    result = flotilla.run("apply", "-f", blueprint, "-f", str(wrong))
    assert result.exit_code == 2
    assert "wrong.yaml:" in result.stderr
    assert flotilla.json("get", "blueprints") == []


# --- devices ----------------------------------------------------------------------------------


def test_devices_are_listed_filtered_and_shown(flotilla: Flotilla, devices: list[str]) -> None:
    assert flotilla.ok("device", "list", "-o", "name").split() == devices
    assert flotilla.ok("get", "devices", "--filter", 'id = "edge-2"', "-o", "name") == "edge-2\n"
    assert flotilla.json("device", "show", "edge-1")["labels"] == {"site": "vie"}
    assert "LAST SEEN" in flotilla.ok("device", "list", "-o", "wide")


def test_a_listing_reads_every_page(
    flotilla: Flotilla, devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert flotilla.ok("device", "list", "-o", "name", "--limit", "1").split() == devices[:1]
    monkeypatch.setattr(api, "PAGE", 1)
    with api.Client() as client:
        listed = [device["id"] for device in client.pages("/api/v1/devices")]
    assert listed == devices


def test_labels_history_quarantine_and_audit(flotilla: Flotilla, devices: list[str]) -> None:
    flotilla.ok("device", "label", "edge-1", "ring=a", "site-", "--reason", "moved")
    assert flotilla.json("device", "show", "edge-1")["labels"] == {"ring": "a"}
    flotilla.ok("device", "quarantine", "edge-1", "--reason", "stolen")
    assert flotilla.json("device", "show", "edge-1")["state"] == "quarantined"
    flotilla.ok("device", "quarantine", "edge-1", "--undo")
    assert flotilla.json("device", "show", "edge-1")["state"] == "active"
    assert "enrolled" in flotilla.ok("device", "history", "edge-1")
    log = flotilla.json("audit", "list", "--filter", 'actor = "ada"')
    assert {"stolen", "moved"} <= {entry["reason"] for entry in log}


def test_a_token_is_the_only_thing_on_stdout(flotilla: Flotilla) -> None:
    said = flotilla.ok("device", "token", "--label", "site=vie", "--uses", "4", "--ttl", "2h")
    assert said.startswith("flt1.")
    assert len(said.split()) == 1


# --- models -----------------------------------------------------------------------------------


def test_a_pushed_model_is_uploaded_once_and_built_for_every_blueprint(
    flotilla: Flotilla, blueprint: str
) -> None:
    flotilla.ok("apply", "-f", blueprint)
    first = flotilla.run("model", "push", "support-slm", "1.0.0", str(MODEL))
    assert first.exit_code == 0, first.output
    assert "uploading model.onnx" in first.stderr
    assert "for plain-cpu: QUEUED" in first.stdout
    again = flotilla.run("model", "push", "support-slm", "1.0.0", str(MODEL))
    assert (again.exit_code, again.stdout) == (0, first.stdout)
    assert "uploading" not in again.stderr
    (version,) = flotilla.json("model", "versions", "support-slm")
    assert version["created_by"] == "ada"
    (build,) = flotilla.json("build", "list", "--model", "support-slm")
    assert flotilla.json("build", "show", build["id"])["artifacts"] == []


def test_other_bytes_under_the_same_version_exit_with_6(flotilla: Flotilla, tmp_path: Path) -> None:
    flotilla.ok("model", "push", "support-slm", "1.0.0", str(MODEL), "--no-build")
    other = tmp_path / "other"
    shutil.copytree(MODEL, other)
    (other / "eval/heldout.txt").write_text("Something else. " * 100)
    result = flotilla.run("model", "push", "support-slm", "1.0.0", str(other))
    assert result.exit_code == 6
    assert "never changes" in result.stderr


def test_a_truncated_model_is_refused_and_not_registered(
    flotilla: Flotilla, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(MODEL, broken)
    graph = (broken / "model.onnx").read_bytes()
    (broken / "model.onnx").write_bytes(graph[: len(graph) // 2])
    result = flotilla.run("model", "push", "support-slm", "1.0.0", str(broken))
    assert result.exit_code == 2
    assert "model.onnx" in result.stderr
    assert flotilla.json("get", "models") == []


def test_a_link_in_a_model_folder_is_refused(flotilla: Flotilla, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").symlink_to("/etc/passwd")
    result = flotilla.run("model", "push", "slm", "1", str(folder))
    assert (result.exit_code, "link" in result.stderr) == (2, True)


def test_a_waiver_needs_a_recipe(flotilla: Flotilla, blueprint: str) -> None:
    flotilla.ok("apply", "-f", blueprint)
    result = flotilla.run(
        "model", "push", "support-slm", "1.0.0", str(MODEL), "--waive-quality", "because"
    )
    assert (result.exit_code, "recipe" in result.stderr) == (2, True)
