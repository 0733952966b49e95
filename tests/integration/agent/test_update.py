"""A real agent process against a simulated control plane, over real HTTPS and MQTT."""

import threading

import pytest

from agent.protocol.messages import Bench, State
from agent.protocol.words import Action, ExecutionState, Reason, Verdict
from tests.integration.agent.conftest import Agent
from tests.support.control_plane_simulator import Simulator

pytestmark = pytest.mark.integration
S = ExecutionState


def states(plane: Simulator, execution: str) -> list[ExecutionState]:
    found = sorted(plane.events(execution), key=lambda event: (event.boot, event.seq))
    return [event.state for event in found]


def test_a_device_goes_from_nothing_to_a_confirmed_model(plane: Simulator, device: Agent) -> None:
    bundle = plane.bundle("1.0.0", 1)
    device.start()
    plane.order(device.name, bundle)
    done = plane.wait_event(S.SUCCEEDED)
    assert done.reason is Reason.SOAKED
    assert done.digest == bundle.digest
    assert states(plane, "x1") == [
        S.DOWNLOADING,
        S.STAGED,
        S.BENCHMARKING,
        S.ACTIVATING,
        S.SOAKING,
        S.SUCCEEDED,
    ]
    assert (device.data / "active" / "model.onnx").read_bytes()
    assert plane.wait(
        lambda: next((s for s in plane.all(State) if s.digest == bundle.digest), None)
    ).last_known_good in {"", bundle.digest}
    assert device.end() == 0
    assert device.status()["version"] == "1.0.0"


def test_a_worse_model_never_becomes_active(plane: Simulator, device: Agent) -> None:
    first = plane.bundle("1.0.0", 1)
    device.start()
    plane.order(device.name, first)
    plane.wait_event(S.SUCCEEDED)
    plane.order(device.name, plane.bundle("1.1.0", 2, trial="regression"))
    back = plane.wait_event(S.ROLLED_BACK)
    assert (back.reason, back.digest) == (Reason.TRIAL_REGRESSION, first.digest)
    assert S.ACTIVATING not in states(plane, "x2")
    bench = plane.wait(lambda: next((b for b in plane.all(Bench) if b.execution == "x2"), None))
    assert bench.verdict is Verdict.REGRESSION
    assert bench.incumbent == first.digest
    assert bench.metrics[0].ratio == 3.0
    assert device.status()["version"] == "1.0.0"


def test_a_crashing_candidate_is_rolled_back(plane: Simulator, device: Agent) -> None:
    device.start()
    plane.order(device.name, plane.bundle("1.0.0", 1))
    plane.wait_event(S.SUCCEEDED)
    plane.order(device.name, plane.bundle("1.1.0", 2, trial="crash"))
    assert plane.wait_event(S.ROLLED_BACK).reason is Reason.TRIAL_CRASHED


def test_an_unhealthy_model_is_taken_back_during_its_soak(plane: Simulator, device: Agent) -> None:
    first = plane.bundle("1.0.0", 1)
    device.start()
    plane.order(device.name, first)
    plane.wait_event(S.SUCCEEDED)
    plane.order(device.name, plane.bundle("1.1.0", 2, probe="unhealthy"))
    back = plane.wait_event(S.ROLLED_BACK)
    assert (back.reason, back.digest) == (Reason.SOAK_UNHEALTHY, first.digest)
    assert device.status()["active"] == first.digest


def test_an_inconclusive_trial_is_repeated(plane: Simulator, device: Agent) -> None:
    device.start()
    plane.order(device.name, plane.bundle("1.0.0", 1, trial="inconclusive once"))
    plane.wait_event(S.SUCCEEDED)
    plane.wait(lambda: len({bench.seq for bench in plane.all(Bench)}) == 2)
    verdicts = {bench.seq: bench.verdict for bench in plane.all(Bench)}
    assert [verdicts[seq] for seq in sorted(verdicts)] == [Verdict.INCONCLUSIVE, Verdict.PASS]


def test_a_revert_order_returns_to_the_spare_slot_without_a_download(
    plane: Simulator, device: Agent
) -> None:
    first = plane.bundle("1.0.0", 1)
    device.start()
    for ref in (first, plane.bundle("1.1.0", 2)):
        plane.order(device.name, ref)
        plane.wait_event(S.SUCCEEDED)
    asked = len(plane.requests)
    plane.order(device.name, first, action=Action.REVERT)
    back = plane.wait_event(S.ROLLED_BACK)
    assert (back.reason, back.digest) == (Reason.REVERTED, first.digest)
    assert len(plane.requests) == asked
    plane.wait(lambda: next((s for s in plane.all(State) if s.reason is Reason.REVERTED), None))
    assert device.status()["version"] == "1.0.0"


def test_a_hold_cancels_a_download(plane: Simulator, device: Agent) -> None:
    plane.faults.hold = threading.Event()
    device.start()
    plane.order(device.name, plane.bundle("1.0.0", 1))
    plane.wait_event(S.DOWNLOADING)
    plane.order(device.name, None, action=Action.HOLD, execution="x1")
    assert plane.wait_event(S.CANCELED, "x1").reason is Reason.WITHDRAWN
    plane.faults.hold.set()
    plane.wait(lambda: next((s for s in plane.all(State) if s.generation == 2), None))
    assert device.end() == 0


def test_a_newer_order_takes_over_a_download(plane: Simulator, device: Agent) -> None:
    plane.faults.hold = threading.Event()
    device.start()
    plane.order(device.name, plane.bundle("1.0.0", 1))
    plane.wait_event(S.DOWNLOADING)
    newer = plane.bundle("1.1.0", 2)
    plane.order(device.name, newer)
    plane.wait_event(S.SUPERSEDED, "x1")
    plane.faults.hold.set()
    assert plane.wait_event(S.SUCCEEDED).digest == newer.digest


def test_the_same_order_again_is_not_followed_twice(plane: Simulator, device: Agent) -> None:
    device.start()
    envelope = plane.order(device.name, plane.bundle("1.0.0", 1))
    plane.wait_event(S.SUCCEEDED)
    told = len(plane.all(State))
    plane.publish(device.name, envelope)
    plane.wait(lambda: len(plane.all(State)) > told)
    assert states(plane, "x1").count(S.DOWNLOADING) == 1
