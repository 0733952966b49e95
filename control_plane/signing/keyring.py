"""The keyring: the fleet's authority and its two signing keys, in one private folder."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, Self

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import Certificate, load_pem_x509_certificate

from agent.protocol import envelope, trust
from control_plane.domain.errors import InvalidError
from control_plane.signing import certificates, keyfiles

# RFC 6979: the same document gets the same envelope, so a repeated request changes nothing.
_SIGNATURE = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)


class Issued(NamedTuple):
    """A device's certificate; `serial` is in hex."""

    certificate_pem: str
    serial: str


class ServiceFiles(NamedTuple):
    """Where a service finds its certificate and key."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class _Signer:
    """One signing key and the id that devices know it by."""

    key: ec.EllipticCurvePrivateKey
    id: str
    public_pem: str

    @classmethod
    def of(cls, key: ec.EllipticCurvePrivateKey) -> Self:
        public = key.public_key()
        der = public.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        pem = public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return cls(key, trust.key_id(der), pem.decode())

    def seal(self, kind: str, payload: bytes) -> bytes:
        signature = self.key.sign(envelope.pae(kind, payload), _SIGNATURE)
        return envelope.seal(kind, payload, {self.id: signature})


class Keyring:
    """Opened keys; immutable, so that threads share one.

    Args:
        folder: where the files are.
        authority: the CA.
        bundle: signs bundle manifests.
        order: signs orders.
    """

    def __init__(
        self,
        folder: Path,
        authority: certificates.Issuer,
        bundle: ec.EllipticCurvePrivateKey,
        order: ec.EllipticCurvePrivateKey,
    ) -> None:
        self.folder = folder
        self._authority = authority
        self._bundle = _Signer.of(bundle)
        self._order = _Signer.of(order)

    @classmethod
    def open(cls, folder: Path) -> "Keyring":
        """Open the keyring in `folder`; the first process to come creates it.

        Raises:
            InvalidError: a key file is there but cannot be read as one.
        """
        keyfiles.make_private(folder)
        with keyfiles.locked(folder):
            ca_key = keyfiles.load_or_create(folder / "ca.key")
            bundle = keyfiles.load_or_create(folder / "bundle.key")
            order = keyfiles.load_or_create(folder / "order.key")
            certificate = _authority(folder, ca_key)
        return cls(folder, certificates.Issuer(certificate, ca_key), bundle, order)

    @property
    def ca_pem(self) -> str:
        return certificates.pem(self._authority.certificate)

    @property
    def ca_path(self) -> Path:
        """Return the CA certificate's file, for programs that want a path."""
        return self.folder / "ca.pem"

    @property
    def ca_sha256(self) -> str:
        """Return what an enrolment token carries: SHA-256, in hex, of the CA's DER."""
        return self._authority.certificate.fingerprint(hashes.SHA256()).hex()

    def trusted_keys(self) -> trust.TrustedKeys:
        """Return the public keys that a device is given at enrolment."""
        return trust.TrustedKeys(
            bundle={self._bundle.id: self._bundle.public_pem},
            order={self._order.id: self._order.public_pem},
        )

    def sign_order(self, payload: bytes) -> bytes:
        """Return a signed order: a DSSE envelope around `payload`."""
        return self._order.seal(envelope.ORDER_TYPE, payload)

    def sign_manifest(self, payload: bytes) -> bytes:
        """Return a signed bundle manifest: a DSSE envelope around `payload`."""
        return self._bundle.seal(envelope.MANIFEST_TYPE, payload)

    def issue_device(self, csr_pem: str, device_id: str, now: datetime) -> Issued:
        """Certify a device's key under the name `device_id`.

        The request's own subject and extensions are ignored: the fleet says who a device is.

        Raises:
            InvalidError: not a request for a P-256 key, or a name that no device may have.
        """
        public = certificates.requested_key(csr_pem)
        issued = certificates.device(device_id, public, self._authority, now)
        return Issued(certificates.pem(issued), f"{issued.serial_number:x}")

    def issue_service(self, name: str, dns: list[str], now: datetime) -> ServiceFiles:
        """Return a service's certificate and key, made anew when missing, old or for other names.

        Args:
            name: the certificate's common name and the files' stem, such as ``flotilla-gateway``.
            dns: host names and addresses it answers on; loopback is always among them.
            now: the time.
        """
        files = ServiceFiles(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        with keyfiles.locked(self.folder):
            key = keyfiles.load_or_create(files.key)
            if not self._serves(files.certificate, key, dns, now):
                fresh = certificates.service(name, dns, key.public_key(), self._authority, now)
                keyfiles.write_private(files.certificate, certificates.pem(fresh).encode())
        return files

    def _serves(
        self, path: Path, key: ec.EllipticCurvePrivateKey, dns: list[str], now: datetime
    ) -> bool:
        if not path.exists():
            return False
        found = load_pem_x509_certificate(path.read_bytes())
        return (
            found.issuer == self._authority.certificate.subject
            and found.public_key() == key.public_key()
            and certificates.host_names(found) == certificates.service_names(dns)
            and now + timedelta(days=certificates.SERVICE_DAYS / 2) < found.not_valid_after_utc
        )


def _authority(folder: Path, key: ec.EllipticCurvePrivateKey) -> Certificate:
    path = folder / "ca.pem"
    if not path.exists():
        # The key file's own date: the certificate starts when its key was born.
        born = datetime.fromtimestamp((folder / "ca.key").stat().st_mtime, UTC)
        keyfiles.write_private(path, certificates.pem(certificates.authority(key, born)).encode())
    try:
        certificate = load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise InvalidError(f"{path}: not a certificate in PEM; restore it", field="keys") from error
    if certificate.public_key() != key.public_key():
        raise InvalidError(
            f"{path} does not belong to ca.key beside it; restore both from one backup",
            field="keys",
        )
    return certificate
