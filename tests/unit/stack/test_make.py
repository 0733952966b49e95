"""What `make` says before there is anything to run it with."""

import subprocess
from pathlib import Path

import pytest

from tests.support import ensure, services

ROOT = Path(__file__).resolve().parents[3]


def make(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_lists_every_target_for_people() -> None:
    shown = make("help").stdout

    phony = next(
        line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY")
    )
    for target in phony.removeprefix(".PHONY:").split():
        assert f"make {target} " in shown


def test_an_old_python_is_refused_with_what_to_do(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)

    done = make("setup", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")

    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert "PYTHON=/path/to/" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_every_file_that_ci_runs_is_executable_by_its_name() -> None:
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_a_missing_program_is_reported_as_its_package() -> None:
    def find(program: str) -> str:
        if program in {"postgres", "initdb", "mosquitto"}:
            raise services.MissingServiceError(program)
        return f"/usr/bin/{program}"

    assert ensure.missing(find) == ["mosquitto", "postgresql"]


def test_the_advice_names_every_missing_package() -> None:
    advice = ensure.advice(["mosquitto", "redis-server"])

    assert "apt-get install mosquitto redis-server" in advice


@pytest.mark.parametrize("program", sorted(ensure.WANTED))
def test_every_program_that_the_tests_need_is_here(program: str) -> None:
    assert Path(ensure.find(program)).exists()
