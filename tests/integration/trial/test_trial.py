import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from agent.benchmark import TrialError, TrialRequest, TrialResult, probe, run_trial
from agent.protocol.manifest import Limits
from agent.protocol.messages import TrialPolicy
from agent.protocol.words import Verdict
from agent.trial.process import (
    BlockCrashedError,
    BlockMalformedError,
    BlockProcess,
    BlockTimeoutError,
)
from agent.trial.readings import BlockRequest, Checked, Ended, Loaded, Slice, Step, Task
from tests.integration.trial.bundles import tiny_bundle

SOON = 60.0
# Tolerances so wide that only a broken measurement fails on a busy machine.
WIDE = TrialPolicy(
    tolerances={"token_ms": 1.0, "first_token_ms": 1.0, "load_ms": 2.0},
    min_blocks=3,
    max_blocks=4,
    tokens=16,
)


def corrupt(folder: Path, value: float) -> None:
    """Overwrite the model's output weights, as a wrong kernel or a broken recipe would."""
    model = onnx.load(folder / "model.onnx")
    head = next(one for one in model.graph.initializer if one.name == "head")
    weights = np.full_like(numpy_helper.to_array(head), value)
    head.CopyFrom(numpy_helper.from_array(weights, "head"))
    onnx.save(model, folder / "model.onnx")


def block(folder: Path, task: Task) -> BlockProcess:
    return BlockProcess(BlockRequest(task=task, folder=str(folder)), time.monotonic() + SOON)


def command(*arguments: str, given: bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "agent.benchmark", *arguments],
        input=given,
        capture_output=True,
        env={**os.environ, **env},
        timeout=SOON,
        check=False,
    )


def test_a_model_passes_against_itself(tmp_path: Path) -> None:
    folder = str(tiny_bundle(tmp_path / "a"))
    request = TrialRequest(candidate=folder, incumbent=folder, policy=WIDE)
    done = command(given=msgspec.json.encode(request))
    result = msgspec.json.decode(done.stdout, type=TrialResult)
    assert (done.returncode, result.verdict, result.error) == (0, Verdict.PASS, TrialError.NONE)
    assert all(len(result.blocks[f"ratio.{name}"]) >= 3 for name in ("token_ms", "load_ms"))


def test_a_model_that_does_ten_times_the_work_is_a_regression(tmp_path: Path) -> None:
    request = TrialRequest(
        candidate=str(tiny_bundle(tmp_path / "slow", extra=20)),
        incumbent=str(tiny_bundle(tmp_path / "fast")),
        policy=WIDE,
    )
    assert run_trial(request).verdict is Verdict.REGRESSION


def test_a_model_in_a_device_too_small_for_two_is_measured_apart(tmp_path: Path) -> None:
    request = TrialRequest(
        candidate=str(tiny_bundle(tmp_path / "slow", extra=20)),
        incumbent=str(tiny_bundle(tmp_path / "fast")),
        policy=msgspec.structs.replace(WIDE, min_blocks=5, max_blocks=6),
    )
    result = run_trial(request, available=lambda: 0.0)
    assert result.verdict is Verdict.REGRESSION
    assert len(result.blocks["ratio.reference_ms"]) >= 5


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_wrong_weights_are_caught_before_any_block(tmp_path: Path, value: float) -> None:
    folder = tiny_bundle(tmp_path / "a")
    corrupt(folder, value)
    result = run_trial(TrialRequest(candidate=str(folder), policy=WIDE))
    assert result.verdict is Verdict.WRONG_OUTPUT
    assert "candidate.token_ms" not in result.blocks


def test_a_limit_is_judged_without_an_incumbent(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path / "a", limits=Limits(memory_mb=1.0))
    result = run_trial(TrialRequest(candidate=str(folder), policy=WIDE))
    assert result.verdict is Verdict.OVER_LIMIT


def test_a_truncated_model_is_a_crash_and_not_a_verdict(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path / "a")
    model = folder / "model.onnx"
    model.write_bytes(model.read_bytes()[:1000])
    result = run_trial(TrialRequest(candidate=str(folder), policy=WIDE))
    assert (result.verdict, result.error) == (
        Verdict.INCONCLUSIVE,
        TrialError.CANDIDATE_CRASHED,
    )


def test_a_golden_token_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path / "a")
    golden = json.loads((folder / "golden.json").read_text())
    golden["prompts"][0]["tokens"][0] = 64
    (folder / "golden.json").write_text(json.dumps(golden))
    with block(folder, Task.GOLDEN) as running, pytest.raises(BlockMalformedError):
        running.end(Checked)


def test_a_block_that_is_killed_is_a_crash(tmp_path: Path) -> None:
    with block(tiny_bundle(tmp_path / "a"), Task.MEASURE) as running:
        running.read(Loaded)
        running.process.kill()
        with pytest.raises(BlockCrashedError, match="-9"):
            running.ask(Step.DECODE, Slice)


def test_a_block_that_hangs_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    request = BlockRequest(task=Task.MEASURE, folder=str(tiny_bundle(tmp_path / "a")))
    with BlockProcess(request, time.monotonic() + SOON) as running:
        running.read(Loaded)
        os.kill(running.process.pid, signal.SIGSTOP)
        running.deadline = time.monotonic() + 0.05
        with pytest.raises(BlockTimeoutError):
            running.ask(Step.DECODE, Slice)
    assert running.process.returncode == -signal.SIGKILL


def test_a_trial_past_its_deadline_says_so(tmp_path: Path) -> None:
    request = TrialRequest(candidate=str(tiny_bundle(tmp_path / "a")), deadline_s=0.01)
    assert run_trial(request).error is TrialError.DEADLINE


def test_a_block_reports_its_own_memory_and_not_its_parents(tmp_path: Path) -> None:
    ballast = bytearray(400 * 2**20)
    with block(tiny_bundle(tmp_path / "a"), Task.MEASURE) as running:
        running.read(Loaded)
        assert running.end(Ended).memory_mb < len(ballast) / 2**20


def test_trials_of_one_machine_take_turns(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    request = TrialRequest(candidate=str(tmp_path / "none"), lock=str(lock))
    with (
        lock.open("w") as held,
        subprocess.Popen(
            [sys.executable, "-m", "agent.benchmark"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as waiting,
    ):
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.communicate(msgspec.json.encode(request), timeout=1.0)
        fcntl.flock(held, fcntl.LOCK_UN)
        answer, _ = waiting.communicate(timeout=SOON)
    assert msgspec.json.decode(answer, type=TrialResult).error is TrialError.BUNDLE_MALFORMED


@pytest.mark.parametrize("lock", [[], ["lock"]])
def test_a_healthy_bundle_answers_its_probe(tmp_path: Path, lock: list[str]) -> None:
    folder = str(tiny_bundle(tmp_path / "a"))
    done = command("--probe", folder, *(str(tmp_path / name) for name in lock))
    assert (done.returncode, done.stdout) == (0, b"healthy\n")


def test_other_arguments_are_a_usage_error() -> None:
    assert command("--prob", "folder").returncode == 2


def test_a_probe_waits_for_its_turn(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    arguments = [sys.executable, "-m", "agent.benchmark", "--probe", str(tmp_path), str(lock)]
    with lock.open("w") as held, subprocess.Popen(arguments, stdout=subprocess.PIPE) as waiting:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.communicate(timeout=1.0)
        fcntl.flock(held, fcntl.LOCK_UN)
        answer, _ = waiting.communicate(timeout=SOON)
    assert answer == b"bundle.malformed\n"


def test_a_bundle_that_answers_no_numbers_fails_its_probe(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path / "a")
    corrupt(folder, float("nan"))
    done = command("--probe", str(folder))
    assert (done.returncode, done.stdout) == (1, b"candidate.not_finite\n")


def test_a_folder_without_a_bundle_fails_its_probe(tmp_path: Path) -> None:
    assert probe(str(tmp_path)) is TrialError.BUNDLE_MALFORMED


def test_a_malformed_request_is_its_own_failure() -> None:
    done = command(given=b'{"candidate": 1}')
    assert done.returncode == 2
    assert b"candidate" in done.stderr
