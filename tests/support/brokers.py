"""A Mosquitto as in production: mutual TLS, names from certificates, the fleet's ACL."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from control_plane.local.mosquitto import ACL, limits, mutual_tls
from control_plane.signing.keyring import Keyring
from tests.support import services

GATEWAY = "flotilla-gateway"


@dataclass(frozen=True)
class ClientFiles:
    """What a TLS client needs on disk."""

    ca: Path
    certificate: Path
    key: Path


class MutualBroker:
    """A broker that believes one fleet's authority.

    Args:
        keyring: the fleet.
    """

    def __init__(self, keyring: Keyring) -> None:
        self.keyring = keyring
        server = keyring.issue_service("broker", [], _now())
        acl = keyring.folder / "broker.acl"
        acl.write_text(ACL)
        acl.chmod(0o600)
        lines = mutual_tls(keyring.ca_path, server.certificate, server.key, acl)
        self.service = services.mosquitto("\n".join([*lines, *limits()]))

    @property
    def port(self) -> int:
        return self.service.port

    def gateway(self) -> ClientFiles:
        """Return the gateway's credentials."""
        files = self.keyring.issue_service(GATEWAY, [], _now())
        return ClientFiles(self.keyring.ca_path, files.certificate, files.key)

    def device(self, name: str) -> ClientFiles:
        """Enrol a device by hand and return its credentials."""
        return device_files(self.keyring, name)


def device_files(keyring: Keyring, name: str) -> ClientFiles:
    """Make a key, have it certified as `name`, and write both beside the keyring's files."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = keyring.folder / f"device-{name}.pem"
    certificate.write_text(keyring.issue_device(request_for(key, name), name, _now())[0])
    path = keyring.folder / f"device-{name}.key"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o600)
    return ClientFiles(keyring.ca_path, certificate, path)


def request_for(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    """Return a certificate request in PEM."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - certificates are checked against the real clock
