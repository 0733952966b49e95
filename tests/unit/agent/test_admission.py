"""Which orders and manifests a device accepts."""

import pytest

from agent import admission
from agent.protocol.manifest import File
from agent.protocol.words import Action, ExecutionState, Reason
from tests.unit.agent.story import NEW, NOW, bundle, manifest, order, standing


def test_a_good_order_is_accepted() -> None:
    assert admission.refuse_order(order(), standing(), NOW.wall) is None


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"device": "edge-2"}, Reason.ORDER_DEVICE),
        ({"generation": 0}, Reason.ORDER_OLDER),
        ({"expires": int(NOW.wall)}, Reason.ORDER_EXPIRED),
        ({"bundle": None}, Reason.ORDER_MALFORMED),
        ({"bundle": None, "action": Action.REVERT}, Reason.ORDER_MALFORMED),
        ({"bundle": bundle("0.1.0", 0)}, Reason.BUNDLE_OLDER),
    ],
)
def test_each_refusal_has_its_reason(wrong: dict[str, object], reason: Reason) -> None:
    assert admission.refuse_order(order(**wrong), standing(), NOW.wall) is reason  # type: ignore[arg-type]  # one wrong field


def test_a_signed_revert_may_go_below_the_floor() -> None:
    revert = order(1, bundle("0.1.0", 0), action=Action.REVERT)
    assert admission.refuse_order(revert, standing(), NOW.wall) is None


def test_a_hold_needs_no_bundle() -> None:
    assert admission.refuse_order(order(1, None, action=Action.HOLD), standing(), NOW.wall) is None


def test_a_manifest_as_ordered_is_accepted() -> None:
    assert admission.refuse_manifest(NEW, manifest(NEW), "board") is None


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"version": "9"},
        {"release": 9},
        {"files": [File("model.onnx", NEW.size + 1, "0" * 64)]},
    ],
)
def test_a_manifest_that_differs_from_its_order_is_refused(change: dict[str, object]) -> None:
    found = admission.refuse_manifest(NEW, manifest(NEW, **change), "board")
    assert found is Reason.BUNDLE_MISMATCH


def test_a_bundle_for_other_hardware_is_refused() -> None:
    found = admission.refuse_manifest(NEW, manifest(NEW, blueprint="other"), "board")
    assert found is Reason.HARDWARE_MISMATCH


def test_a_device_that_was_not_told_its_blueprint_trusts_the_order() -> None:
    assert admission.refuse_manifest(NEW, manifest(NEW, blueprint="any"), "") is None


def test_a_bundle_may_not_overwrite_the_agents_own_files() -> None:
    files = [File("Manifest.JSON", NEW.size, "0" * 64)]
    found = admission.refuse_manifest(NEW, manifest(NEW, files=files), "board")
    assert found is Reason.BUNDLE_MALFORMED


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        (Reason.ORDER_EXPIRED, ExecutionState.REJECTED),
        (Reason.RUNTIME_MISSING, ExecutionState.REJECTED),
        (Reason.DOWNLOAD_DIGEST, ExecutionState.FAILED),
        (Reason.DISK_FULL, ExecutionState.FAILED),
        (Reason.ACTIVATE_FAILED, ExecutionState.FAILED),
        (Reason.TRIAL_CRASHED, ExecutionState.ROLLED_BACK),
        (Reason.CRASH_LOOP, ExecutionState.ROLLED_BACK),
        (Reason.SUPERSEDED, ExecutionState.SUPERSEDED),
    ],
)
def test_a_reason_says_how_an_execution_ends(reason: Reason, state: ExecutionState) -> None:
    assert admission.terminal_state(reason) is state
