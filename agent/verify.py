"""Checks signatures and makes keys, in a child process: the only place that imports cryptography.

``python -m agent.verify`` reads one task (JSON, agent/signatures.py) on stdin and writes what it
found on stdout; it exits 0 whether or not the document is trusted.
"""

import sys

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.x509.oid import NameOID

from agent.protocol import envelope
from agent.protocol.errors import ProtocolError, UntrustedError
from agent.protocol.words import Reason
from agent.signatures import CertificateRequest, Found, Task

DOCUMENT_TYPES = {"order": envelope.ORDER_TYPE, "manifest": envelope.MANIFEST_TYPE}
MALFORMED = {"order": Reason.ORDER_MALFORMED, "manifest": Reason.BUNDLE_MALFORMED}
UNTRUSTED = {"order": Reason.ORDER_SIGNATURE, "manifest": Reason.BUNDLE_SIGNATURE}


def answer(task: Task) -> Found:
    """Carry out one task."""
    if isinstance(task, CertificateRequest):
        return make_request(task)
    try:
        return Found(payload=verified(task.envelope, DOCUMENT_TYPES[task.kind], task.keys))
    except UntrustedError as error:
        return Found(reason=UNTRUSTED[task.kind], message=str(error))
    except ProtocolError as error:
        return Found(reason=MALFORMED[task.kind], message=str(error))


def verified(data: bytes, payload_type: str, keys: dict[str, str]) -> bytes:
    """Return the payload if one of its signatures is by one of `keys`.

    Raises:
        ProtocolError: not such an envelope.
        UntrustedError: no signature verifies.
    """
    payload, signatures = envelope.open_unverified(data, payload_type)
    signed = envelope.pae(payload_type, payload)
    # The key id is a hint by whoever wrote the envelope: every key is tried on every signature.
    for pem in keys.values():
        key = load_pem_public_key(pem.encode())
        if isinstance(key, ec.EllipticCurvePublicKey) and _signed_by(key, signatures, signed):
            return payload
    named = ", ".join(sorted(key[:16] for key in signatures))
    raise UntrustedError(f"no signature by a trusted key (it names {named})")


def _signed_by(key: ec.EllipticCurvePublicKey, signatures: dict[str, bytes], signed: bytes) -> bool:
    for signature in signatures.values():
        try:
            key.verify(signature, signed, ec.ECDSA(SHA256()))
        except InvalidSignature:
            continue
        return True
    return False


def make_request(task: CertificateRequest) -> Found:
    """Make a certificate request, and a key if there is none yet."""
    key = _key(task.key)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, task.name)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, SHA256())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Found(key=pem.decode(), csr=csr.public_bytes(Encoding.PEM).decode())


def _key(pem: str) -> ec.EllipticCurvePrivateKey:
    if not pem:
        return ec.generate_private_key(ec.SECP256R1())
    key = load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("the device key is not an elliptic-curve key")
    return key


def main() -> int:
    """Answer one task."""
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    sys.stdout.buffer.write(msgspec.json.encode(answer(task)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
