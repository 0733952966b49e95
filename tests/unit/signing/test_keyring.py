import multiprocessing
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.protocol import envelope
from control_plane.domain.errors import InvalidError
from control_plane.signing.keyring import Keyring
from tests.support.brokers import request_for

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def certificate(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def fresh_request(name: str = "edge-1") -> str:
    return request_for(ec.generate_private_key(ec.SECP256R1()), name)


def test_the_second_opening_finds_the_same_keys(tmp_path: Path) -> None:
    first, second = Keyring.open(tmp_path / "keys"), Keyring.open(tmp_path / "keys")

    assert first.trusted_keys() == second.trusted_keys()
    assert first.ca_pem == second.ca_pem


def _open_and_describe(folder: Path) -> tuple[str, str]:
    keyring = Keyring.open(folder)
    return keyring.ca_sha256, next(iter(keyring.trusted_keys().order))


def test_processes_that_start_at_once_agree_on_one_set_of_keys(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        seen = pool.map(_open_and_describe, [tmp_path / "keys"] * 8)

    assert len(set(seen)) == 1


def test_only_the_owner_can_read_the_keys(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o755)
    keyring = Keyring.open(folder)
    keyring.issue_service("flotilla-gateway", [], NOW)

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.key")}
    assert modes == dict.fromkeys(
        ("ca.key", "bundle.key", "order.key", "flotilla-gateway.key"), 0o600
    )


def test_nothing_half_written_is_left_beside_the_keys(tmp_path: Path) -> None:
    Keyring.open(tmp_path / "keys")

    names = {path.name for path in (tmp_path / "keys").iterdir()}
    assert names == {".lock", "ca.key", "ca.pem", "bundle.key", "order.key"}


def test_an_order_is_signed_by_the_order_key_over_the_payloads_own_bytes(keyring: Keyring) -> None:
    payload, signatures = envelope.open_unverified(
        keyring.sign_order(b'{"a":1}'), envelope.ORDER_TYPE
    )

    ((key_id, signature),) = signatures.items()
    public = serialization.load_pem_public_key(keyring.trusted_keys().order[key_id].encode())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(signature, envelope.pae(envelope.ORDER_TYPE, payload), ec.ECDSA(hashes.SHA256()))
    assert payload == b'{"a":1}'


def test_the_same_payload_gives_the_same_envelope(keyring: Keyring) -> None:
    assert keyring.sign_manifest(b"x") == keyring.sign_manifest(b"x")


def test_orders_and_manifests_have_different_keys(keyring: Keyring) -> None:
    trusted = keyring.trusted_keys()

    assert not set(trusted.order) & set(trusted.bundle)


def test_the_token_fingerprint_is_the_sha256_of_the_authoritys_der(keyring: Keyring) -> None:
    der = certificate(keyring.ca_pem).public_bytes(serialization.Encoding.DER)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)

    assert keyring.ca_sha256 == digest.finalize().hex()


def test_a_device_certificate_names_the_device_and_is_good_for_a_client_only(
    keyring: Keyring,
) -> None:
    issued = keyring.issue_device(fresh_request("whatever"), "edge-7", NOW)

    found = certificate(issued.certificate_pem)
    found.verify_directly_issued_by(certificate(keyring.ca_pem))
    (name,) = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert name.value == "edge-7"
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        "urn:flotilla:device:edge-7"
    ]
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert found.not_valid_before_utc == NOW - timedelta(hours=24)
    assert found.not_valid_after_utc == NOW + timedelta(days=3650)
    assert int(issued.serial, 16) == found.serial_number


def test_a_device_cannot_ask_for_rights_in_its_request(keyring: Keyring) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "flotilla-gateway")])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
        .decode()
    )

    found = certificate(keyring.issue_device(request, "edge-7", NOW).certificate_pem)

    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert found.subject.rfc4514_string() == "CN=edge-7"


@pytest.mark.parametrize("name", ["flotilla-gateway", "flotilla-x", "#", "+", "a/../b", "A", ""])
def test_a_name_that_would_gain_rights_at_the_broker_is_refused(
    keyring: Keyring, name: str
) -> None:
    with pytest.raises(InvalidError) as caught:
        keyring.issue_device(fresh_request(), name, NOW)

    assert caught.value.field == "device"


def _rsa_request() -> str:
    key = rsa.generate_private_key(65537, 2048)
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _p384_request() -> str:
    key = ec.generate_private_key(ec.SECP384R1())
    return request_for(key, "edge-1")


def _forged_request() -> str:
    """Swap the key inside a request, so that its signature is by another key."""
    honest = x509.load_pem_x509_csr(fresh_request().encode())
    other = x509.load_pem_x509_csr(fresh_request().encode())
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    mine, theirs = (
        request.public_key().public_bytes(serialization.Encoding.DER, spki)
        for request in (honest, other)
    )
    der = honest.public_bytes(serialization.Encoding.DER).replace(mine, theirs)
    return x509.load_der_x509_csr(der).public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize(
    "request_pem",
    [
        pytest.param("", id="empty"),
        pytest.param("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", id="truncated"),
        pytest.param("x" * 20_000, id="too long"),
        pytest.param(_rsa_request(), id="RSA"),
        pytest.param(_p384_request(), id="another curve"),
        pytest.param(_forged_request(), id="signed by another key"),
    ],
)
def test_a_bad_certificate_request_is_refused_by_name(keyring: Keyring, request_pem: str) -> None:
    with pytest.raises(InvalidError) as caught:
        keyring.issue_device(request_pem, "edge-1", NOW)

    assert caught.value.field == "csr"


def test_a_service_certificate_serves_its_names_and_loopback(keyring: Keyring) -> None:
    files = keyring.issue_service("api", ["fleet.example", "10.1.2.3"], NOW)

    found = certificate(files.certificate.read_text())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"fleet.example", "localhost"}
    assert {str(address) for address in names.get_values_for_type(x509.IPAddress)} == {
        "10.1.2.3",
        "127.0.0.1",
        "::1",
    }
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}


def test_a_service_keeps_its_certificate_while_it_is_fresh(keyring: Keyring) -> None:
    first = keyring.issue_service("api", [], NOW).certificate.read_bytes()

    again = keyring.issue_service("api", [], NOW + timedelta(days=30)).certificate.read_bytes()

    assert again == first


@pytest.mark.parametrize(
    ("dns", "later"),
    [
        pytest.param([], timedelta(days=300), id="old"),
        pytest.param(["other.example"], timedelta(0), id="other names"),
    ],
)
def test_a_service_certificate_is_made_anew_when_it_no_longer_fits(
    keyring: Keyring, dns: list[str], later: timedelta
) -> None:
    first = keyring.issue_service("api", [], NOW).certificate.read_bytes()

    again = keyring.issue_service("api", dns, NOW + later).certificate.read_bytes()

    assert again != first


def test_a_damaged_key_file_is_named_and_not_replaced(tmp_path: Path) -> None:
    Keyring.open(tmp_path / "keys")
    damaged = tmp_path / "keys" / "order.key"
    damaged.write_text("-----BEGIN PRIVATE KEY-----\nAAAA")

    with pytest.raises(InvalidError, match=r"order\.key: not a private key in PEM"):
        Keyring.open(tmp_path / "keys")

    assert damaged.read_text() == "-----BEGIN PRIVATE KEY-----\nAAAA"


def test_an_authority_that_does_not_match_its_key_is_refused(tmp_path: Path) -> None:
    Keyring.open(tmp_path / "keys")
    other = Keyring.open(tmp_path / "other")
    (tmp_path / "keys" / "ca.pem").write_text(other.ca_pem)

    with pytest.raises(InvalidError, match=r"ca\.pem does not belong to ca\.key"):
        Keyring.open(tmp_path / "keys")
