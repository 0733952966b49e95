"""One changed byte is refused, or changes what the digest and the signature are over."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.protocol import envelope
from agent.protocol import manifest as manifests
from agent.protocol.errors import ProtocolError, UntrustedError
from agent.verify import verified
from tests.unit.protocol.documents import encoded

PAYLOAD = encoded("manifest")
KEY = ec.generate_private_key(ec.SECP256R1())
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
SIGNATURE = KEY.sign(envelope.pae(envelope.MANIFEST_TYPE, PAYLOAD), ec.ECDSA(SHA256()))
SEALED = envelope.seal(envelope.MANIFEST_TYPE, PAYLOAD, {"k1": SIGNATURE})


def flipped(data: bytes, position: int, mask: int) -> bytes:
    return data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :]


def test_every_flipped_bit_of_a_manifest_is_refused_or_changes_its_digest() -> None:
    for position in range(len(PAYLOAD)):
        for bit in range(8):
            changed = flipped(PAYLOAD, position, 1 << bit)
            try:
                manifests.decode(changed)
            except ProtocolError:
                continue
            assert manifests.digest(changed) != manifests.digest(PAYLOAD)


def test_the_unchanged_envelope_is_trusted() -> None:
    assert verified(SEALED, envelope.MANIFEST_TYPE, {"k1": PUBLIC}) == PAYLOAD


@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
@settings(max_examples=500, deadline=None)
def test_a_flipped_byte_of_an_envelope_never_yields_another_payload(
    position: int, mask: int
) -> None:
    try:
        read = verified(flipped(SEALED, position, mask), envelope.MANIFEST_TYPE, {"k1": PUBLIC})
    except ProtocolError:
        return
    assert read == PAYLOAD  # a byte that means nothing, such as one of the key id, a mere hint


@given(st.binary(max_size=400))
def test_whatever_arrives_is_an_envelope_or_a_named_fault(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        envelope.open_unverified(data, envelope.ORDER_TYPE)


def test_a_signature_over_one_kind_of_document_is_none_over_another() -> None:
    turned = envelope.seal(envelope.ORDER_TYPE, PAYLOAD, {"k1": SIGNATURE})
    with pytest.raises(UntrustedError):
        verified(turned, envelope.ORDER_TYPE, {"k1": PUBLIC})
