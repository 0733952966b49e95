"""What is wrong with an order, a bundle or the bytes: each is refused by its own name."""

from pathlib import Path

import pytest

from agent.protocol.messages import State
from agent.protocol.words import ExecutionState, Reason
from control_plane.signing.keyring import Keyring
from tests.integration.agent.conftest import Agent
from tests.support.control_plane_simulator import Simulator

pytestmark = pytest.mark.integration
S = ExecutionState


@pytest.fixture
def running(plane: Simulator, device: Agent) -> Agent:
    """A device that runs 1.1.0 (release 2), confirmed."""
    device.start()
    plane.order(device.name, plane.bundle("1.1.0", 2))
    plane.wait_event(S.SUCCEEDED)
    return device


def refused(plane: Simulator, device: Agent, state: ExecutionState, reason: Reason) -> None:
    """Assert the end of the newest order, and that the device runs what it ran."""
    event = plane.wait_event(state)
    assert event.reason is reason
    assert device.status()["version"] == "1.1.0"
    assert (device.data / "active" / "model.onnx").exists()


def test_an_order_signed_by_a_stranger(plane: Simulator, running: Agent, tmp_path: Path) -> None:
    mine, plane.keyring = plane.keyring, Keyring.open(tmp_path / "stranger")
    plane.order(running.name, plane.bundle("1.2.0", 3))
    plane.keyring = mine
    refused(plane, running, S.REJECTED, Reason.ORDER_SIGNATURE)


def test_a_forged_order_does_not_use_up_its_generation(
    plane: Simulator, running: Agent, tmp_path: Path
) -> None:
    mine, plane.keyring = plane.keyring, Keyring.open(tmp_path / "stranger")
    plane.order(running.name, plane.bundle("1.2.0", 3))
    plane.wait_event(S.REJECTED)
    plane.keyring = mine
    plane.order(running.name, plane.bundle("1.2.0", 3), generation=2)
    plane.wait_event(S.SUCCEEDED)


def test_an_order_that_is_no_order(plane: Simulator, running: Agent) -> None:
    plane.publish(running.name, plane.keyring.sign_order(b'{"no":"order"}'))
    event = plane.wait(
        lambda: next((e for e in plane.events() if e.reason is Reason.ORDER_MALFORMED), None)
    )
    assert event.state is S.REJECTED


def test_an_order_for_another_device(plane: Simulator, running: Agent) -> None:
    envelope = plane.order("edge-2", plane.bundle("1.2.0", 3), publish=False)
    plane.publish(running.name, envelope)
    refused(plane, running, S.REJECTED, Reason.ORDER_DEVICE)


def test_an_order_that_has_expired(plane: Simulator, running: Agent) -> None:
    plane.order(running.name, plane.bundle("1.2.0", 3), expires=1)
    refused(plane, running, S.REJECTED, Reason.ORDER_EXPIRED)


def test_an_older_release(plane: Simulator, running: Agent) -> None:
    plane.order(running.name, plane.bundle("1.0.0", 1))
    refused(plane, running, S.REJECTED, Reason.BUNDLE_OLDER)


def test_a_replay_of_an_older_generation_is_answered_with_the_state(
    plane: Simulator, running: Agent
) -> None:
    told = len(plane.all(State))
    plane.order(running.name, plane.bundle("1.2.0", 3), generation=1, execution="replayed")
    plane.wait(lambda: len(plane.all(State)) > told)
    assert not plane.events("replayed")


def test_a_bundle_for_other_hardware(plane: Simulator, running: Agent) -> None:
    plane.order(running.name, plane.bundle("1.2.0", 3, blueprint="another-board"))
    refused(plane, running, S.REJECTED, Reason.HARDWARE_MISMATCH)


def test_a_bundle_signed_by_a_stranger(plane: Simulator, running: Agent, tmp_path: Path) -> None:
    bundle = plane.bundle("1.2.0", 3)
    stranger = Keyring.open(tmp_path / "stranger")
    from agent.protocol.envelope import MANIFEST_TYPE, open_unverified  # noqa: PLC0415

    payload, _ = open_unverified(plane.manifests[bundle.digest], MANIFEST_TYPE)
    plane.manifests[bundle.digest] = stranger.sign_manifest(payload)
    plane.order(running.name, bundle)
    refused(plane, running, S.REJECTED, Reason.BUNDLE_SIGNATURE)


def test_an_order_key_may_not_sign_bundles(plane: Simulator, running: Agent) -> None:
    bundle = plane.bundle("1.2.0", 3)
    plane.manifests[bundle.digest] = plane.keyring.sign_order(b"{}")
    plane.order(running.name, bundle)
    refused(plane, running, S.REJECTED, Reason.BUNDLE_MALFORMED)


def test_the_manifest_of_another_bundle(plane: Simulator, running: Agent) -> None:
    bundle, other = plane.bundle("1.2.0", 3), plane.bundle("1.3.0", 4)
    plane.manifests[bundle.digest] = plane.manifests[other.digest]
    plane.order(running.name, bundle)
    refused(plane, running, S.REJECTED, Reason.BUNDLE_DIGEST)


def test_an_order_that_lies_about_its_bundle(plane: Simulator, running: Agent) -> None:
    from msgspec.structs import replace  # noqa: PLC0415

    lie = replace(plane.bundle("1.2.0", 3), version="9.9.9")
    plane.order(running.name, lie)
    refused(plane, running, S.REJECTED, Reason.BUNDLE_MISMATCH)


def test_one_flipped_byte_is_fetched_again(plane: Simulator, running: Agent) -> None:
    plane.faults.corrupt = 1
    bundle = plane.bundle("1.2.0", 3)
    plane.order(running.name, bundle)
    assert plane.wait_event(S.SUCCEEDED).digest == bundle.digest


def test_a_server_whose_bytes_are_never_right(plane: Simulator, running: Agent) -> None:
    plane.faults.corrupt = 1000
    plane.order(running.name, plane.bundle("1.2.0", 3))
    refused(plane, running, S.FAILED, Reason.DOWNLOAD_DIGEST)


def test_a_server_that_refuses_the_bytes(plane: Simulator, running: Agent) -> None:
    plane.faults.refuse = 404
    plane.order(running.name, plane.bundle("1.2.0", 3))
    refused(plane, running, S.FAILED, Reason.DOWNLOAD_REFUSED)


def test_a_redirect_is_not_followed(plane: Simulator, running: Agent) -> None:
    plane.faults.refuse = 302
    plane.order(running.name, plane.bundle("1.2.0", 3))
    refused(plane, running, S.FAILED, Reason.DOWNLOAD_REFUSED)


def test_a_server_that_is_never_well(plane: Simulator, running: Agent) -> None:
    plane.faults.refuse = 503
    plane.order(running.name, plane.bundle("1.2.0", 3))
    refused(plane, running, S.FAILED, Reason.DOWNLOAD_FAILED)


def test_a_connection_that_breaks_is_resumed_where_it_broke(
    plane: Simulator, running: Agent
) -> None:
    plane.faults.cut_after, plane.faults.cuts = 20_000, 3
    bundle = plane.bundle("1.2.0", 3)
    plane.order(running.name, bundle)
    plane.wait_event(S.SUCCEEDED)
    ranges = [asked for _, asked in plane.requests if asked]
    assert ranges == ["bytes=20000-", "bytes=40000-", "bytes=60000-"]
