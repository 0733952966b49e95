"""Who this device is: enrolment with a token, and the credentials that came of it."""

import hashlib
import ssl
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from agent.cancellation import Cancellation
from agent.config import DataFolder
from agent.errors import ConfigError, DownloadError, EnrollmentError
from agent.files import Files
from agent.protocol import topics
from agent.protocol.enrollment import Broker, EnrollReply, EnrollRequest, parse_token
from agent.protocol.errors import ProtocolError
from agent.protocol.messages import Hardware
from agent.protocol.topics import DeviceId
from agent.protocol.trust import TrustedKeys
from agent.web import InterruptedTransferError, Server, server_url, trusting, trusting_nobody_yet

MAX_REPLY = 262_144
OK = 200
DOCUMENT = "identity.json"


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """An enrolled device."""

    device: DeviceId
    server: str
    ca: str
    secret: str
    broker: Broker
    trust: TrustedKeys


class Wish(NamedTuple):
    """What a person asks for: to enrol this machine as `device` at `server`."""

    server: str
    token: str
    device: str
    blueprint: str
    labels: dict[str, str]
    plain_http: bool = False


class RequestMaker(Protocol):
    """Makes (key, certificate request), PEM, for a name and a key that may exist already."""

    def __call__(self, name: str, key: str) -> tuple[str, str]: ...


def certificate_path(folder: DataFolder) -> Path:
    """Return where the client certificate lies."""
    return folder.identity / "device.crt"


def key_path(folder: DataFolder) -> Path:
    """Return where the private key lies."""
    return folder.identity / "device.key"


def load(files: Files, folder: DataFolder) -> Identity | None:
    """Return the identity, none if this device is not enrolled.

    Raises:
        ConfigError: the stored identity cannot be read.
    """
    path = folder.identity / DOCUMENT
    if not files.exists(path):
        return None
    try:
        return msgspec.json.decode(files.read(path), type=Identity)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path}: {error}; remove it and enrol again") from error


def enroll(
    files: Files, folder: DataFolder, wish: Wish, hardware: Hardware, make: RequestMaker
) -> Identity:
    """Enrol this machine; a second time changes nothing.

    Raises:
        EnrollmentError: says what went wrong and what to do.
        ConfigError: the server's URL is not acceptable.
    """
    known = load(files, folder)
    if known is not None:
        return _already(known, wish)
    try:
        token = parse_token(wish.token)
        device = topics.device_id(wish.device)
    except ProtocolError as error:
        raise EnrollmentError(str(error)) from error
    url = server_url(wish.server, plain_http=wish.plain_http)
    ca = _pinned_ca(Server(url, trusting_nobody_yet()), token.ca_sha256)
    files.make_folder(folder.identity)
    folder.identity.chmod(0o700)
    key, csr = make(device, _stored_key(files, folder))
    files.write(key_path(folder), key.encode())
    request = EnrollRequest(
        token=wish.token.strip(),
        csr=csr,
        hardware=hardware,
        blueprint=wish.blueprint,
        labels=wish.labels,
    )
    reply = _post(Server(url, trusting(ca)), request)
    return _store(files, folder, wish.server, reply)


def _already(known: Identity, wish: Wish) -> Identity:
    if known.device != wish.device:
        raise EnrollmentError(
            f"this data folder belongs to device {known.device!r}, not {wish.device!r}: "
            "use another --data folder"
        )
    return known


def _stored_key(files: Files, folder: DataFolder) -> str:
    """Return the key of an enrolment that was cut short: the server may know it already."""
    path = key_path(folder)
    return files.read(path).decode() if files.exists(path) else ""


def _pinned_ca(server: Server, fingerprint: str) -> str:
    """Fetch the fleet's CA, believed only because the token names its fingerprint."""
    pem = _ask(server, "GET", "/device/v1/ca").decode(errors="replace")
    try:
        der = ssl.PEM_cert_to_DER_cert(pem)
    except ValueError as error:
        raise EnrollmentError(f"/device/v1/ca is not a certificate: {error}") from error
    if hashlib.sha256(der).hexdigest() != fingerprint:
        raise EnrollmentError(
            "the server's CA is not the one that the token names: this is another server, or "
            "someone in between; check the URL and make a new token"
        )
    return pem


def _post(server: Server, request: EnrollRequest) -> EnrollReply:
    body = _ask(server, "POST", "/device/v1/enroll", msgspec.json.encode(request))
    try:
        return msgspec.json.decode(body, type=EnrollReply)
    except msgspec.MsgspecError as error:
        raise EnrollmentError(f"the server's answer is not an identity: {error}") from error


def _ask(server: Server, method: str, path: str, body: bytes | None = None) -> bytes:
    try:
        answer = server.document(method, path, Cancellation(), limit=MAX_REPLY, body=body)
    except (InterruptedTransferError, DownloadError) as error:
        raise EnrollmentError(f"{path}: {error}; is the server up, and its URL right?") from error
    if not OK <= answer.status < OK + 100:
        raise EnrollmentError(f"{path}: {answer.status} {_detail(answer.body)}".rstrip())
    return answer.body


def _detail(body: bytes) -> str:
    """Return what a problem document (RFC 9457) says."""
    try:
        problem = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.MsgspecError:
        return ""
    return str(problem.get("detail") or problem.get("title") or "")


def _store(files: Files, folder: DataFolder, server: str, reply: EnrollReply) -> Identity:
    """Write the credentials; the document comes last, since it says that all is here."""
    identity = Identity(
        device=topics.device_id(reply.device),
        server=server,
        ca=reply.ca,
        secret=reply.secret,
        broker=reply.broker,
        trust=reply.trust,
    )
    files.write(certificate_path(folder), reply.certificate.encode())
    files.write(folder.identity / DOCUMENT, msgspec.json.encode(identity))
    return identity
