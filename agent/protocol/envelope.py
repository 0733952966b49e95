"""The signature envelope: DSSE v1 (https://github.com/secure-systems-lab/dsse, protocol.md).

Signatures cover the received bytes, never a re-serialisation. This module holds no cryptography:
it reads the envelope and says which bytes were signed (the PAE); `agent.verify` checks them.
"""

from base64 import b64decode, b64encode

import msgspec

from agent.protocol.errors import MalformedError, TooLargeError

ORDER_TYPE = "application/vnd.flotilla.order.v1+json"
MANIFEST_TYPE = "application/vnd.flotilla.manifest.v1+json"

MAX_ENVELOPE = 262_144  # bytes; the broker's packet limit
MAX_SIGNATURES = 8


class Signature(msgspec.Struct, frozen=True):
    """One signature: `keyid` is a hint for choosing a key, never a reason to trust it."""

    keyid: str
    sig: str


class Envelope(msgspec.Struct, frozen=True, rename={"payload_type": "payloadType"}):
    """A DSSE envelope; `payload` is base64."""

    payload_type: str
    payload: str
    signatures: list[Signature]


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding: the bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(payload_type: str, payload: bytes, signatures: dict[str, bytes]) -> bytes:
    """Return envelope bytes around `payload`.

    Args:
        payload_type: a media type.
        payload: the signed bytes.
        signatures: key id to DER signature over ``pae(payload_type, payload)``.
    """
    # Written out: base64 needs no escapes, and a wave of orders is sealed in one go.
    sealed = b",".join(
        b'{"keyid":%b,"sig":"%b"}' % (msgspec.json.encode(key), b64encode(sig))
        for key, sig in signatures.items()
    )
    kind = msgspec.json.encode(payload_type)
    return b'{"payloadType":%b,"payload":"%b","signatures":[%b]}' % (
        kind,
        b64encode(payload),
        sealed,
    )


def open_unverified(data: bytes, payload_type: str) -> tuple[bytes, dict[str, bytes]]:
    """Return (payload, signatures by key id) of an envelope whose signatures nobody checked yet.

    Raises:
        TooLargeError: over `MAX_ENVELOPE` bytes.
        MalformedError: not an envelope of this payload type.
    """
    if len(data) > MAX_ENVELOPE:
        raise TooLargeError(f"envelope of {len(data)} bytes; the limit is {MAX_ENVELOPE}")
    try:
        read = msgspec.json.decode(data, type=Envelope)
        payload = b64decode(read.payload, validate=True)
        signatures = {s.keyid: b64decode(s.sig, validate=True) for s in read.signatures}
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedError(f"envelope: {error}") from error
    if read.payload_type != payload_type:
        raise MalformedError(f"payloadType is {read.payload_type[:80]!r}, expected {payload_type}")
    if not 1 <= len(read.signatures) <= MAX_SIGNATURES:
        raise MalformedError(f"signatures: {len(read.signatures)}, expected 1 to {MAX_SIGNATURES}")
    return payload, signatures
