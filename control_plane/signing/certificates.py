"""X.509: what the fleet's authority says about itself, its devices and its services."""

import ipaddress
from datetime import datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.protocol import topics
from agent.protocol.errors import UnknownTopicError
from control_plane.domain.errors import InvalidError

AUTHORITY_DAYS = 3650
# As long as the authority: nothing renews it yet, and a fleet must not fall silent on one day.
DEVICE_DAYS = 3650
SERVICE_DAYS = 397
# A device whose clock is behind must still accept the certificate it just got.
BACKDATE = timedelta(hours=24)
# The broker gives these names more rights than a device has.
RESERVED = "flotilla-"
MAX_REQUEST = 16_384  # bytes
_UNREADABLE = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Issuer(NamedTuple):
    """Who signs certificates."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def pem(certificate: x509.Certificate) -> str:
    """Return the certificate in PEM."""
    return certificate.public_bytes(Encoding.PEM).decode()


def authority(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    """Return a self-signed authority that may sign only leaf certificates."""
    name = _name("Flotilla fleet CA")
    builder = _builder(name, key.public_key(), now, AUTHORITY_DAYS).issuer_name(name)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
    )
    return builder.sign(key, hashes.SHA256())


def device(
    device_id: str,
    public: ec.EllipticCurvePublicKey,
    issuer: Issuer,
    now: datetime,
) -> x509.Certificate:
    """Return a device's certificate: a client, and nothing else; `InvalidError` for its name."""
    try:
        topics.device_id(device_id)
    except UnknownTopicError as error:
        raise InvalidError(str(error), field="device") from error
    if device_id.startswith(RESERVED):
        raise InvalidError(
            f"device id {device_id!r}: names that start with {RESERVED!r} are the control plane's",
            field="device",
        )
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(f"urn:flotilla:device:{device_id}")
    ]
    builder = _builder(_name(device_id), public, now, DEVICE_DAYS)
    return _leaf(builder, names, [ExtendedKeyUsageOID.CLIENT_AUTH], issuer)


def service(
    name: str,
    dns: list[str],
    public: ec.EllipticCurvePublicKey,
    issuer: Issuer,
    now: datetime,
) -> x509.Certificate:
    """Return a service's certificate: a server under `dns`, and a client."""
    names = [_general_name(text) for text in sorted(service_names(dns))]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return _leaf(_builder(_name(name), public, now, SERVICE_DAYS), names, usages, issuer)


def service_names(dns: list[str]) -> frozenset[str]:
    """Return the names and addresses on a service's certificate."""
    return frozenset({*dns, *_LOOPBACK})


def host_names(certificate: x509.Certificate) -> frozenset[str]:
    """Return the names and addresses that a certificate is good for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = names.get_values_for_type(x509.IPAddress)
    return frozenset({*names.get_values_for_type(x509.DNSName), *map(str, addresses)})


def requested_key(csr_pem: str) -> ec.EllipticCurvePublicKey:
    """Return the key that a certificate request proves to hold; `InvalidError` otherwise."""
    if len(csr_pem) > MAX_REQUEST:
        raise InvalidError(f"longer than {MAX_REQUEST} bytes", field="csr")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        sound = request.is_signature_valid
        public = request.public_key()
    except _UNREADABLE as error:
        raise InvalidError("not a certificate request in PEM", field="csr") from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(
        public.curve, ec.SECP256R1
    ):
        raise InvalidError("the key must be ECDSA on P-256", field="csr")
    if not sound:
        raise InvalidError("not signed by the key it names", field="csr")
    return public


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name, public: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + timedelta(days=days))
    )


def _leaf(
    builder: x509.CertificateBuilder,
    names: list[x509.GeneralName],
    usages: list[x509.ObjectIdentifier],
    issuer: Issuer,
) -> x509.Certificate:
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(signs_certificates=False), True),
        (x509.ExtendedKeyUsage(usages), False),
        (x509.SubjectAlternativeName(names), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), False),
    ]
    builder = builder.issuer_name(issuer.certificate.subject)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(issuer.key, hashes.SHA256())


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
