"""Enrolment: who gets an identity, and what an identity opens."""

from base64 import b64encode
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from agent.protocol.enrollment import EnrollRequest
from agent.protocol.messages import Hardware, Heartbeat
from agent.protocol.words import Action
from control_plane.bootstrap import Application
from control_plane.domain.device import DeviceId
from control_plane.domain.errors import (
    ConflictError,
    FlotillaError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnauthenticatedError,
)
from control_plane.services import audit, desired, enrollment, inventory, reports
from control_plane.services.desired import Wanted
from control_plane.store import fleet
from tests.integration.transport.fleets import bundle, enrol, sha, up
from tests.support.brokers import request_for


def _token(app: Application, **options: float) -> str:
    with app.scope("ops") as scope:
        return enrollment.create_token(
            scope, uses=int(options.get("uses", 1)), ttl_s=options.get("ttl_s", 3600.0)
        )


def _try(app: Application, token: str, name: str) -> str:
    """Enrol; return "ok" or the code of the refusal."""
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        with app.scope("device") as scope:
            enrollment.enroll(scope, EnrollRequest(token=token, csr=request_for(key, name)))
    except FlotillaError as error:
        return error.code
    return "ok"


def test_a_device_gets_a_certificate_in_its_name_and_the_keys_it_shall_trust(
    app: Application,
) -> None:
    reply = enrol(app, "edge-7")
    issued = x509.load_pem_x509_certificate(reply.certificate.encode())
    names = issued.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert [name.value for name in names] == ["edge-7"]
    issued.verify_directly_issued_by(x509.load_pem_x509_certificate(reply.ca.encode()))
    assert reply.trust == app.keyring.trusted_keys()
    assert (reply.broker.host, reply.broker.tls) == ("127.0.0.1", False)
    with app.reading("api") as scope:
        assert enrollment.authenticate_device(scope, reply.secret) == "edge-7"
        assert [entry.kind for entry in inventory.device_history(scope, "edge-7").items] == [
            "enrolled"
        ]


def test_a_token_enrols_as_many_devices_as_it_has_uses_however_many_try_at_once(
    app: Application,
) -> None:
    token = _token(app, uses=3)
    with ThreadPoolExecutor(8) as pool:
        results = Counter(pool.map(lambda n: _try(app, token, f"edge-{n}"), range(8)))
    assert results == {"ok": 3, "unauthenticated": 5}
    with app.reading("test") as scope:
        assert inventory.fleet_summary(scope).total == 3


def test_two_who_want_one_name_get_one_device(app: Application) -> None:
    token = _token(app, uses=8)
    with ThreadPoolExecutor(4) as pool:
        results = Counter(pool.map(lambda _: _try(app, token, "edge-1"), range(4)))
    assert results == {"ok": 1, "conflict": 3}


def test_a_name_that_is_taken_is_refused_and_costs_no_use(app: Application) -> None:
    enrol(app, "edge-1")
    token = _token(app)
    assert _try(app, token, "edge-1") == "conflict"
    assert _try(app, token, "edge-2") == "ok"


def test_an_expired_token_is_refused(app: Application) -> None:
    token = _token(app, ttl_s=60.0)
    csr = request_for(ec.generate_private_key(ec.SECP256R1()), "edge-1")
    with app.scope("device") as scope:
        late = replace(scope, now=scope.now + timedelta(seconds=61))
        with pytest.raises(UnauthenticatedError, match="expired"):
            enrollment.enroll(late, EnrollRequest(token=token, csr=csr))
    assert _try(app, token, "edge-1") == "ok"


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda token: token[:-2] + ("AA" if token[-2:] != "AA" else "BB"), "unauthenticated"),
        (lambda token: token.replace(token.split(".")[1], "0" * 64), "unauthenticated"),
        (lambda token: token.replace(token.split(".")[2], "f" * 16), "unauthenticated"),
        (lambda token: token[5:], "invalid"),
        (lambda _: "", "invalid"),
    ],
    ids=["another secret", "another fleet", "another id", "cut", "empty"],
)
def test_a_spoilt_token_is_refused_and_nothing_is_stored(
    sqlite_app: Application, spoil: object, code: str
) -> None:
    token = _token(sqlite_app)
    assert callable(spoil)
    assert _try(sqlite_app, spoil(token), "edge-1") == code
    with sqlite_app.reading("test") as scope:
        assert inventory.fleet_summary(scope).total == 0
    assert _try(sqlite_app, token, "edge-1") == "ok"


def _rsa_request(name: str) -> str:
    key = rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _bad_requests() -> list[tuple[str, str]]:
    key = ec.generate_private_key(ec.SECP256R1())
    return [
        ("not PEM", "hello"),
        ("RSA", _rsa_request("edge-1")),
        ("another curve", request_for(ec.generate_private_key(ec.SECP384R1()), "edge-1")),
        ("a wildcard", request_for(key, "#")),
        ("a path", request_for(key, "../x")),
        ("upper case", request_for(key, "EDGE-1")),
        ("the control plane's name", request_for(key, "flotilla-gateway")),
    ]


@pytest.mark.parametrize("request_pem", [pytest.param(pem, id=why) for why, pem in _bad_requests()])
def test_a_bad_certificate_request_is_refused_and_costs_no_use(
    sqlite_app: Application, request_pem: str
) -> None:
    token = _token(sqlite_app)
    with pytest.raises(InvalidError) as refusal, sqlite_app.scope("device") as scope:
        enrollment.enroll(scope, EnrollRequest(token=token, csr=request_pem))
    assert refusal.value.field in {"csr", "device"}
    assert _try(sqlite_app, token, "edge-1") == "ok"


def test_no_signed_byte_of_a_certificate_request_can_be_changed() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    sound = x509.load_pem_x509_csr(request_for(key, "edge-1").encode())
    der = sound.public_bytes(serialization.Encoding.DER)
    for position in range(len(der)):
        spoilt = der[:position] + bytes([der[position] ^ 1]) + der[position + 1 :]
        lines = b64encode(spoilt).decode()
        pem = f"-----BEGIN CERTIFICATE REQUEST-----\n{lines}\n-----END CERTIFICATE REQUEST-----\n"
        try:
            enrollment._requested_id(pem)
        except InvalidError:
            continue
        # DER leaves some freedom around a signature (unused bits of its BIT STRING): what counts
        # is that nothing that was signed has changed.
        read = x509.load_der_x509_csr(spoilt)
        assert read.tbs_certrequest_bytes == sound.tbs_certrequest_bytes


def test_what_the_token_says_of_a_device_outweighs_what_it_says_of_itself(
    app: Application,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    with app.scope("ops") as scope:
        token = enrollment.create_token(scope, labels={"site": "vie"})
        csr = request_for(key, "edge-1")
        labels = {"site": "fra", "rack": "4"}
        enrollment.enroll(scope, EnrollRequest(token=token, csr=csr, labels=labels))
        assert inventory.get_device(scope, "edge-1").labels == {"site": "vie", "rack": "4"}


@pytest.mark.parametrize(
    ("labels", "hardware", "field"),
    [
        ({"a b": "x"}, Hardware(), "labels.a b"),
        ({"site": ""}, Hardware(), "labels.site"),
        ({"site": "x\n"}, Hardware(), "labels.site"),
        ({}, Hardware(cpu="a\x00b"), "hardware.cpu"),
        ({}, Hardware(cores=-1), "hardware.cores"),
        ({}, Hardware(flags=["x" * 300]), "hardware.flags"),
    ],
)
def test_labels_and_hardware_that_no_column_should_hold_are_refused_by_name(
    sqlite_app: Application, labels: dict[str, str], hardware: Hardware, field: str
) -> None:
    csr = request_for(ec.generate_private_key(ec.SECP256R1()), "edge-1")
    token = _token(sqlite_app)
    request = EnrollRequest(token=token, csr=csr, labels=labels, hardware=hardware)
    with pytest.raises(InvalidError) as refusal, sqlite_app.scope("device") as scope:
        enrollment.enroll(scope, request)
    assert refusal.value.field == field


def test_a_secret_that_nobody_has_opens_nothing(app: Application) -> None:
    enrol(app, "edge-1")
    with app.reading("api") as scope, pytest.raises(UnauthenticatedError):
        enrollment.authenticate_device(scope, "guess")


def test_a_quarantined_device_is_known_and_refused(app: Application) -> None:
    reply = enrol(app, "edge-1")
    with app.scope("ops") as scope:
        inventory.quarantine(scope, "edge-1", reason="stolen")
    with app.reading("api") as scope, pytest.raises(ForbiddenError, match="quarantined"):
        enrollment.authenticate_device(scope, reply.secret)
    with app.scope("ops") as scope:
        inventory.unquarantine(scope, "edge-1", reason="found")
    with app.reading("api") as scope:
        assert enrollment.authenticate_device(scope, reply.secret) == "edge-1"
        acts = audit.list_audit(scope, filter='kind = "device" and name = "edge-1"').items
    assert [(act.action, act.reason) for act in acts] == [
        ("device.unquarantine", "found"),
        ("device.quarantine", "stolen"),
        ("device.enroll", ""),
    ]


def test_a_device_reads_the_bundle_it_was_offered_and_its_files_and_no_other(
    app: Application,
) -> None:
    enrol(app, "edge-1")
    enrol(app, "edge-2")
    mine, other = bundle(app, "1.0.0"), bundle(app, "1.1.0")
    one, two = DeviceId("edge-1"), DeviceId("edge-2")
    with app.scope("engine") as scope:
        desired.set_desired(scope, [Wanted(one, Action.RUN, mine.digest)])
        assert enrollment.bundle_envelope(scope, one, mine.digest) == b"signed 1.0.0"
        for file in mine.files:
            enrollment.authorize_blob(scope, one, file)
        for device, digest in ((one, other.digest), (two, mine.digest), (one, sha("none"))):
            with pytest.raises(NotFoundError):
                enrollment.bundle_envelope(scope, device, digest)
        for device, file in ((one, other.files[0]), (two, mine.files[0]), (one, sha("none"))):
            with pytest.raises(NotFoundError):
                enrollment.authorize_blob(scope, device, file)


def test_a_device_cannot_get_a_bundle_by_saying_that_it_runs_it(app: Application) -> None:
    enrol(app, "edge-1")
    secret = bundle(app)
    with app.scope("gateway") as scope:
        beat = Heartbeat(boot=1, generation=0, digest=secret.digest)
        reports.apply_batch(scope, [up("edge-1", "heartbeat", beat)])
        device = fleet.one(scope.tx, "edge-1")
        assert device is not None
        assert device.digest == secret.digest
        with pytest.raises(NotFoundError):
            enrollment.bundle_envelope(scope, device.id, secret.digest)
        with pytest.raises(NotFoundError):
            enrollment.authorize_blob(scope, device.id, secret.files[0])


def test_a_token_must_have_uses_and_time(sqlite_app: Application) -> None:
    with sqlite_app.scope("ops") as scope:
        with pytest.raises(InvalidError, match="uses"):
            enrollment.create_token(scope, uses=0)
        with pytest.raises(InvalidError, match="time to live"):
            enrollment.create_token(scope, ttl_s=0)
        with pytest.raises(InvalidError, match="key"):
            enrollment.create_token(scope, labels={"": "x"})


def test_conflict_names_the_device(sqlite_app: Application) -> None:
    enrol(sqlite_app, "edge-1")
    with pytest.raises(ConflictError, match="edge-1"):
        enrol(sqlite_app, "edge-1")
