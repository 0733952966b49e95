"""Which keys a device believes: given at enrolment, stored on the device, no cryptography here."""

import hashlib

import msgspec

from agent.protocol.errors import MalformedError


class TrustedKeys(msgspec.Struct, frozen=True):
    """Public keys (PEM, ECDSA P-256) by key id, one set for each kind of document."""

    bundle: dict[str, str]
    order: dict[str, str]
    v: int = 1


def key_id(spki_der: bytes) -> str:
    """Return a key's id: SHA-256, in hex, of its DER SubjectPublicKeyInfo (RFC 5280 4.1)."""
    return hashlib.sha256(spki_der).hexdigest()


def encode(keys: TrustedKeys) -> bytes:
    """Return the stored form."""
    return msgspec.json.encode(keys)


def decode(data: bytes) -> TrustedKeys:
    """Read the stored form; `MalformedError` names what is wrong."""
    try:
        return msgspec.json.decode(data, type=TrustedKeys)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedError(f"trusted keys: {error}") from error
