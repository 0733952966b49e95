"""The tree of commands: what the contract names is there, and starts quickly."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from control_plane.cli.main import app

CONTRACT = """
up
demo
apply
plan
diff
get
model push
model versions
build list
build show
device token
device list
device show
device label
device history
device quarantine
rollout start
rollout status
rollout watch
rollout wait
rollout pause
rollout resume
rollout approve
rollout promote
rollout abort
rollout revert
rollout explain
rollout deny
rollout retry
rollout simulate
model invalidate
bundle verify
bundle inspect
audit list
db upgrade
server api
server gateway
server worker
server scheduler
server dashboard
""".strip().splitlines()


@pytest.mark.parametrize("command", CONTRACT)
def test_every_command_of_the_contract_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


@pytest.mark.parametrize(
    "words",
    [["nonsense"], ["get"], ["get", "devices", "-o", "xml"], ["model", "push", "slm"], ["apply"]],
)
def test_a_wrong_use_exits_with_2(words: list[str]) -> None:
    assert CliRunner().invoke(app, words).exit_code == 2


def test_help_loads_no_heavy_library() -> None:
    heavy = ("httpx", "fastapi", "sqlalchemy", "uvicorn", "celery", "onnxruntime", "yaml")
    code = (
        "import sys; from control_plane.cli import main; "
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert said.stdout.strip() == "[]"
