"""Identities of simulated devices: enrolled through the real door, and kept in a folder."""

import hashlib
import os
import secrets
import ssl
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import IO, Self

import httpx
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.protocol.enrollment import Broker, EnrollReply, EnrollRequest, parse_token
from agent.protocol.errors import ProtocolError
from agent.protocol.trust import TrustedKeys
from control_plane.domain.errors import ConflictError, FlotillaError, InvalidError
from control_plane.local.fleet_simulator.population import Member

AT_ONCE = 8
TIMEOUT_S = 60.0
CONFLICT = 409
CREATED = 201


class EnrollError(FlotillaError):
    """A device could not enrol; the message says which one, and what the server said."""

    code = "enroll"


class Identity(msgspec.Struct, frozen=True):
    """One enrolled device."""

    member: str
    """Its name in the population; the device's own unless that was taken."""
    device: str
    secret: str


class Fleet(msgspec.Struct, frozen=True):
    """What all devices of one folder share."""

    server: str
    name: str
    seed: int
    ca: str
    broker: Broker
    trust: TrustedKeys


class Folder:
    """Where identities are kept; private, since they open the control plane's door.

    Args:
        path: made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys = path / "keys"
        self.standing = path / "standing.json"
        self._fleet = path / "fleet.json"
        self._list = path / "identities.jsonl"
        self.keys.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)

    def fleet(self) -> Fleet | None:
        """Return what was enrolled here, if anything was."""
        try:
            return msgspec.json.decode(self._fleet.read_bytes(), type=Fleet)
        except FileNotFoundError:
            return None
        except (msgspec.MsgspecError, OSError) as error:
            raise InvalidError(f"{self._fleet}: {error}", field="--data") from error

    def keep_fleet(self, fleet: Fleet) -> None:
        write_private(self._fleet, msgspec.json.encode(fleet))

    def identities(self) -> dict[str, Identity]:
        """Return who is enrolled, by member; a last line that a kill cut short is nobody."""
        found: dict[str, Identity] = {}
        if self._list.exists():
            for line in self._list.read_bytes().splitlines():
                try:
                    one = msgspec.json.decode(line, type=Identity)
                except msgspec.MsgspecError:
                    continue
                found[one.member] = one
        return found

    def appending(self) -> IO[bytes]:
        """Open the list for more; each line is written at once."""
        opened = os.open(self._list, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return os.fdopen(opened, "wb", buffering=0)

    def credentials(self, device: str) -> Path:
        """Return where a device's key and certificate are: one PEM file."""
        shelf = self.keys / hashlib.sha256(device.encode()).hexdigest()[:2]
        return shelf / f"{device}.pem"


def enroll(
    folder: Folder,
    members: Sequence[Member],
    *,
    server: str,
    fleet: tuple[str, int],
    token: Callable[[int], str],
    progress: Callable[[int], None],
) -> tuple[Fleet, dict[str, Identity]]:
    """Enrol who is not enrolled yet, some at a time; what was done is kept whatever happens.

    Args:
        folder: where identities are kept.
        members: the whole fleet.
        server: URL of the control plane.
        fleet: its name and seed, which must be those of before.
        token: returns an enrolment token with so many uses.
        progress: called with the number of devices that are enrolled.

    Raises:
        ConflictError: the folder holds another fleet, or a name is taken on the server.
        EnrollError: the server refused a device, or could not be reached.
    """
    known, there = folder.identities(), folder.fleet()
    _check(folder, there, server, fleet)
    missing = [one for one in members if one.traits.name not in known]
    progress(len(members) - len(missing))
    if missing:
        with _Door(folder, server, fleet, token(len(missing))) as door:
            done = len(members) - len(missing)
            for identity in door.enroll_all(missing):
                known[identity.member] = identity
                done += 1
                progress(done)
        there = folder.fleet()
    if there is None:
        raise EnrollError("no device is enrolled; use --devices of at least 1")
    return there, known


def _check(folder: Folder, there: Fleet | None, server: str, fleet: tuple[str, int]) -> None:
    if there is None:
        return
    for what, here, asked in (
        ("server", there.server, server),
        ("profile name", there.name, fleet[0]),
        ("seed", there.seed, fleet[1]),
    ):
        if here != asked:
            raise ConflictError(
                f"{folder.path} holds devices with the {what} {here}, not {asked}: use another "
                "--data folder",
                field="--data",
            )


class _Door:
    """The device side of the API, for many devices; a context manager."""

    def __init__(self, folder: Folder, server: str, fleet: tuple[str, int], token: str) -> None:
        self._folder = folder
        self._server = server
        self._fleet = fleet
        self._token = token
        self._lock = Lock()
        self._http = httpx.Client(base_url=server, timeout=TIMEOUT_S, verify=_trust(server, token))
        self._out = folder.appending()
        self._told = folder.fleet() is not None
        self._renamed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()
        self._http.close()

    def enroll_all(self, members: Sequence[Member]) -> Iterable[Identity]:
        """Yield identities as they come; the first failure ends it, after those under way."""
        pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="enroll")
        try:
            yield from pool.map(self._enroll, members)
        finally:
            pool.shutdown(cancel_futures=True)

    def _enroll(self, member: Member) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        name = member.traits.name
        answer = self._ask(member, key, name)
        if answer.status_code == CONFLICT and self._may_rename():
            # A run that was killed had enrolled it, and never read the answer.
            answer = self._ask(member, key, f"{name}-{secrets.token_hex(2)}")
        if answer.status_code != CREATED:
            raise _refused(name, answer)
        return self._keep(name, key, msgspec.json.decode(answer.content, type=EnrollReply))

    def _ask(self, member: Member, key: ec.EllipticCurvePrivateKey, name: str) -> httpx.Response:
        traits = member.traits
        request = EnrollRequest(
            token=self._token,
            csr=_request(key, name),
            hardware=traits.hardware,
            blueprint=traits.blueprint,
            labels=member.labels,
        )
        try:
            return self._http.post(
                "/device/v1/enroll",
                content=msgspec.json.encode(request),
                headers={"Content-Type": "application/json"},
            )
        except httpx.HTTPError as error:
            raise EnrollError(f"{name}: no answer from {self._server}: {error}") from error

    def _may_rename(self) -> bool:
        """More names than one kill can have cost are taken by another fleet."""
        with self._lock:
            self._renamed += 1
            return self._renamed <= AT_ONCE

    def _keep(self, member: str, key: ec.EllipticCurvePrivateKey, reply: EnrollReply) -> Identity:
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path = self._folder.credentials(reply.device)
        path.parent.mkdir(exist_ok=True)
        write_private(path, pem + reply.certificate.encode())
        identity = Identity(member, reply.device, reply.secret)
        with self._lock:
            if not self._told:
                shared = Fleet(self._server, *self._fleet, reply.ca, reply.broker, reply.trust)
                self._folder.keep_fleet(shared)
                self._told = True
            # The line comes last, since it says that all is here.
            self._out.write(msgspec.json.encode(identity) + b"\n")
        return identity


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        out.write(data)
    part.replace(path)


def _refused(device: str, answer: httpx.Response) -> FlotillaError:
    try:
        detail = str(answer.json().get("detail", ""))
    except (ValueError, AttributeError):
        detail = answer.text[:200]
    if answer.status_code == CONFLICT:
        return ConflictError(
            f"{detail}; the identities of an earlier run are not in this folder: give its --data, "
            "or another metadata.name in the profile",
            field="--data",
        )
    return EnrollError(f"{device}: {answer.status_code} {detail}")


def _trust(server: str, token: str) -> ssl.SSLContext | bool:
    """Return what the server is checked by: the fleet's CA, believed as the token names it."""
    if not server.startswith("https:"):
        return True
    try:
        wanted = parse_token(token).ca_sha256
        pem = httpx.get(f"{server}/device/v1/ca", verify=False, timeout=TIMEOUT_S).text  # noqa: S501 - compared below
        der = ssl.PEM_cert_to_DER_cert(pem)
    except (ProtocolError, httpx.HTTPError, ValueError) as error:
        raise EnrollError(f"{server}/device/v1/ca: {error}") from error
    if hashlib.sha256(der).hexdigest() != wanted:
        raise EnrollError(f"{server}: its CA is not the one that the enrolment token names")
    return ssl.create_default_context(cadata=pem)


def _request(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
