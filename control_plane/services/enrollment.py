"""Enrolment: a token and a certificate request in, an identity out; and what it opens."""

import hmac
import secrets
from collections.abc import Mapping
from datetime import timedelta

from cryptography import x509
from cryptography.x509.oid import NameOID

from agent.protocol import enrollment as wire
from agent.protocol import topics
from agent.protocol.enrollment import Broker, EnrollReply, EnrollRequest
from agent.protocol.errors import ProtocolError
from control_plane.domain.device import ACTIVE, DeviceId
from control_plane.domain.errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnauthenticatedError,
)
from control_plane.services import audit
from control_plane.services.device_facts import check_labels, checked_hardware
from control_plane.services.recognition import Recognition
from control_plane.services.scope import Scope
from control_plane.services.tokens import sha256
from control_plane.services.validity import refuse_bytes
from control_plane.signing import certificates
from control_plane.store import desired, devices
from control_plane.store import tokens as store

MAX_USES = 1_000_000


def create_token(
    scope: Scope,
    *,
    labels: Mapping[str, str] | None = None,
    uses: int = 1,
    ttl_s: float = 3600,
) -> str:
    """Make an enrolment token; the only time that its secret is seen.

    Args:
        scope: the scope.
        labels: what every device that enrols with it is labelled.
        uses: how many devices may enrol with it.
        ttl_s: seconds until it expires.
    """
    check_labels(labels or {})
    if not 1 <= uses <= MAX_USES:
        raise InvalidError(f"{uses} uses; use 1 to {MAX_USES}", field="uses")
    if ttl_s <= 0:
        raise InvalidError(f"{ttl_s} is not a time to live; use seconds above 0", field="ttl_s")
    token_id, secret = scope.new_id()[:16], secrets.token_urlsafe(32)
    store.add_enrollment(
        scope.tx,
        token_id=token_id,
        secret_sha256=sha256(secret),
        labels=dict(labels or {}),
        uses=uses,
        now=scope.now,
        expires_at=scope.now + timedelta(seconds=ttl_s),
    )
    audit.record(
        scope,
        action="device.token",
        object_kind="enrollment_token",
        object_name=token_id,
        after={"labels": dict(labels or {}), "uses": uses, "ttl_s": ttl_s},
    )
    return f"flt1.{scope.keyring.ca_sha256}.{token_id}.{secret}"


def enroll(scope: Scope, request: EnrollRequest) -> EnrollReply:
    """Make a device of whoever holds a token.

    Raises:
        InvalidError: token, csr, labels or hardware are not what they should be.
        UnauthenticatedError: the token is unknown, used up, expired or another fleet's.
        ConflictError: a device of this name is enrolled.
    """
    labels = _spend(scope, request.token)
    check_labels(request.labels)
    hardware = checked_hardware(request.hardware)
    device = _requested_id(request.csr)
    if devices.exists(scope.tx, device):
        raise _taken(device)
    issued = scope.keyring.issue_device(request.csr, device, scope.now)
    secret = secrets.token_urlsafe(32)
    new = devices.Registration(
        id=device,
        state=ACTIVE,
        blueprint=Recognition(scope).blueprint_of(request.blueprint, hardware),
        hardware=hardware,
        secret_sha256=sha256(secret),
        certificate_serial=issued.serial,
    )
    if not devices.register(scope.tx, new, scope.now):
        raise _taken(device)
    # Whoever made the token says more about a device than the device itself.
    devices.set_labels(scope.tx, device, {**request.labels, **labels})
    happening = devices.Happening(device, "enrolled", "token")
    devices.add_history(scope.tx, [happening], scope.now)
    audit.record(scope, action="device.enroll", object_kind="device", object_name=device)
    return EnrollReply(
        device=device,
        certificate=issued.certificate_pem,
        ca=scope.keyring.ca_pem,
        secret=secret,
        broker=_broker(scope),
        trust=scope.keyring.trusted_keys(),
    )


def authenticate_device(scope: Scope, secret: str) -> DeviceId:
    """Return the device that holds this bearer secret.

    Raises:
        UnauthenticatedError: no device does.
        ForbiddenError: it is quarantined.
    """
    found = devices.by_secret(scope.tx, sha256(secret))
    if found is None:
        raise UnauthenticatedError("no device has this secret; enrol it")
    device, state = found
    if state != ACTIVE:
        raise ForbiddenError(f"device {device} is {state}; ask who runs the fleet")
    return device


def bundle_envelope(scope: Scope, device: DeviceId, digest: str) -> bytes:
    """Return a bundle's signed manifest.

    Raises:
        NotFoundError: the device was never offered it.
        GoneError: its version was invalidated.
    """
    found = desired.offered_envelope(scope.tx, device, digest)
    if found is None:
        raise NotFoundError(f"device {device} was offered no bundle {digest[:64]}")
    refuse_bytes(scope, digest)
    return found


def authorize_blob(scope: Scope, device: DeviceId, sha256: str) -> None:
    """Let a device have bytes that belong to a bundle that it was offered.

    Raises:
        NotFoundError: no such bundle has these bytes.
        GoneError: only bundles of invalidated versions have them.
    """
    found = desired.offered_file(scope.tx, device, sha256)
    if not found:
        raise NotFoundError(f"device {device} was offered no file {sha256[:64]}")
    refuse_bytes(scope, found)


def _spend(scope: Scope, text: str) -> dict[str, str]:
    try:
        token = wire.parse_token(text)
    except ProtocolError as error:
        raise InvalidError(str(error), field="token") from error
    if token.ca_sha256 != scope.keyring.ca_sha256:
        raise UnauthenticatedError("the enrolment token is of another fleet", field="token")
    known = store.enrollment_secret(scope.tx, token.id)
    if not hmac.compare_digest(known, sha256(token.secret)):
        raise UnauthenticatedError("the enrolment token is unknown", field="token")
    labels = store.spend_enrollment(scope.tx, token.id, scope.now)
    if labels is None:
        raise UnauthenticatedError(
            "the enrolment token is used up or has expired; make a new one with"
            " `flotilla device token`",
            field="token",
        )
    return labels


def _requested_id(csr: str) -> DeviceId:
    certificates.requested_key(csr)
    try:
        subject = x509.load_pem_x509_csr(csr.encode()).subject
    except ValueError as error:
        raise InvalidError(f"its subject cannot be read: {error}", field="csr") from error
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise InvalidError("its subject has no single common name: the device id", field="csr")
    try:
        return DeviceId(topics.device_id(str(names[0].value)))
    except ProtocolError as error:
        raise InvalidError(str(error), field="csr") from error


def _taken(device: DeviceId) -> ConflictError:
    return ConflictError(
        f"a device {device} is enrolled already; choose another id",
        field="csr",
    )


def _broker(scope: Scope) -> Broker:
    settings = scope.settings
    return Broker(
        host=settings.mqtt_public_host or settings.mqtt_host,
        port=settings.mqtt_public_port or settings.mqtt_port,
        tls=settings.mqtt_tls,
    )
