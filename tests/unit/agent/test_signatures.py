"""Signatures: only a trusted key, only the right kind, not one byte changed."""

from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from agent import signatures, verify
from agent.errors import StepError
from agent.protocol.envelope import MAX_ENVELOPE, ORDER_TYPE
from agent.protocol.errors import ProtocolError
from agent.protocol.words import Reason
from agent.signatures import CertificateRequest, Document
from control_plane.signing.keyring import Keyring

PAYLOAD = b'{"an":"order"}'


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return Keyring.open(tmp_path_factory.mktemp("keys"))


def test_a_trusted_signature_gives_the_signed_bytes_through_a_real_child(fleet: Keyring) -> None:
    envelope = fleet.sign_order(PAYLOAD)
    assert signatures.check("order", envelope, fleet.trusted_keys().order) == PAYLOAD


def test_code_in_the_folder_that_the_agent_stands_in_is_not_run(
    fleet: Keyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent/__init__.py").touch()
    (tmp_path / "agent/verify.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    envelope = fleet.sign_order(PAYLOAD)
    assert signatures.check("order", envelope, fleet.trusted_keys().order) == PAYLOAD


def test_a_stranger_is_not_believed(fleet: Keyring, tmp_path: Path) -> None:
    stranger = Keyring.open(tmp_path)
    found = verify.answer(
        Document("order", stranger.sign_order(PAYLOAD), fleet.trusted_keys().order)
    )
    assert (found.reason, found.payload) == (Reason.ORDER_SIGNATURE, b"")


def test_the_bundle_key_may_not_sign_orders(fleet: Keyring) -> None:
    keys = fleet.trusted_keys()
    found = verify.answer(Document("order", fleet.sign_order(PAYLOAD), keys.bundle))
    assert found.reason is Reason.ORDER_SIGNATURE


def test_a_manifest_is_no_order(fleet: Keyring) -> None:
    keys = {**fleet.trusted_keys().order, **fleet.trusted_keys().bundle}
    found = verify.answer(Document("order", fleet.sign_manifest(PAYLOAD), keys))
    assert found.reason is Reason.ORDER_MALFORMED


def test_an_envelope_that_is_too_long_is_not_even_read(fleet: Keyring) -> None:
    found = verify.answer(
        Document("manifest", b" " * (MAX_ENVELOPE + 1), fleet.trusted_keys().bundle)
    )
    assert found.reason is Reason.BUNDLE_MALFORMED


def test_without_trusted_keys_nothing_is_believed(fleet: Keyring) -> None:
    found = verify.answer(Document("order", fleet.sign_order(PAYLOAD), {}))
    assert found.reason is Reason.ORDER_SIGNATURE


def test_a_key_id_that_lies_does_not_matter(fleet: Keyring) -> None:
    (pem,) = fleet.trusted_keys().order.values()
    assert verify.verified(fleet.sign_order(PAYLOAD), ORDER_TYPE, {"another": pem}) == PAYLOAD


@given(st.data())
def test_no_changed_byte_is_ever_accepted_as_another_order(
    fleet: Keyring, data: st.DataObject
) -> None:
    envelope = bytearray(fleet.sign_order(PAYLOAD))
    where = data.draw(st.integers(0, len(envelope) - 1))
    envelope[where] ^= data.draw(st.integers(1, 255))
    try:
        got = verify.verified(bytes(envelope), ORDER_TYPE, fleet.trusted_keys().order)
    except ProtocolError:
        return
    assert got == PAYLOAD, "changed bytes were accepted"


def test_a_refusal_reaches_the_resident_process_with_its_reason(fleet: Keyring) -> None:
    with pytest.raises(StepError) as caught:
        signatures.check("manifest", b"{}", fleet.trusted_keys().bundle)
    assert caught.value.reason is Reason.BUNDLE_MALFORMED


def test_a_certificate_request_keeps_the_key_it_is_given() -> None:
    first = verify.answer(CertificateRequest("edge-1"))
    again = verify.answer(CertificateRequest("edge-1", first.key))
    assert again.key == first.key
    request = x509.load_pem_x509_csr(again.csr.encode())
    assert request.is_signature_valid
    assert request.subject.rfc4514_string() == "CN=edge-1"
