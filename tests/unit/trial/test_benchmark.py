from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec
import pytest

from agent.benchmark import TrialError, TrialRequest, TrialResult, probe, run_trial
from agent.protocol import manifest as manifests
from agent.protocol.manifest import File, Golden, Limits, Manifest, ModelIO, Runtime, Source
from agent.protocol.messages import TrialPolicy
from agent.protocol.words import Verdict
from agent.trial.pair import R
from agent.trial.process import BlockCrashedError, BlockMalformedError, BlockTimeoutError
from agent.trial.readings import BlockRequest, Checked, Ended, Loaded, Slice, Step, Task

if TYPE_CHECKING:
    from collections.abc import Callable

PLENTY, NOTHING = 10_000.0, 0.0


class FakeDevice:
    """Blocks with the speeds we say, a diary of what was asked, and faults on demand."""

    def __init__(self, **speeds: float) -> None:
        self.speeds = speeds
        self.agreeing = 100
        self.finite = True
        self.diary: list[str] = []
        self.requests: list[BlockRequest] = []
        self.fault: Callable[[BlockRequest], Exception | None] = lambda _: None
        self.open = 0

    def start(self, request: BlockRequest, _deadline: float) -> "FakeBlock":
        self.requests.append(request)
        self.diary.append(f"start {Path(request.folder).name} {request.task}")
        return FakeBlock(self, request)


class FakeBlock:
    def __init__(self, device: FakeDevice, request: BlockRequest) -> None:
        self.device = device
        self.request = request
        self.name = Path(request.folder).name

    def __enter__(self) -> Self:
        self.device.open += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.device.open -= 1

    def read(self, kind: type[R]) -> R:
        fault = self.device.fault(self.request)
        if fault is not None:
            raise fault
        return msgspec.convert(Loaded(50.0, 0), kind, from_attributes=True)

    def ask(self, step: str, kind: type[R]) -> R:
        self.device.diary.append(f"{self.name} {step}")
        speed = 1.0 if step == Step.REFERENCE else self.device.speeds[self.name]
        return msgspec.convert(Slice(speed), kind, from_attributes=True)

    def end(self, kind: type[R]) -> R:
        if self.request.task is Task.MEASURE:
            return msgspec.convert(Ended(80.0), kind, from_attributes=True)
        self.read(Loaded)
        answer = Checked(self.device.agreeing, 100, self.device.finite)
        return msgspec.convert(answer, kind, from_attributes=True)


def bundle(
    folder: Path, *, threads: int = 1, context: int = 64, limits: Limits | None = None
) -> str:
    folder.mkdir()
    manifest = Manifest(
        model="m",
        version="1.0.0",
        release=1,
        blueprint="b",
        recipe="fp32",
        files=[File("model.onnx", 1, "0" * 64), File("golden.json", 1, "0" * 64)],
        runtime=Runtime(threads=threads),
        io=ModelIO("causal-lm", "model.onnx", 64, context, 0, 1, 1, 8),
        limits=limits or Limits(),
        golden=Golden("golden.json", 0.9),
        quality={},
        source=Source("0" * 64, 1, {}),
    )
    (folder / "manifest.json").write_bytes(manifests.encode(manifest))
    return str(folder)


@pytest.fixture
def request_(tmp_path: Path) -> TrialRequest:
    return TrialRequest(candidate=bundle(tmp_path / "new"), incumbent=bundle(tmp_path / "old"))


def tried(device: FakeDevice, request: TrialRequest, memory: float = PLENTY) -> TrialResult:
    result = run_trial(request, device.start, lambda: memory)
    assert device.open == 0
    return result


def test_an_equal_candidate_passes_at_the_first_look(request_: TrialRequest) -> None:
    result = tried(FakeDevice(new=1.0, old=1.0), request_)
    assert (result.verdict, result.error) == (Verdict.PASS, TrialError.NONE)
    assert len(result.blocks["ratio.token_ms"]) == 5


def test_a_slower_candidate_is_a_regression_at_the_first_look(request_: TrialRequest) -> None:
    result = tried(FakeDevice(new=1.8, old=1.0), request_)
    assert result.verdict is Verdict.REGRESSION
    assert result.blocks["ratio.token_ms"] == [1.8] * 5


def test_a_candidate_with_wrong_outputs_is_refused_before_any_block(request_: TrialRequest) -> None:
    device = FakeDevice(new=1.0, old=1.0)
    device.agreeing = 60
    result = tried(device, request_)
    assert result.verdict is Verdict.WRONG_OUTPUT
    assert device.diary == ["start new golden"]


def test_an_answer_that_is_no_number_is_wrong_even_where_it_agrees(request_: TrialRequest) -> None:
    device = FakeDevice(new=1.0, old=1.0)
    device.finite = False
    assert tried(device, request_).verdict is Verdict.WRONG_OUTPUT


def test_the_sides_take_turns_and_start_in_turn(request_: TrialRequest) -> None:
    device = FakeDevice(new=1.0, old=1.0)
    tried(device, request_)
    starts = [line.split()[1] for line in device.diary if line.endswith("measure")]
    assert starts[:4] == ["new", "old", "old", "new"]
    turns = [line.split()[0] for line in device.diary if "token_ms" in line]
    assert turns[:8] == ["old", "new", "new", "old", "old", "new", "new", "old"]


def test_the_seed_says_who_starts(request_: TrialRequest) -> None:
    device = FakeDevice(new=1.0, old=1.0)
    tried(device, msgspec.structs.replace(request_, seed=1))
    starts = [line.split()[1] for line in device.diary if line.endswith("measure")]
    assert starts[:4] == ["old", "new", "new", "old"]


def test_where_memory_holds_one_model_the_blocks_are_apart(request_: TrialRequest) -> None:
    device = FakeDevice(new=1.0, old=1.0)
    result = tried(device, request_, NOTHING)
    sides = [line.split()[1] for line in device.diary if line.endswith("measure")]
    first = device.diary.index("start new measure")
    between = device.diary[first + 1 : device.diary.index("start old measure")]
    assert sides[:2] == ["new", "old"]
    assert all(line.startswith("new ") for line in between)
    assert result.blocks["ratio.reference_ms"] == [1.0] * 5
    assert result.verdict is Verdict.PASS


def test_a_limit_that_is_exceeded_is_over_limit(tmp_path: Path) -> None:
    candidate = bundle(tmp_path / "new", limits=Limits(token_ms=0.5))
    result = tried(FakeDevice(new=1.0), TrialRequest(candidate=candidate))
    assert result.verdict is Verdict.OVER_LIMIT


def test_without_an_incumbent_two_blocks_are_enough(tmp_path: Path) -> None:
    result = tried(FakeDevice(new=1.0), TrialRequest(candidate=bundle(tmp_path / "new")))
    assert result.verdict is Verdict.PASS
    assert len(result.blocks["candidate.token_ms"]) == 2
    assert "ratio.token_ms" not in result.blocks


def test_an_undecided_trial_ends_at_the_most_blocks(request_: TrialRequest) -> None:
    device = FakeDevice(new=1.1, old=1.0)
    policy = TrialPolicy(min_blocks=3, max_blocks=4, tolerances={"token_ms": 0.1})
    result = tried(device, msgspec.structs.replace(request_, policy=policy))
    assert result.verdict is Verdict.INCONCLUSIVE
    assert len(result.blocks["ratio.token_ms"]) == 4


def test_one_crash_is_forgiven(request_: TrialRequest) -> None:
    device = FakeDevice(new=1.0, old=1.0)
    faults = [BlockCrashedError(request_.candidate, "killed")]
    device.fault = lambda request: faults.pop() if faults and request.task is Task.MEASURE else None
    result = tried(device, request_)
    assert result.verdict is Verdict.PASS
    assert len(result.blocks["ratio.token_ms"]) == 5


@pytest.mark.parametrize(
    ("name", "code"),
    [("new", TrialError.CANDIDATE_CRASHED), ("old", TrialError.INCUMBENT_CRASHED)],
)
def test_a_model_that_crashes_twice_ends_the_trial(
    request_: TrialRequest, name: str, code: TrialError
) -> None:
    device = FakeDevice(new=1.0, old=1.0)
    device.fault = lambda request: (
        BlockCrashedError(request.folder, "killed") if request.folder.endswith(name) else None
    )
    result = tried(device, request_)
    assert (result.verdict, result.error) == (Verdict.INCONCLUSIVE, code)


def test_a_bundle_that_cannot_be_read_is_not_tried_twice(request_: TrialRequest) -> None:
    device = FakeDevice(new=1.0, old=1.0)
    device.fault = lambda request: BlockMalformedError(request.folder, "exit status 3")
    result = tried(device, request_)
    assert result.error is TrialError.BUNDLE_MALFORMED
    assert len(device.diary) == 1


def test_a_trial_that_reaches_its_deadline_proves_nothing(request_: TrialRequest) -> None:
    device = FakeDevice(new=1.0, old=1.0)
    device.fault = lambda request: BlockTimeoutError() if request.task is Task.MEASURE else None
    result = tried(device, request_)
    assert (result.verdict, result.error) == (Verdict.INCONCLUSIVE, TrialError.DEADLINE)


@pytest.mark.parametrize("side", ["candidate", "incumbent"])
def test_a_missing_manifest_is_named(request_: TrialRequest, side: str) -> None:
    (Path(getattr(request_, side)) / "manifest.json").unlink()
    result = tried(FakeDevice(new=1.0, old=1.0), request_)
    expected = {
        "candidate": TrialError.BUNDLE_MALFORMED,
        "incumbent": TrialError.INCUMBENT_CRASHED,
    }
    assert result.error is expected[side]


def test_both_sides_do_the_same_work_whatever_their_contexts(tmp_path: Path) -> None:
    device = FakeDevice(new=1.0, old=1.0)
    request = TrialRequest(
        candidate=bundle(tmp_path / "new", context=512),
        incumbent=bundle(tmp_path / "old", context=20, threads=4),
    )
    tried(device, request)
    blocks = [one for one in device.requests if one.task is Task.MEASURE]
    assert {(one.prompt, one.tokens, one.slice, one.wall) for one in blocks} == {(10, 10, 4, True)}


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (None, TrialError.NONE),
        (BlockCrashedError("f", "exit status -11"), TrialError.CANDIDATE_CRASHED),
        (BlockMalformedError("f", "exit status 3"), TrialError.BUNDLE_MALFORMED),
        (BlockTimeoutError("f"), TrialError.DEADLINE),
    ],
)
def test_a_probe_says_what_is_wrong(fault: Exception | None, expected: TrialError) -> None:
    device = FakeDevice()
    device.fault = lambda _: fault
    assert probe("f", device.start) is expected


def test_a_probe_finds_answers_that_are_no_numbers() -> None:
    device = FakeDevice()
    device.finite = False
    assert probe("f", device.start) is TrialError.CANDIDATE_NOT_FINITE
